// SPDX-License-Identifier: GPL-2.0

//! Workqueues that a driver allocates.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::{bindings, ffi, prelude::*, workqueue::Queue};
use core::{ops::Deref, ptr::NonNull};

/// A workqueue that is destroyed when it is dropped.
///
/// C struct: `struct workqueue_struct`.
///
/// Context: may sleep, when it is dropped, until all queued work items have run. It must not be
/// dropped by a work item of its own, nor with a lock held that one takes.
///
/// # Invariants
///
/// The queue is valid and owned by the value.
pub struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A workqueue is not bound to a thread, and any thread may destroy it.
unsafe impl Send for OwnedQueue {}
// SAFETY: A shared reference can queue work items and flush the queue, for which the C side takes
// the locks that it needs.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Creates a queue whose work items are not bound to a CPU, and of which `max_active` can run
    /// at a time; 0 stands for the kernel's default.
    ///
    /// Fails with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn new_unbound(name: &'static CStr, max_active: u32) -> Result<Self> {
        Self::new(name, max_active, bindings::wq_flags_WQ_UNBOUND)
    }

    /// Creates a queue like [`Self::new_unbound`] that makes progress when memory is short. Its
    /// work items must not wait for memory that only block I/O can free.
    ///
    /// Fails with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn new_unbound_reclaim(name: &'static CStr, max_active: u32) -> Result<Self> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM;
        Self::new(name, max_active, flags)
    }

    fn new(name: &'static CStr, max_active: u32, flags: u32) -> Result<Self> {
        // SAFETY: The format takes one argument, a NUL-terminated string, and copies it.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                flags,
                max_active as ffi::c_int,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: `alloc_workqueue_noprof` has returned a new queue, which nothing else owns.
        NonNull::new(queue).map(Self).ok_or(ENOMEM)
    }

    /// Waits until all work items that were queued before have run.
    ///
    /// Context: may sleep. It must not be called by a work item of the queue, nor with a lock held
    /// that one takes.
    #[inline]
    pub fn flush(&self) {
        // SAFETY: By the type invariant the queue is valid.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    #[inline]
    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant the queue is valid, and not destroyed while `self` is
        // borrowed.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the queue is valid and owned by the value, which does not
        // use it afterwards. Every other user has borrowed the value.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
