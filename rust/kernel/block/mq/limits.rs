// SPDX-License-Identifier: GPL-2.0

//! Limits of request queues.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use crate::bindings;

/// The longest timeout of requests that the kernel can count, in seconds.
pub const MAX_TIMEOUT: u32 = u32::MAX / bindings::CONFIG_HZ;

/// `seconds`, up to [`MAX_TIMEOUT`], in jiffies.
#[inline]
pub const fn timeout_in_jiffies(seconds: u32) -> u32 {
    seconds.saturating_mul(bindings::CONFIG_HZ)
}

/// Whether `bytes` can be the logical block size of a disk: a power of two from 512 to the
/// largest that the kernel supports.
#[inline]
pub fn is_valid_block_size(bytes: usize) -> bool {
    // SAFETY: The function only compares its argument.
    unsafe { bindings::blk_validate_block_size(bytes) == 0 }
}

/// The limits of a disk's queue that a driver can change while it is in use.
///
/// C struct: `struct queue_limits`.
pub struct Limits(pub(super) bindings::queue_limits);

impl Limits {
    /// Sets or clears a feature bit.
    #[inline]
    fn feature(&mut self, bit: bindings::blk_features_t, on: bool) {
        if on {
            self.0.features |= bit;
        } else {
            self.0.features &= !bit;
        }
    }

    /// The smallest unit of I/O, and the unit that is written atomically, in bytes.
    #[inline]
    pub fn block_size(&mut self, bytes: u32) -> &mut Self {
        self.0.logical_block_size = bytes;
        self.0.physical_block_size = bytes;
        // The block layer would only raise it.
        self.0.io_min = bytes;
        self
    }

    /// Whether the disk has a volatile write cache, and whether it takes FUA writes.
    #[inline]
    pub fn write_cache(&mut self, cache: bool, fua: bool) -> &mut Self {
        self.feature(bindings::BLK_FEAT_WRITE_CACHE, cache);
        self.feature(bindings::BLK_FEAT_FUA, cache && fua);
        self
    }

    /// Whether seeking costs.
    #[inline]
    pub fn rotational(&mut self, on: bool) -> &mut Self {
        self.feature(bindings::BLK_FEAT_ROTATIONAL, on);
        self
    }

    /// The largest discard in bytes, 0 for none.
    #[inline]
    pub fn max_discard(&mut self, bytes: u32) -> &mut Self {
        self.0.max_hw_discard_sectors = bytes >> bindings::SECTOR_SHIFT;
        self
    }

    /// The largest write of zeroes in bytes, 0 for none.
    #[inline]
    pub fn max_write_zeroes(&mut self, bytes: u32) -> &mut Self {
        self.0.max_write_zeroes_sectors = bytes >> bindings::SECTOR_SHIFT;
        self
    }
}
