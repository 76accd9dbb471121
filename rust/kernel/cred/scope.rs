// SPDX-License-Identifier: GPL-2.0

//! Credentials.
//!
//! C header: [`include/linux/cred.h`](srctree/include/linux/cred.h)

use crate::bindings;

/// Calls `f` with the kernel's credentials: what is done for a user's I/O is not done in the user's
/// name. Sleeps only if `f` does.
#[inline]
pub fn with_kernel_creds<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: The kernel's credentials live for ever.
    let old = unsafe { bindings::override_creds(bindings::kernel_cred()) };
    let ret = f();
    // SAFETY: `old` are the credentials that the current task had before; whatever `f` has put in
    // their place by this function is undone.
    unsafe { bindings::revert_creds(old) };
    ret
}
