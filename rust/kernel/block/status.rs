// SPDX-License-Identifier: GPL-2.0

//! Results of block operations.
//!
//! C header: [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use crate::{
    bindings,
    prelude::*, //
};

/// The result of a block operation.
///
/// C type: `blk_status_t`.
///
/// # Examples
///
/// ```
/// use kernel::block::BlkStatus;
///
/// assert!(BlkStatus::from_error(EIO) == BlkStatus::IOERR);
/// // A number that no status stands for.
/// assert!(BlkStatus::from_error(ENOTTY) == BlkStatus::IOERR);
/// assert!(BlkStatus::from_error(ENOSPC) != BlkStatus::IOERR);
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BlkStatus(u8);

impl BlkStatus {
    /// The operation succeeded.
    pub const OK: Self = Self(bindings::BLK_STS_OK as u8);
    /// The device does not support the operation; user space sees `EOPNOTSUPP`.
    pub const NOTSUPP: Self = Self(bindings::BLK_STS_NOTSUPP);
    /// The operation failed for a reason that has no status of its own; user space sees `EIO`.
    pub const IOERR: Self = Self(bindings::BLK_STS_IOERR);

    /// Returns the status that user space sees as the errno of `error`, or as `EIO` if no status
    /// stands for that errno.
    ///
    /// Context: any.
    #[inline]
    pub fn from_error(error: Error) -> Self {
        // SAFETY: The function has no requirements: it looks its argument up in a constant table.
        Self(unsafe { bindings::errno_to_blk_status(error.to_errno()) })
    }

    /// Returns the value as a `blk_status_t`.
    ///
    /// Context: any.
    #[inline]
    pub const fn into_raw(self) -> u8 {
        self.0
    }

    /// Creates a status from a `blk_status_t`. The block layer takes a value that it does not know
    /// for an I/O error.
    ///
    /// Context: any.
    #[inline]
    pub const fn from_raw(raw: u8) -> Self {
        Self(raw)
    }
}
