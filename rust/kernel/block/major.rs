// SPDX-License-Identifier: GPL-2.0

//! Major numbers of block devices.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use crate::{bindings, prelude::*};

/// A block major number with a name in `/proc/devices`, given back on drop.
///
/// # Invariants
///
/// `major` is registered under `name` and nobody else unregisters it.
pub struct Major {
    major: u32,
    name: &'static CStr,
}

impl Major {
    /// Registers `major` as `name`. Sleeps. Fails with `EBUSY` when it is taken, with `EINVAL` when
    /// there is no such number, and with `ENOMEM`.
    pub fn register(major: u32, name: &'static CStr) -> Result<Self> {
        // To C it means any number.
        if major == 0 {
            return Err(EINVAL);
        }
        // SAFETY: `name` is NUL-terminated and static; no probe function is given.
        let ret = unsafe { bindings::__register_blkdev(major, name.as_char_ptr(), None) };
        crate::error::to_result(ret)?;
        // INVARIANT: Registered just above.
        Ok(Self { major, name })
    }
}

impl Drop for Major {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the number is registered under this name.
        unsafe { bindings::unregister_blkdev(self.major, self.name.as_char_ptr()) };
    }
}
