// SPDX-License-Identifier: GPL-2.0

//! Disks with requests.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{limits::Limits, operations::Operations, request::Request};
use crate::{
    bindings,
    block::mq::timeout_in_jiffies,
    device::Device,
    error::to_result,
    ffi,
    mm::NoIo,
    module::ModuleMetadata,
    prelude::*,
    sync::{
        aref::AlwaysRefCounted,
        atomic::{Acquire, Atomic, Full},
        Arc, ArcBorrow,
    },
    time::Jiffies,
    types::{NotThreadSafe, Opaque}, //
};
use core::{
    marker::PhantomData,
    ptr::{self, NonNull}, //
};

/// What user space can do to a disk, and what hangs off it.
pub trait DiskOperations: Sized + 'static {
    /// What every callback gets to see.
    type Data: Send + Sync + 'static;

    /// The driver for the disk's requests.
    type Queue: Operations<Disk = Self>;

    /// The module that must stay loaded while the disk is open.
    type OwnerModule: ModuleMetadata;

    /// Somebody opens the disk or a partition of it. May sleep; `disk->open_mutex` is held.
    fn open(disk: &GenDisk<Self>) -> Result;

    /// Somebody who had opened the disk has closed it. May sleep; `disk->open_mutex` is held.
    fn release(disk: &GenDisk<Self>);

    /// The last reference to the disk is gone, and nobody uses its data any more. Does not sleep: any
    /// context may give up the last reference.
    fn free(data: Arc<Self::Data>);

    /// An ioctl that the block layer does not know, from a native or a compat task. May sleep.
    fn ioctl(disk: &GenDisk<Self>, cmd: u32, arg: usize) -> Result<i32>;
}

/// What a disk's `private_data` points to.
pub(super) struct DiskData<T: DiskOperations> {
    pub(super) tag_set: Opaque<bindings::blk_mq_tag_set>,
    pub(super) data: Arc<T::Data>,
    pub(super) queue_data: QueueDataSlot<QueueData<T>>,
}

type QueueData<T> = <<T as DiskOperations>::Queue as Operations>::QueueData;

/// A place for what the queue functions of a disk get to see.
///
/// # Invariants
///
/// The pointer is null, or from [`Arc::into_raw`], of a reference that the value owns.
pub(super) struct QueueDataSlot<Q>(Atomic<*mut Q>);

impl<Q> QueueDataSlot<Q> {
    pub(super) fn new() -> Self {
        // INVARIANT: The pointer is null.
        Self(Atomic::new(ptr::null_mut()))
    }

    /// # Safety
    ///
    /// What is taken out of the slot meanwhile must stay referenced for `'a`.
    #[inline]
    unsafe fn get<'a>(&self) -> Option<ArcBorrow<'a, Q>> {
        let data = self.0.load(Acquire);
        // SAFETY: By the type invariant the pointer is from `Arc::into_raw`, and by the caller's
        // promise there is a reference for `'a`.
        (!data.is_null()).then(|| unsafe { ArcBorrow::from_raw(data) })
    }

    fn set(&self, data: Arc<Q>) -> Result<(), Arc<Q>> {
        let new = Arc::into_raw(data).cast_mut();
        // INVARIANT: The slot owns the reference now.
        match self.0.cmpxchg(ptr::null_mut(), new, Full) {
            Ok(_) => Ok(()),
            // SAFETY: The pointer is from just above, and was not stored.
            Err(_) => Err(unsafe { Arc::from_raw(new) }),
        }
    }

    fn take(&self) -> Option<Arc<Q>> {
        // INVARIANT: The pointer is null, and the reference is the caller's.
        let data = self.0.xchg(ptr::null_mut(), Full);
        // SAFETY: By the type invariant.
        (!data.is_null()).then(|| unsafe { Arc::from_raw(data) })
    }
}

impl<Q> Drop for QueueDataSlot<Q> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// A disk of `T`: a `struct gendisk` with its request queue. Giving up the last reference sleeps.
///
/// # Invariants
///
/// The disk was made by [`DiskBuilder::build`](super::DiskBuilder::build) for `T`, so that
/// `private_data` points to a live `DiskData<T>` until the last reference is gone, and its tag set
/// serves this queue alone.
#[repr(transparent)]
pub struct GenDisk<T: DiskOperations>(Opaque<bindings::gendisk>, PhantomData<T>);

// SAFETY: A disk may be used and released from any thread; the data is `Send` and `Sync`.
unsafe impl<T: DiskOperations> Send for GenDisk<T> {}
// SAFETY: As above.
unsafe impl<T: DiskOperations> Sync for GenDisk<T> {}

