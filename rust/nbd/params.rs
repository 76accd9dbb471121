// SPDX-License-Identifier: GPL-2.0

//! The parameters of a device, which users set before or while a session runs.

use crate::protocol::{
    ClientFlags,
    Flags, //
};
use kernel::{
    block::{
        mq::{
            is_valid_block_size,
            DiskOperations,
            GenDisk,
            MAX_TIMEOUT, //
        },
        SECTOR_SHIFT, //
    },
    prelude::*,
    time::msecs_to_jiffies, //
};

/// The default block size, in bytes.
const DEFAULT_BLOCK_SIZE: u32 = 1024;

/// The block layer's timeout for a device without a timeout, in seconds. It is the interval of the
/// warnings.
const WARN_INTERVAL: u32 = 30;

/// How long a change of the limits waits for requests in flight, in milliseconds.
const FREEZE_MS: u32 = 1000;

/// The longest discard or write of zeroes, in bytes.
const MAX_RANGE: u32 = u32::MAX;

/// The parameters of a device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Params {
    /// In bytes; at most `i64::MAX`.
    size: u64,
    /// In bytes; valid as a logical block size.
    block_size: u32,
    /// In seconds; 0 means that a slow server is never disconnected.
    timeout: u32,
    flags: Flags,
    /// How long requests wait for a reconnect after the last link has failed, in seconds.
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

    /// Sets the size in bytes. Fails with `EINVAL` above `i64::MAX`.
    pub(crate) fn with_size(self, bytes: u64) -> Result<Self> {
        i64::try_from(bytes).map_err(|_| EINVAL)?;
        Ok(Self {
            size: bytes,
            ..self
        })
    }

    /// Sets the size in blocks of the block size. Fails with `EINVAL` above `i64::MAX` bytes.
    pub(crate) fn with_blocks(self, blocks: u64) -> Result<Self> {
        let bytes = blocks.checked_mul(u64::from(self.block_size));
        self.with_size(bytes.ok_or(EINVAL)?)
    }

    /// Sets the block size in bytes; 0 means the default. Fails with `EINVAL` if it is not
    /// supported.
    pub(crate) fn with_block_size(self, bytes: usize) -> Result<Self> {
        let block_size = match bytes {
            0 => DEFAULT_BLOCK_SIZE,
            _ if is_valid_block_size(bytes) => u32::try_from(bytes).map_err(|_| EINVAL)?,
            _ => return Err(EINVAL),
        };
        Ok(Self { block_size, ..self })
    }

    /// Sets the timeout in seconds. Fails with `EINVAL` if jiffies cannot express it.
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

    /// Sets how long requests wait for a reconnect, in seconds.
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

    /// Returns the parameters that stay after the last opener has closed the device: only whether
    /// the device is to be removed.
    pub(crate) fn after_last_close(self) -> Self {
        Self::default().with_client(self.client.only_destroy())
    }

    fn sectors(&self) -> u64 {
        self.size >> SECTOR_SHIFT
    }

    /// Applies everything but the size to a disk without a session. Context: may sleep.
    pub(crate) fn prepare<T: DiskOperations>(&self, disk: &GenDisk<T>) -> Result {
        self.apply_timeout(disk);
        disk.set_read_only(self.flags.read_only());
        self.apply_limits(disk)
    }

    /// Applies the limits to the disk. Fails with `EBUSY` if requests are in flight for a second.
    /// Context: may sleep.
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

    /// Applies the size to the disk and notifies user space. Requests may be in flight. Context:
    /// may sleep.
    pub(crate) fn apply_size<T: DiskOperations>(&self, disk: &GenDisk<T>) {
        disk.set_capacity_and_notify(self.sectors(), crate::partitions());
    }

    pub(crate) fn apply_timeout<T: DiskOperations>(&self, disk: &GenDisk<T>) {
        disk.set_timeout(match self.timeout {
            0 => WARN_INTERVAL,
            seconds => seconds,
        });
    }

    /// Reverts [`Self::prepare`]. Context: may sleep until no request is in flight.
    pub(crate) fn reset<T: DiskOperations>(disk: &GenDisk<T>) -> Result {
        Self::default().prepare(disk)
    }
}

#[kernel::macros::kunit_tests(nbd_params)]
mod tests {
    use super::*;

    const MAX_SIZE: u64 = i64::MAX as u64;

    /// Everything that can be read from `params`.
    fn view(params: Params) -> (u64, u32, u32, u32, u32, ClientFlags) {
        (
            params.size(),
            params.block_size(),
            params.timeout(),
            params.flags().raw(),
            params.dead_conn_timeout(),
            params.client(),
        )
    }

    #[test]
    fn defaults() {
        let wanted = (0, DEFAULT_BLOCK_SIZE, 0, 0, 0, ClientFlags::default());
        assert!(view(Params::default()) == wanted);
        assert_eq!(Params::default().sectors(), 0);
    }

