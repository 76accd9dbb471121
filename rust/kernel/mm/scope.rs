// SPDX-License-Identifier: GPL-2.0

//! Scopes that restrict what memory allocations may do.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::{
    bindings,
    ffi,
    types::NotThreadSafe, //
};

/// A scope in which allocations of the current task do not reclaim memory and may use the memory
/// reserves. It ends when the value is dropped. Scopes of both kinds must nest.
///
/// Context: process context.
///
/// # Examples
///
/// ```
/// use kernel::mm::NoReclaim;
///
/// let scope = NoReclaim::enter();
/// // Takes memory that is kept for work that frees memory, if there is no other.
/// let buffer = KBox::new([0u8; 64], GFP_KERNEL)?;
/// drop(scope);
/// # drop(buffer);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `flags` is what the entry into the scope has returned in this task.
pub struct NoReclaim {
    flags: ffi::c_uint,
    _not_send: NotThreadSafe,
}

impl NoReclaim {
    /// Enters the scope.
    ///
    /// Context: process context; does not sleep.
    #[inline]
    pub fn enter() -> Self {
        Self {
            // SAFETY: The function has no requirements: it sets a flag of the current task.
            // INVARIANT: The current task enters the scope here, and the value cannot leave it.
            flags: unsafe { bindings::memalloc_noreclaim_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoReclaim {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant these are the flags from the entry into the scope. The
        // value is not `Send`, so that the current task is the one that has entered it.
        unsafe { bindings::memalloc_noreclaim_restore(self.flags) };
    }
}

/// A scope in which allocations of the current task do not wait for block I/O. It ends when the
/// value is dropped. Scopes of both kinds must nest.
///
/// Context: process context.
///
/// # Examples
///
/// ```
/// use kernel::mm::NoIo;
///
/// let scope = NoIo::enter();
/// // Does not wait for block I/O to free memory.
/// let buffer = KBox::new([0u8; 64], GFP_KERNEL)?;
/// drop(scope);
/// # drop(buffer);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `flags` is what the entry into the scope has returned in this task.
pub struct NoIo {
    flags: ffi::c_uint,
    _not_send: NotThreadSafe,
}

impl NoIo {
    /// Enters the scope.
    ///
    /// Context: process context; does not sleep.
    #[inline]
    pub fn enter() -> Self {
        Self {
            // SAFETY: The function has no requirements: it sets a flag of the current task.
            // INVARIANT: The current task enters the scope here, and the value cannot leave it.
            flags: unsafe { bindings::memalloc_noio_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant these are the flags from the entry into the scope. The
        // value is not `Send`, so that the current task is the one that has entered it.
        unsafe { bindings::memalloc_noio_restore(self.flags) };
    }
}
