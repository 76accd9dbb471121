// SPDX-License-Identifier: GPL-2.0

//! Major numbers of block devices.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use crate::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// A block major number that is registered under a name in `/proc/devices`. Dropping the value
/// unregisters it.
///
/// Context: may sleep, when it is dropped, too.
///
/// # Invariants
///
/// `major` is registered under `name`, and nothing but the drop of this value unregisters it.
///
/// # Examples
///
/// ```
/// use kernel::block::Major;
///
/// // 240 to 254 are for local and experimental use.
/// if let Ok(major) = Major::register(240, c"example") {
///     assert_eq!(Major::register(240, c"example").err(), Some(EBUSY));
///     drop(major);
/// }
/// assert_eq!(Major::register(0, c"example").err(), Some(EINVAL));
/// ```
pub struct Major {
    major: u32,
    name: &'static CStr,
}

impl Major {
    /// Registers `major` as `name`.
    ///
    /// Fails with `EBUSY` if the number is registered already, with `EINVAL` if it is 0 or greater
    /// than the kernel's maximum, and with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn register(major: u32, name: &'static CStr) -> Result<Self> {
        // `__register_blkdev` takes 0 as a request for any free number, which it returns as a
        // positive value.
        if major == 0 {
            return Err(EINVAL);
        }
        // SAFETY: `name` is NUL-terminated and lives during the call, which copies it. The probe
        // function may be null.
        let ret = unsafe { bindings::__register_blkdev(major, name.as_char_ptr(), None) };
        to_result(ret)?;
        // INVARIANT: The call above has registered the number under this name.
        Ok(Self { major, name })
    }
}

impl Drop for Major {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the number is registered under this name, which is
        // NUL-terminated.
        unsafe { bindings::unregister_blkdev(self.major, self.name.as_char_ptr()) };
    }
}
