// SPDX-License-Identifier: GPL-2.0

//! Limits of request queues.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use crate::kernel::bindings as helpers;
use kernel::bindings;

/// The limits of a disk's queue that a driver can change while it is in use.
///
/// C struct: `struct queue_limits`.
pub(crate) struct Limits(pub(super) bindings::queue_limits);

impl Limits {
    /// Sets or clears a feature bit.
    fn feature(&mut self, bit: bindings::blk_features_t, on: bool) {
        if on {
            self.0.features |= bit;
        } else {
            self.0.features &= !bit;
        }
    }

    /// The smallest unit of I/O, and the unit that is written atomically, in bytes.
    pub(crate) fn block_size(&mut self, bytes: u32) -> &mut Self {
        self.0.logical_block_size = bytes;
        self.0.physical_block_size = bytes;
        // The block layer would only raise it.
        self.0.io_min = bytes;
        self
    }

    /// Whether the disk has a volatile write cache, and whether it takes FUA writes.
    pub(crate) fn write_cache(&mut self, cache: bool, fua: bool) -> &mut Self {
        self.feature(helpers::BLK_FEAT_WRITE_CACHE, cache);
        self.feature(helpers::BLK_FEAT_FUA, cache && fua);
        self
    }

    /// Whether seeking costs.
    pub(crate) fn rotational(&mut self, on: bool) -> &mut Self {
        self.feature(bindings::BLK_FEAT_ROTATIONAL, on);
        self
    }

    /// The largest discard in bytes, 0 for none.
    pub(crate) fn max_discard(&mut self, bytes: u32) -> &mut Self {
        self.0.max_hw_discard_sectors = bytes >> bindings::SECTOR_SHIFT;
        self
    }

    /// The largest write of zeroes in bytes, 0 for none.
    pub(crate) fn max_write_zeroes(&mut self, bytes: u32) -> &mut Self {
        self.0.max_write_zeroes_sectors = bytes >> bindings::SECTOR_SHIFT;
        self
    }
}
