// SPDX-License-Identifier: GPL-2.0

//! Credentials.
//!
//! C header: [`include/linux/cred.h`](srctree/include/linux/cred.h)

use crate::kernel::bindings as helpers;
use kernel::{bindings, types::NotThreadSafe};

/// Runs what follows under the kernel's credentials, until dropped: what is done for a user's I/O
/// is not done in the user's name.
///
/// # Invariants
///
/// `old` are the credentials of the current task before.
pub(crate) struct KernelCreds {
    old: *const bindings::cred,
    _not_send: NotThreadSafe,
}

impl KernelCreds {
    /// Enters the scope.
    pub(crate) fn enter() -> Self {
        Self {
            // SAFETY: The kernel's credentials live for ever.
            // INVARIANT: These are the old credentials.
            old: unsafe { helpers::override_creds(helpers::kernel_cred()) },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for KernelCreds {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, on the same task.
        unsafe { helpers::revert_creds(self.old) };
    }
}
