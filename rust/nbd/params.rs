// SPDX-License-Identifier: GPL-2.0

//! What user space says of a device before it connects it.

use crate::{
    kernel::block::{
        is_valid_block_size,
        mq::{DiskOperations, GenDisk},
        MAX_TIMEOUT,
        SECTOR_SHIFT, //
    },
    protocol::{ClientFlags, Flags},
};
use kernel::{prelude::*, time::msecs_to_jiffies};

/// The block size unless told otherwise, in bytes.
const DEFAULT_BLOCK_SIZE: u32 = 1024;

/// The block layer's timeout for a device that never disconnects: how often it warns, in seconds.
const WARN_INTERVAL: u32 = 30;

/// How long new limits wait for the requests in flight, in milliseconds.
const FREEZE_MS: u32 = 1000;

/// The longest discard and write of zeroes, in bytes.
const MAX_RANGE: u32 = u32::MAX;

/// The parameters of a device.
#[derive(Clone, Copy)]
pub(crate) struct Params {
    /// In bytes; at most `i64::MAX`.
    size: u64,
    /// In bytes; valid as a logical block size.
    block_size: u32,
    /// In seconds; 0 means that a slow server is never disconnected.
    timeout: u32,
    flags: Flags,
    /// In seconds; how long requests wait for a new connection after the last one is lost.
    dead_conn_timeout: u32,
    client: ClientFlags,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            size: 0,
            block_size: DEFAULT_BLOCK_SIZE,
            timeout: 0,
            flags: Flags::default(),
            dead_conn_timeout: 0,
            client: ClientFlags::default(),
        }
    }
}

impl Params {
    pub(crate) fn flags(&self) -> Flags {
        self.flags
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(crate) fn timeout(&self) -> u32 {
        self.timeout
    }

    /// `bytes` as `NBD_SET_SIZE` gives them.
    pub(crate) fn with_size(self, bytes: u64) -> Result<Self> {
        i64::try_from(bytes).map_err(|_| EINVAL)?;
        Ok(Self {
            size: bytes,
            ..self
        })
    }

    /// `blocks` of the block size, as `NBD_SET_SIZE_BLOCKS` gives them.
    pub(crate) fn with_blocks(self, blocks: u64) -> Result<Self> {
        let bytes = blocks.checked_mul(u64::from(self.block_size));
        self.with_size(bytes.ok_or(EINVAL)?)
    }

    /// `bytes` as `NBD_SET_BLKSIZE` gives them; 0 means the default.
    pub(crate) fn with_block_size(self, bytes: usize) -> Result<Self> {
        let block_size = match bytes {
            0 => DEFAULT_BLOCK_SIZE,
            _ if is_valid_block_size(bytes) => u32::try_from(bytes).map_err(|_| EINVAL)?,
            _ => return Err(EINVAL),
        };
        Ok(Self { block_size, ..self })
    }

    /// `seconds` as `NBD_SET_TIMEOUT` gives them.
    pub(crate) fn with_timeout(self, seconds: usize) -> Result<Self> {
        match u32::try_from(seconds) {
            Ok(timeout) if timeout <= MAX_TIMEOUT => Ok(Self { timeout, ..self }),
            _ => Err(EINVAL),
        }
    }

    pub(crate) fn dead_conn_timeout(&self) -> u32 {
        self.dead_conn_timeout
    }

    pub(crate) fn client(&self) -> ClientFlags {
        self.client
    }

    /// `seconds` as `NBD_ATTR_DEAD_CONN_TIMEOUT` gives them.
    pub(crate) fn with_dead_conn_timeout(self, seconds: u64) -> Self {
        Self {
            dead_conn_timeout: u32::try_from(seconds).unwrap_or(u32::MAX),
            ..self
        }
    }

    pub(crate) fn with_client(self, client: ClientFlags) -> Self {
        Self { client, ..self }
    }

    pub(crate) fn with_flags(self, flags: Flags) -> Self {
        Self { flags, ..self }
    }

    fn sectors(&self) -> u64 {
        self.size >> SECTOR_SHIFT
    }

    /// Gives the disk of a session about to begin everything but its size.
    pub(crate) fn prepare<T: DiskOperations>(&self, disk: &GenDisk<T>) -> Result {
        self.apply_timeout(disk);
        disk.set_read_only(self.flags.read_only());
        self.apply_limits(disk)
    }

    /// Gives the disk its limits. Sleeps until no request is in flight, for a second at most;
    /// then it fails with `EBUSY`.
    pub(crate) fn apply_limits<T: DiskOperations>(&self, disk: &GenDisk<T>) -> Result {
        let flags = self.flags;
        let range = |on| if on { MAX_RANGE } else { 0 };
        disk.update_limits(msecs_to_jiffies(FREEZE_MS), |limits| {
            limits
                .block_size(self.block_size)
                .write_cache(flags.flush(), flags.fua())
                .rotational(flags.rotational())
                .max_discard(range(flags.trim()))
                .max_write_zeroes(range(flags.write_zeroes()));
        })
    }

    /// Gives the disk its size and tells user space. Requests may be in flight.
    pub(crate) fn apply_size<T: DiskOperations>(&self, disk: &GenDisk<T>) {
        if crate::partitions() {
            disk.need_partition_scan();
        }
        disk.set_capacity_and_notify(self.sectors());
    }

    pub(crate) fn apply_timeout<T: DiskOperations>(&self, disk: &GenDisk<T>) {
        disk.set_timeout(match self.timeout {
            0 => WARN_INTERVAL,
            seconds => seconds,
        });
    }

    /// Takes from the disk what [`Self::prepare`] gave it. Sleeps until no request is in flight.
    pub(crate) fn reset<T: DiskOperations>(disk: &GenDisk<T>) -> Result {
        Self::default().prepare(disk)
    }
}
