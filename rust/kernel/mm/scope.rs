// SPDX-License-Identifier: GPL-2.0

//! Scopes that restrict what memory allocations may do.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::{bindings, ffi, types::NotThreadSafe};

/// Allocations of the current task do not reclaim memory, and may use the reserves, until dropped.
/// Such scopes must nest.
///
/// # Invariants
///
/// `flags` is what the scope's entry returned on this task.
pub struct NoReclaim {
    flags: ffi::c_uint,
    _not_send: NotThreadSafe,
}

impl NoReclaim {
    /// Enters the scope.
    #[inline]
    pub fn enter() -> Self {
        Self {
            // SAFETY: Only changes flags of the current task.
            flags: unsafe { bindings::memalloc_noreclaim_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoReclaim {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::memalloc_noreclaim_restore(self.flags) };
    }
}

/// Allocations of the current task do not wait for block I/O, until dropped. Such scopes must nest.
///
/// # Invariants
///
/// `flags` is what the scope's entry returned on this task.
pub struct NoIo {
    flags: ffi::c_uint,
    _not_send: NotThreadSafe,
}

impl NoIo {
    /// Enters the scope.
    #[inline]
    pub fn enter() -> Self {
        Self {
            // SAFETY: Only changes flags of the current task.
            flags: unsafe { bindings::memalloc_noio_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::memalloc_noio_restore(self.flags) };
    }
}
