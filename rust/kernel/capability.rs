// SPDX-License-Identifier: GPL-2.0

//! Capabilities.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use crate::bindings;

/// Returns whether the current task has `CAP_SYS_ADMIN` in the initial user namespace.
///
/// Context: process context; does not sleep.
///
/// # Examples
///
/// ```
/// use kernel::capability;
///
/// // Kernel threads have all capabilities.
/// assert!(capability::sys_admin());
/// ```
#[doc(alias = "capable")]
#[inline]
pub fn sys_admin() -> bool {
    // SAFETY: The capability is a valid one. The function uses the current task only, and sets a
    // flag of it.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as i32) }
}
