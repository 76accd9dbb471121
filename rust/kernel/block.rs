// SPDX-License-Identifier: GPL-2.0

//! Types for working with the block layer.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

pub(crate) mod mq;

use crate::kernel::bindings as helpers;
use kernel::{bindings, prelude::*};

/// Log2 of the size of a sector, the unit of capacities: 512 bytes.
pub(crate) const SECTOR_SHIFT: u32 = bindings::SECTOR_SHIFT;

/// The longest timeout of requests that the kernel can count, in seconds.
pub(crate) const MAX_TIMEOUT: u32 = u32::MAX / bindings::CONFIG_HZ;

/// `seconds`, up to [`MAX_TIMEOUT`], in jiffies.
pub(crate) const fn timeout_in_jiffies(seconds: u32) -> u32 {
    seconds.saturating_mul(bindings::CONFIG_HZ)
}

/// The result of a block operation, C `blk_status_t`.
///
/// C header: [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlkStatus(u8);

impl BlkStatus {
    /// The operation succeeded.
    pub(crate) const OK: Self = Self(bindings::BLK_STS_OK as u8);
    /// The device does not do this; user space sees `EOPNOTSUPP`.
    pub(crate) const NOTSUPP: Self = Self(helpers::BLK_STS_NOTSUPP);
    /// Any failure without a status of its own; user space sees `EIO`.
    pub(crate) const IOERR: Self = Self(helpers::BLK_STS_IOERR);

    /// The status that user space will see as the errno of `error`, or as `EIO` when there is none.
    pub(crate) fn from_error(error: Error) -> Self {
        // SAFETY: The function only looks its argument up in a constant table.
        Self(unsafe { bindings::errno_to_blk_status(error.to_errno()) })
    }

    /// The C value.
    pub(crate) const fn into_raw(self) -> u8 {
        self.0
    }

    /// From the C value; a value that C does not know is an I/O error to it.
    pub(crate) const fn from_raw(raw: u8) -> Self {
        Self(raw)
    }
}

/// Whether `bytes` can be the logical block size of a disk: a power of two from 512 to the
/// largest that the kernel supports.
pub(crate) fn is_valid_block_size(bytes: usize) -> bool {
    // SAFETY: The function only compares its argument.
    unsafe { helpers::blk_validate_block_size(bytes) == 0 }
}

/// A block major number with a name in `/proc/devices`, given back on drop.
///
/// # Invariants
///
/// `major` is registered under `name` and nobody else unregisters it.
pub(crate) struct Major {
    major: u32,
    name: &'static CStr,
}

impl Major {
    /// Registers `major` as `name`. Sleeps. Fails with `EBUSY` when it is taken, with `EINVAL` when
    /// there is no such number, and with `ENOMEM`.
    pub(crate) fn register(major: u32, name: &'static CStr) -> Result<Self> {
        // To C it means any number.
        if major == 0 {
            return Err(EINVAL);
        }
        // SAFETY: `name` is NUL-terminated and static; no probe function is given.
        let ret = unsafe { bindings::__register_blkdev(major, name.as_char_ptr(), None) };
        kernel::error::to_result(ret)?;
        // INVARIANT: Registered just above.
        Ok(Self { major, name })
    }
}

impl Drop for Major {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the number is registered under this name.
        unsafe { bindings::unregister_blkdev(self.major, self.name.as_char_ptr()) };
    }
}
