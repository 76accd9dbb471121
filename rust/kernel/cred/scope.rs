// SPDX-License-Identifier: GPL-2.0

//! Scopes in which the current task has other credentials.
//!
//! C header: [`include/linux/cred.h`](srctree/include/linux/cred.h)

use crate::bindings;

/// Calls `f` with the kernel's credentials, so that security modules do not attribute a driver's
/// work to the user whose task does it. Returns the result of `f`.
///
/// Context: that of `f`, in process context.
///
/// # Examples
///
/// ```
/// use kernel::cred::with_kernel_creds;
///
/// assert_eq!(with_kernel_creds(|| 2 + 3), 5);
/// ```
#[doc(alias = "override_creds")]
#[inline]
pub fn with_kernel_creds<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: The kernel's credentials are static, so that they are valid until they are replaced
    // again.
    let old = unsafe { bindings::override_creds(bindings::kernel_cred()) };
    let ret = f();
    // SAFETY: `old` are the credentials that the current task had before, which `override_creds`
    // has taken no reference from. Whatever `f` has replaced by this function is restored already.
    unsafe { bindings::revert_creds(old) };
    ret
}