// SAFETY: The reference count is that of the device embedded in the disk.
unsafe impl<T: DiskOperations> AlwaysRefCounted for GenDisk<T> {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: A reference to the disk exists, so its device's count is not zero.
        unsafe { bindings::get_device(bindings::disk_to_dev(self.as_raw())) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller hands over one count.
        unsafe { bindings::put_disk(obj.as_ptr().cast()) };
    }
}

impl<T: DiskOperations> GenDisk<T> {
    /// # Safety
    ///
    /// `disk` must satisfy the invariants of [`GenDisk`] and stay referenced for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(disk: *mut bindings::gendisk) -> &'a Self {
        // SAFETY: The type is transparent and the caller promises the rest.
        unsafe { &*disk.cast() }
    }

    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::gendisk {
        self.0.get()
    }

    #[inline]
    fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: A disk has a queue from birth to death.
        unsafe { (*self.as_raw()).queue }
    }

    #[inline]
    fn private(&self) -> &DiskData<T> {
        // SAFETY: By the type invariant.
        unsafe { &*(*self.as_raw()).private_data.cast() }
    }

    #[inline]
    fn tag_set(&self) -> *mut bindings::blk_mq_tag_set {
        self.private().tag_set.get()
    }

    /// What the driver hung off the disk.
    #[inline]
    pub fn data(&self) -> ArcBorrow<'_, T::Data> {
        self.private().data.as_arc_borrow()
    }

    /// The device, for messages.
    #[inline]
    pub fn device(&self) -> &Device {
        // SAFETY: The device is embedded in the disk, which is borrowed.
        unsafe { Device::from_raw(bindings::disk_to_dev(self.as_raw())) }
    }

    /// Sets the size in sectors. Does not sleep.
    #[inline]
    pub fn set_capacity(&self, sectors: u64) {
        // SAFETY: The disk is valid.
        unsafe { bindings::set_capacity(self.as_raw(), sectors) };
    }

    /// Sets the size in sectors, and tells user space in any case: `RESIZE=1` if an old size
    /// changed, a plain `change` uevent otherwise. With `scan`, partitions are looked for at the
    /// next open. Sleeps.
    pub fn set_capacity_and_notify(&self, sectors: u64, scan: bool) {
        // SAFETY: The disk is valid.
        if unsafe { bindings::get_capacity(self.as_raw()) } == 0 {
            // First, for who opens the disk before it has a size looks in vain; and with nothing in
            // between that takes time, for who opens it then need not look twice.
            self.set_capacity(sectors);
        }
        if scan {
            self.need_partition_scan();
        }
        // SAFETY: The disk is valid and was added.
        if !unsafe { bindings::set_capacity_and_notify(self.as_raw(), sectors) } {
            self.notify_change();
        }
    }

    /// Sends a `change` uevent. Sleeps.
    #[inline]
    pub fn notify_change(&self) {
        // SAFETY: The device is valid and was added.
        unsafe {
            bindings::kobject_uevent(
                &raw mut (*bindings::disk_to_dev(self.as_raw())).kobj,
                bindings::kobject_action_KOBJ_CHANGE,
            )
        };
    }

    /// Has partitions looked for at the next open. Does not sleep.
    #[inline]
    pub fn need_partition_scan(&self) {
        // SAFETY: The disk is valid.
        unsafe { bindings::disk_set_need_part_scan(self.as_raw()) };
    }

    /// Sets whether the disk is read-only. Sleeps.
    #[inline]
    pub fn set_read_only(&self, read_only: bool) {
        // SAFETY: The disk is valid.
        unsafe { bindings::set_disk_ro(self.as_raw(), read_only) };
    }

    /// Takes back the read-only policy that a user has set with `BLKROSET`. Does not sleep.
    #[inline]
    pub fn clear_user_read_only(&self) {
        // SAFETY: The disk is valid, and has a block device for the whole of it.
        unsafe { bindings::bdev_clear_read_only((*self.as_raw()).part0) };
    }

    /// How many partitions somebody has open. It does not change while the caller, or nobody, is
    /// the only one who has the disk open; otherwise it may do so at any time. Does not sleep.
    #[inline]
    pub fn open_partitions(&self) -> u32 {
        // SAFETY: The disk is valid; C writes the word under `open_mutex`.
        unsafe { (&raw const (*self.as_raw()).open_partitions).read_volatile() }
    }

    /// Drops what is cached of the disk and sets its size to 0. What was not written yet is handed
    /// to the driver first, and dropped even if that fails. What is cached of a partition stays for
    /// as long as somebody has that open. Sleeps.
    #[inline]
    pub fn invalidate(&self) {
        // SAFETY: The disk is valid, and has a block device for the whole of it.
        unsafe {
            bindings::sync_blockdev((*self.as_raw()).part0);
            bindings::invalidate_disk(self.as_raw());
        }
    }

    /// Tells users of the disk that its medium is gone: a file system on it shuts down, and what is
    /// cached and not in use is dropped. Sleeps.
    #[inline]
    pub fn force_media_change(&self) {
        // SAFETY: The disk is valid.
        unsafe { bindings::disk_force_media_change(self.as_raw()) };
    }

    /// Changes the queue's limits by `f`, with no request in flight meanwhile. Sleeps until that is
    /// so, but no longer than `patience` jiffies.
    ///
    /// `f` runs under the limits' lock: it must not call this. Fails with `EINVAL` if the result is
    /// no good, and with `EBUSY` if requests are still in flight after that time; then it changes
    /// nothing.
    pub fn update_limits(&self, patience: Jiffies, f: impl FnOnce(&mut Limits)) -> Result {
        let _noio = NoIo::enter();
        // SAFETY: The queue is valid. The lock that this takes is released by the commit or by
        // cancelling.
        let mut limits = Limits(unsafe { bindings::queue_limits_start_update(self.queue()) });
        // A disk without sectors and cache has no requests, unless somebody has a partition open:
        // spare it the freeze.
        // SAFETY: The disk is valid.
        let idle = unsafe { bindings::get_capacity(self.as_raw()) } == 0
            && self.open_partitions() == 0
            && limits.0.features & bindings::BLK_FEAT_WRITE_CACHE == 0;
        f(&mut limits);
        if idle {
            // SAFETY: The lock taken above is held.
            return to_result(unsafe {
                bindings::queue_limits_commit_update(self.queue(), &mut limits.0)
            });
        }
        // SAFETY: The queue is valid, the lock taken above is held and released once, and the queue
        // is unfrozen as often as it is frozen.
        unsafe {
            bindings::blk_freeze_queue_start(self.queue());
            let frozen = bindings::blk_mq_freeze_queue_wait_timeout(self.queue(), patience) > 0;
            let result = if frozen {
                to_result(bindings::queue_limits_commit_update(
                    self.queue(),
                    &mut limits.0,
                ))
            } else {
                bindings::queue_limits_cancel_update(self.queue());
                Err(EBUSY)
            };
            bindings::blk_mq_unfreeze_queue_nomemrestore(self.queue());
            result
        }
    }

    /// Sets the time after which [`Operations::timeout`] is called, in seconds. Does not sleep.
    #[inline]
    pub fn set_timeout(&self, seconds: u32) {
        // SAFETY: The queue is valid.
        unsafe { bindings::blk_queue_rq_timeout(self.queue(), timeout_in_jiffies(seconds)) };
    }

    /// Asks for `nr` hardware queues, 1 at least, and returns how many there are then: no more than
    /// CPUs. Sleeps, until no request is in flight: not with a lock held that a request needs.
    #[inline]
    pub fn set_hw_queues(&self, nr: u32) -> u32 {
        if let Ok(nr) = ffi::c_int::try_from(nr) {
            // SAFETY: The tag set is valid by the type invariant.
            unsafe { bindings::blk_mq_update_nr_hw_queues(self.tag_set(), nr) };
        }
        // SAFETY: As above. Another call may change the number meanwhile.
        unsafe { (&raw const (*self.tag_set()).nr_hw_queues).read_volatile() }
    }

    /// What the queue functions get to see, if there is anything.
    ///
    /// # Safety
    ///
    /// Only for [`Operations::queue_rq`] and [`Operations::commit_rqs`], for as long as they run.
    #[inline]
    pub(super) unsafe fn queue_data(&self) -> Option<ArcBorrow<'_, QueueData<T>>> {
        // SAFETY: A queue function runs, and `take_queue_data` keeps what it has taken until all that
        // have begun before that have returned.
        unsafe { self.private().queue_data.get() }
    }

    /// Has queue functions get to see `data` from now on. Hands it back if they have other data
    /// already. Does not sleep.
    pub fn set_queue_data(&self, data: Arc<QueueData<T>>) -> Result<(), Arc<QueueData<T>>> {
        self.private().queue_data.set(data)
    }

    /// Takes what the queue functions get to see away, and calls `f` while none runs and none is
    /// started. Returns what was taken. Sleeps; not from [`Operations::queue_rq`] or
    /// [`Operations::commit_rqs`], for which it waits.
    pub fn take_queue_data(&self, f: impl FnOnce()) -> Option<Arc<QueueData<T>>> {
        let data = self.private().queue_data.take();
        // SAFETY: The queue is valid. Queue functions run under the read side of the SRCU that this
        // waits for, so that none that has seen `data` runs afterwards.
        unsafe { bindings::blk_mq_quiesce_queue(self.queue()) };
        f();
        // SAFETY: Pairs with the call above.
        unsafe { bindings::blk_mq_unquiesce_queue(self.queue()) };
        data
    }

    /// Calls `f` with each request that is started. Requests that start or finish meanwhile may
    /// or may not be seen. `f` may sleep.
    pub fn for_each_started<F: Fn(&Request<T::Queue>)>(&self, f: F) {
        /// # Safety
        ///
        /// `data` must point to an `F`, and `rq` be a request of a disk of `T`.
        unsafe extern "C" fn call<T: DiskOperations, F: Fn(&Request<T::Queue>)>(
            rq: *mut bindings::request,
            data: *mut ffi::c_void,
        ) -> bool {
            // SAFETY: By the caller's promise; blk-mq holds a reference to the request.
            unsafe { (*data.cast::<F>())(Request::from_raw(rq)) };
            true
        }
        // SAFETY: The queue is valid.
        if !unsafe { bindings::blk_queue_usage_tryget(self.queue()) } {
            // It is frozen: nothing is in flight.
            return;
        }
        // SAFETY: The tag set is valid by the type invariant. Its arrays are replaced only while
        // the queue is frozen, which the usage count prevents. `f` lives across the call.
        unsafe {
            bindings::blk_mq_tagset_busy_iter(
                self.tag_set(),
                Some(call::<T, F>),
                ptr::from_ref(&f).cast_mut().cast(),
            );
            bindings::blk_queue_usage_put(self.queue());
        }
    }

    /// Has requests that [`OwnedRequest::requeue_later`] handed back come again. Does not sleep.
    ///
    /// [`OwnedRequest::requeue_later`]: super::OwnedRequest::requeue_later
    #[inline]
    pub fn kick_requeued(&self) {
        // SAFETY: The queue is valid.
        unsafe { bindings::blk_mq_kick_requeue_list(self.queue()) };
    }

    /// Waits until no request is left anywhere in the queue. Sleeps. For a driver that fails
    /// whatever it is handed, so that the wait is bounded. Not with a lock held that a request
    /// needs.
    #[inline]
    pub fn drain(&self) {
        let _noio = NoIo::enter();
        // SAFETY: The queue is valid, and unfrozen again just below.
        unsafe {
            bindings::blk_mq_freeze_queue_nomemsave(self.queue());
            bindings::blk_mq_unfreeze_queue_nomemrestore(self.queue());
        }
    }

    /// Keeps requests from being freed, to look one up by its tag. `None` when the queue is frozen
    /// or dead, so that no request can be in flight. Does not sleep. To be held for a short time
    /// only.
    pub fn hold_requests(&self) -> Option<QueueGuard<'_, T>> {
        // SAFETY: The queue is valid.
        if !unsafe { bindings::blk_queue_usage_tryget(self.queue()) } {
            return None;
        }
        // SAFETY: The tag set is valid by the type invariant.
        let tags = unsafe { bindings::blk_mq_tags_read_lock(self.tag_set()) };
        // INVARIANT: The count and the lock were taken just above.
        Some(QueueGuard {
            disk: self,
            tags,
            _not_send: NotThreadSafe,
        })
    }
}

