// SPDX-License-Identifier: GPL-2.0

//! Capabilities.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use crate::bindings;

/// Whether the current task has `CAP_SYS_ADMIN` in the initial user namespace.
#[inline]
pub fn sys_admin() -> bool {
    // SAFETY: Only looks at the current task.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as i32) }
}
