// SPDX-License-Identifier: GPL-2.0

//! Workqueues of a driver's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::{bindings, ffi, prelude::*, workqueue::Queue};
use core::{ops::Deref, ptr::NonNull};

/// A workqueue that is destroyed when dropped, which sleeps until all that was queued has run: not
/// from one of its own work items.
///
/// # Invariants
///
/// The queue is valid and owned by the value.
pub struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A workqueue may be used from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// A queue not bound to a CPU, for up to `max_active` items at a time; 0 means the kernel's
    /// default. Sleeps. Fails with `ENOMEM`.
    pub fn new_unbound(name: &'static CStr, max_active: u32) -> Result<Self> {
        Self::new(name, max_active, bindings::wq_flags_WQ_UNBOUND)
    }

    /// As [`Self::new_unbound`], but makes progress when memory is short: so its items must not
    /// wait for memory that only block I/O can free. Sleeps. Fails with `ENOMEM`.
    pub fn new_unbound_reclaim(name: &'static CStr, max_active: u32) -> Result<Self> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM;
        Self::new(name, max_active, flags)
    }

    fn new(name: &'static CStr, max_active: u32, flags: u32) -> Result<Self> {
        // SAFETY: The format takes one string.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                flags,
                max_active as ffi::c_int,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: The queue is new.
        NonNull::new(queue).map(Self).ok_or(ENOMEM)
    }

    /// Waits until all that was queued before has run. Sleeps. Must not be called by one of the
    /// queue's own work items.
    #[inline]
    pub fn flush(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    #[inline]
    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant the queue is valid for as long as the value.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