    #[test]
    fn sizes_up_to_2_to_the_63() {
        for size in [0, 1, 511, 512, 1 << 20, 1 << 40, MAX_SIZE - 1, MAX_SIZE] {
            let params = Params::default().with_size(size);
            assert!(params.is_ok_and(|params| params.size() == size));
        }
        for size in [MAX_SIZE + 1, MAX_SIZE + 512, u64::MAX - 511, u64::MAX] {
            let params = Params::default().with_size(size);
            assert!(params.is_err_and(|error| error == EINVAL));
        }
    }

    #[test]
    fn capacity_is_in_whole_sectors() -> Result {
        for (size, sectors) in [
            (0, 0),
            (511, 0),
            (512, 1),
            (1023, 1),
            (1024, 2),
            (MAX_SIZE, (1 << 54) - 1),
        ] {
            assert_eq!(Params::default().with_size(size)?.sectors(), sectors);
        }
        Ok(())
    }

    #[test]
    fn blocks_times_size_does_not_overflow() -> Result {
        for block_size in [512u64, 1024, 2048, 4096] {
            let params = Params::default().with_block_size(block_size as usize)?;
            let most = MAX_SIZE / block_size;
            for blocks in [0, 1, 3, most - 1, most] {
                assert_eq!(params.with_blocks(blocks)?.size(), blocks * block_size);
            }
            // Above 2^63, above 2^64, and products that would wrap to small numbers.
            for blocks in [
                most + 1,
                2 * most,
                u64::MAX / block_size,
                u64::MAX / block_size + 1,
                u64::MAX / block_size + 2,
                u64::MAX,
            ] {
                assert!(params
                    .with_blocks(blocks)
                    .is_err_and(|error| error == EINVAL));
            }
        }
        Ok(())
    }

    #[test]
    fn block_sizes_are_powers_of_two() -> Result {
        for size in [512, 1024, 2048, 4096] {
            let params = Params::default().with_block_size(size)?;
            assert_eq!(params.block_size() as usize, size);
        }
        let zero = Params::default().with_block_size(4096)?;
        assert_eq!(zero.with_block_size(0)?.block_size(), DEFAULT_BLOCK_SIZE);
        // Some of these have 4096 in the lower half.
        for size in [
            1,
            2,
            256,
            511,
            513,
            768,
            4095,
            4097,
            5000,
            1 << 30,
            1 << 31,
            (1 << 32) + 512,
            (1 << 32) + 4096,
            1 << 63,
            usize::MAX,
        ] {
            let params = Params::default().with_block_size(size);
            assert!(params.is_err_and(|error| error == EINVAL));
        }
        Ok(())
    }

    #[test]
    fn block_size_leaves_the_size() -> Result {
        let params = Params::default().with_blocks(7)?;
        assert_eq!(params.with_block_size(4096)?.size(), 7 * 1024);
        Ok(())
    }

    #[test]
    fn timeouts_that_the_kernel_can_count() -> Result {
        let most = MAX_TIMEOUT as usize;
        for seconds in [0, 1, 30, most - 1, most] {
            let params = Params::default().with_timeout(seconds)?;
            assert_eq!(params.timeout() as usize, seconds);
        }
        for seconds in [
            most + 1,
            u32::MAX as usize,
            1 << 32,
            (1 << 32) + 1,
            1 << 63,
            usize::MAX,
        ] {
            let params = Params::default().with_timeout(seconds);
            assert!(params.is_err_and(|error| error == EINVAL));
        }
        Ok(())
    }

    #[test]
    fn waits_of_136_years_are_for_ever() {
        let most = u64::from(u32::MAX);
        for seconds in [0, 1, 1 << 31, most, most + 1, 1 << 63, u64::MAX] {
            let params = Params::default().with_dead_conn_timeout(seconds);
            assert_eq!(u64::from(params.dead_conn_timeout()), seconds.min(most));
        }
    }

    #[test]
    fn each_changes_nothing_else() -> Result {
        let all = Params::default()
            .with_block_size(4096)?
            .with_size(1 << 30)?
            .with_timeout(5)?
            .with_dead_conn_timeout(6)
            .with_flags(Flags::new(0x17f))
            .with_client(ClientFlags::new(3));
        let client = ClientFlags::new(3);
        assert!(view(all) == (1 << 30, 4096, 5, 0x17f, 6, client));
        assert!(view(all.with_size(1)?) == (1, 4096, 5, 0x17f, 6, client));
        assert!(view(all.with_blocks(1)?) == (4096, 4096, 5, 0x17f, 6, client));
        assert!(view(all.with_block_size(512)?) == (1 << 30, 512, 5, 0x17f, 6, client));
        assert!(view(all.with_timeout(0)?) == (1 << 30, 4096, 0, 0x17f, 6, client));
        assert!(view(all.with_dead_conn_timeout(0)) == (1 << 30, 4096, 5, 0x17f, 0, client));
        assert!(view(all.with_flags(Flags::new(0))) == (1 << 30, 4096, 5, 0, 6, client));
        let none = ClientFlags::default();
        assert!(view(all.with_client(none)) == (1 << 30, 4096, 5, 0x17f, 6, none));
        Ok(())
    }
}
