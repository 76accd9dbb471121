// SPDX-License-Identifier: GPL-2.0

//! Results of block operations.
//!
//! C header: [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use crate::{bindings, prelude::*};

/// The result of a block operation, C `blk_status_t`.
///
/// C header: [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BlkStatus(u8);

impl BlkStatus {
    /// The operation succeeded.
    pub const OK: Self = Self(bindings::BLK_STS_OK as u8);
    /// The device does not do this; user space sees `EOPNOTSUPP`.
    pub const NOTSUPP: Self = Self(bindings::BLK_STS_NOTSUPP);
    /// Any failure without a status of its own; user space sees `EIO`.
    pub const IOERR: Self = Self(bindings::BLK_STS_IOERR);

    /// The status that user space will see as the errno of `error`, or as `EIO` when there is none.
    #[inline]
    pub fn from_error(error: Error) -> Self {
        // SAFETY: The function only looks its argument up in a constant table.
        Self(unsafe { bindings::errno_to_blk_status(error.to_errno()) })
    }

    /// The C value.
    #[inline]
    pub const fn into_raw(self) -> u8 {
        self.0
    }

    /// From the C value; a value that C does not know is an I/O error to it.
    #[inline]
    pub const fn from_raw(raw: u8) -> Self {
        Self(raw)
    }
}
