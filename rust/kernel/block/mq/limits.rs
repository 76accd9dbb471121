// SPDX-License-Identifier: GPL-2.0

//! Limits of request queues.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use crate::bindings;

/// The longest timeout of requests that the block layer can count, in seconds.
pub const MAX_TIMEOUT: u32 = u32::MAX / bindings::CONFIG_HZ;

/// Converts a timeout from seconds to jiffies. A timeout beyond [`MAX_TIMEOUT`] becomes the longest
/// one.
///
/// Context: any.
#[inline]
pub const fn timeout_in_jiffies(seconds: u32) -> u32 {
    seconds.saturating_mul(bindings::CONFIG_HZ)
}

/// Returns whether `bytes` can be the logical block size of a disk: a power of two from 512 up to
/// the largest size that the kernel supports.
///
/// Context: any.
#[inline]
pub fn is_valid_block_size(bytes: usize) -> bool {
    // SAFETY: The function has no requirements: it only compares its argument.
    unsafe { bindings::blk_validate_block_size(bytes) == 0 }
}

/// The limits of a disk's queue that a driver can change while the disk is in use.
///
/// C struct: `struct queue_limits`.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::{
///         DiskOperations,
///         GenDisk, //
///     },
///     time::msecs_to_jiffies, //
/// };
///
/// fn set_cache<T: DiskOperations>(disk: &GenDisk<T>, cache: bool) -> Result {
///     disk.update_limits(msecs_to_jiffies(1000), |limits| {
///         limits.block_size(4096).write_cache(cache, false);
///     })
/// }
/// ```
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

    /// Sets the logical and the physical block size and the minimum I/O size, in bytes.
    /// [`GenDisk::update_limits`](super::GenDisk::update_limits) checks them.
    ///
    /// Context: any.
    #[inline]
    pub fn block_size(&mut self, bytes: u32) -> &mut Self {
        self.0.logical_block_size = bytes;
        self.0.physical_block_size = bytes;
        // The block layer raises the minimum I/O size to the block size, but does not lower it.
        self.0.io_min = bytes;
        self
    }

    /// Sets whether the disk has a volatile write cache, and whether it supports FUA writes.
    /// Without a cache there is no FUA.
    ///
    /// Context: any.
    #[inline]
    pub fn write_cache(&mut self, cache: bool, fua: bool) -> &mut Self {
        self.feature(bindings::BLK_FEAT_WRITE_CACHE, cache);
        self.feature(bindings::BLK_FEAT_FUA, cache && fua);
        self
    }

    /// Sets whether the disk is rotational.
    ///
    /// Context: any.
    #[inline]
    pub fn rotational(&mut self, on: bool) -> &mut Self {
        self.feature(bindings::BLK_FEAT_ROTATIONAL, on);
        self
    }

    /// Sets the length of the largest discard, in bytes. 0 means that the disk does not support it.
    ///
    /// Context: any.
    #[inline]
    pub fn max_discard(&mut self, bytes: u32) -> &mut Self {
        self.0.max_hw_discard_sectors = bytes >> bindings::SECTOR_SHIFT;
        self
    }

    /// Sets the length of the largest write of zeroes, in bytes. 0 means that the disk does not
    /// support it.
    ///
    /// Context: any.
    #[inline]
    pub fn max_write_zeroes(&mut self, bytes: u32) -> &mut Self {
        self.0.max_write_zeroes_sectors = bytes >> bindings::SECTOR_SHIFT;
        self
    }
}