/// Keeps the requests of a disk allocated.
///
/// # Invariants
///
/// Holds one count of the queue's usage counter, and the read side of the tag set's SRCU.
pub struct QueueGuard<'a, T: DiskOperations> {
    disk: &'a GenDisk<T>,
    tags: ffi::c_int,
    _not_send: NotThreadSafe,
}

impl<T: DiskOperations> QueueGuard<'_, T> {
    /// The request last started under a tag that [`unique_tag`] gave, or might have given: any
    /// value may be asked for. Does not sleep.
    ///
    /// [`unique_tag`]: super::StartedRequest::unique_tag
    pub fn request(&self, unique_tag: u32) -> Option<&Request<T::Queue>> {
        let set = self.disk.tag_set();
        // SAFETY: The array of tags changes only while its queues are frozen, which the usage count
        // prevents. `blk_mq_tag_to_rq` checks the tag itself. A request that an I/O scheduler had
        // allocated is freed after the readers of the set's SRCU only, of whom we are one.
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
            bindings::blk_mq_tag_to_rq(tags, tag.into())
        };
        // SAFETY: A request found by its tag belongs to the tag set, and stays allocated as above.
        NonNull::new(rq).map(|rq| unsafe { Request::from_raw(rq.as_ptr()) })
    }
}

impl<T: DiskOperations> Drop for QueueGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant there are a lock and a count to give back.
        unsafe {
            bindings::blk_mq_tags_read_unlock(self.disk.tag_set(), self.tags);
            bindings::blk_queue_usage_put(self.disk.queue());
        }
    }
}
