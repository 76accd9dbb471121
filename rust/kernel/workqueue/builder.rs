// SPDX-License-Identifier: GPL-2.0

//! Workqueues that a driver allocates.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::Queue;
use crate::{
    alloc::AllocError,
    bindings,
    ffi,
    prelude::*, //
};
use core::{
    ops::Deref,
    ptr::NonNull, //
};

/// What a new workqueue is to be like. [`Queue::new_unbound`] creates the value, and has an
/// example.
///
/// # Invariants
///
/// `flags` has `WQ_UNBOUND`, and none of the flags that this excludes.
pub struct Builder {
    flags: u32,
    max_active: ffi::c_int,
}

impl Queue {
    /// Starts to build a workqueue whose work items may run on any CPU.
    ///
    /// Context: any.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::workqueue::Queue;
    ///
    /// let queue = Queue::new_unbound().mem_reclaim().max_active(2).build(c"example")?;
    /// queue.try_spawn(GFP_KERNEL, || pr_info!("one of two that run at a time\n"))?;
    /// // This waits for the work item.
    /// drop(queue);
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias = "WQ_UNBOUND")]
    #[inline]
    pub fn new_unbound() -> Builder {
        // INVARIANT: There is no flag but `WQ_UNBOUND`.
        Builder {
            flags: bindings::wq_flags_WQ_UNBOUND,
            max_active: 0,
        }
    }
}

impl Builder {
    /// Lets the queue make progress when memory is short, by a thread that is there for that. The
    /// work items must not wait for memory that only block I/O can free.
    ///
    /// Context: any.
    #[doc(alias = "WQ_MEM_RECLAIM")]
    #[inline]
    pub fn mem_reclaim(mut self) -> Self {
        // INVARIANT: `WQ_UNBOUND` does not exclude this flag.
        self.flags |= bindings::wq_flags_WQ_MEM_RECLAIM;
        self
    }

    /// Sets how many work items can run at a time. Without this, or for 0, it is the kernel's
    /// default, and at most it is `WQ_MAX_ACTIVE`.
    ///
    /// Context: any.
    #[inline]
    pub fn max_active(mut self, max_active: u32) -> Self {
        self.max_active = ffi::c_int::try_from(max_active).unwrap_or(ffi::c_int::MAX);
        self
    }

    /// Creates the workqueue.
    ///
    /// Context: may sleep.
    #[doc(alias = "alloc_workqueue")]
    #[inline]
    pub fn build(self, name: &CStr) -> Result<OwnedQueue, AllocError> {
        // SAFETY: The format takes one argument, a NUL-terminated string, and copies it. By the
        // type invariant the flags may be combined.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                self.flags,
                self.max_active,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: `alloc_workqueue_noprof` has returned a new queue, which nothing else owns.
        NonNull::new(queue).map(OwnedQueue).ok_or(AllocError)
    }
}

/// A workqueue that is destroyed when it is dropped. [`Queue::new_unbound`] has an example.
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
