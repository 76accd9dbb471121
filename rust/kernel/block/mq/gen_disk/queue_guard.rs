// SPDX-License-Identifier: GPL-2.0

//! Requests that stay allocated while they are looked up.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    DiskOperations,
    GenDisk, //
};
use crate::{
    bindings,
    block::mq::Request,
    ffi,
    types::NotThreadSafe, //
};
use core::ptr::NonNull;

/// A guard that keeps the queue of a disk from being frozen.
///
/// # Invariants
///
/// The value owns one count of the usage counter of the disk's queue.
pub(super) struct QueueUsage<'a, T: DiskOperations> {
    disk: &'a GenDisk<T>,
}

impl<'a, T: DiskOperations> QueueUsage<'a, T> {
    /// Takes a count; [`None`] if the queue is frozen or dead.
    #[inline]
    pub(super) fn try_get(disk: &'a GenDisk<T>) -> Option<Self> {
        // SAFETY: The queue is valid, since its disk is borrowed.
        let taken = unsafe { bindings::blk_queue_usage_tryget(disk.queue()) };
        // INVARIANT: The value is for the count that was taken just above.
        taken.then(|| Self { disk })
    }
}

impl<T: DiskOperations> Drop for QueueUsage<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The queue is valid, since its disk is borrowed. By the type invariant the value
        // owns a count, which is given back once, here.
        unsafe { bindings::blk_queue_usage_put(self.disk.queue()) };
    }
}

/// A guard that keeps the requests of a disk allocated.
///
/// # Invariants
///
/// The value holds the read side of the SRCU of the disk's tag set, with the index `tags`.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     DiskOperations,
///     GenDisk, //
/// };
///
/// /// The tag may be any number.
/// fn is_in_flight<T: DiskOperations>(disk: &GenDisk<T>, unique_tag: u32) -> bool {
///     disk.hold_requests()
///         .is_some_and(|requests| requests.request(unique_tag).is_some())
/// }
/// ```
pub struct QueueGuard<'a, T: DiskOperations> {
    /// Dropped after the read side has ended.
    usage: QueueUsage<'a, T>,
    tags: ffi::c_int,
    _not_send: NotThreadSafe,
}

impl<'a, T: DiskOperations> QueueGuard<'a, T> {
    /// Holds the requests of `disk`; [`None`] if its queue is frozen or dead.
    pub(super) fn new(disk: &'a GenDisk<T>) -> Option<Self> {
        let usage = QueueUsage::try_get(disk)?;
        // SAFETY: The tag set is allocated, as it is while its disk is borrowed.
        let tags = unsafe { bindings::blk_mq_tags_read_lock(disk.tag_set().as_raw()) };
        // INVARIANT: This function has just taken the lock, whose index is `tags`.
        Some(Self {
            usage,
            tags,
            _not_send: NotThreadSafe,
        })
    }

    /// Returns the request that is started under `unique_tag`, as [`unique_tag`] returns it. Any
    /// value is allowed, since it may come from an untrusted peer; [`None`] if there is no such tag
    /// or no request is started under it. The request may have finished since.
    ///
    /// Context: any.
    ///
    /// [`unique_tag`]: crate::block::mq::StartedRequest::unique_tag
    pub fn request(&self, unique_tag: u32) -> Option<&Request<T::Queue>> {
        let set = self.usage.disk.tag_set().as_raw();
        // SAFETY: The tag set is allocated. Its number of queues and its array of tags change only
        // while its queues are frozen, which the guard's usage count prevents. The index of the
        // hardware queue is checked here, and the tag by `blk_mq_tag_to_rq`.
        let rq = unsafe {
            let hwq = usize::from(bindings::blk_mq_unique_tag_to_hwq(unique_tag));
            if hwq >= (*set).nr_hw_queues as usize {
                return None;
            }
            let tags = *(*set).tags.add(hwq);
            if tags.is_null() {
                return None;
            }
            let tag = bindings::blk_mq_unique_tag_to_tag(unique_tag);
            NonNull::new(bindings::blk_mq_tag_to_rq(tags, tag.into()))?.as_ptr()
        };
        // SAFETY: A request that is found by its tag was allocated by this tag set. Its memory is
        // freed after a grace period of the set's SRCU, whose read side the guard holds, or with
        // the tag set. Other tasks may write the words; volatile reads of words do not tear.
        let (queue, state) = unsafe {
            (
                (&raw const (*rq).q).read_volatile(),
                (&raw const (*rq).state).read_volatile(),
            )
        };
        // An I/O scheduler that is gone leaves requests behind, which are not started, and whose
        // data is dropped. A tag set may have other disks.
        if queue != self.usage.disk.queue() || state == bindings::mq_rq_state_MQ_RQ_IDLE {
            return None;
        }
        // SAFETY: The request was allocated by a tag set of `T::Queue`. The state was read after
        // the guard had taken its usage count, by the full barrier of the SRCU's read side, so that
        // the request was in flight meanwhile. It is freed and its data dropped only after the
        // queue is frozen, and a freeze waits for the guard.
        Some(unsafe { Request::from_raw(rq) })
    }
}

impl<T: DiskOperations> Drop for QueueGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value holds the read side under the index `tags`, which
        // ends once, here.
        unsafe { bindings::blk_mq_tags_read_unlock(self.usage.disk.tag_set().as_raw(), self.tags) };
    }
}
