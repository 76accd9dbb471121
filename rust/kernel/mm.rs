// SPDX-License-Identifier: GPL-2.0

//! Scopes that restrict what memory allocations may do.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::kernel::bindings as helpers;
use kernel::{ffi, types::NotThreadSafe};

/// Allocations of the current task do not reclaim memory, and may use the reserves, until dropped.
/// Such scopes must nest.
///
/// # Invariants
///
/// `flags` is what the scope's entry returned on this task.
pub(crate) struct NoReclaim {
    flags: ffi::c_uint,
    _not_send: NotThreadSafe,
}

impl NoReclaim {
    /// Enters the scope.
    pub(crate) fn enter() -> Self {
        Self {
            // SAFETY: Only changes flags of the current task.
            flags: unsafe { helpers::memalloc_noreclaim_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoReclaim {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { helpers::memalloc_noreclaim_restore(self.flags) };
    }
}

/// Allocations of the current task do not wait for block I/O, until dropped. Such scopes must nest.
///
/// # Invariants
///
/// `flags` is what the scope's entry returned on this task.
pub(crate) struct NoIo {
    flags: ffi::c_uint,
    _not_send: NotThreadSafe,
}

impl NoIo {
    /// Enters the scope.
    pub(crate) fn enter() -> Self {
        Self {
            // SAFETY: Only changes flags of the current task.
            flags: unsafe { helpers::memalloc_noio_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { helpers::memalloc_noio_restore(self.flags) };
    }
}
