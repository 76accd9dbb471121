// SPDX-License-Identifier: GPL-2.0

//! Disks whose requests blk-mq dispatches.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    limits::{
        timeout_in_jiffies,
        Limits, //
    },
    operations::Operations,
    request::Request,
    tag_set::TagSet, //
};
use crate::{
    bindings,
    device::Device,
    error::to_result,
    ffi,
    mm::NoIo,
    prelude::*,
    sync::{
        aref::AlwaysRefCounted,
        Arc,
        ArcBorrow, //
    },
    time::Jiffies,
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    }, //
};

mod builder;
mod operations;
mod queue_data;
mod queue_guard;

use queue_data::QueueDataSlot;
use queue_guard::QueueUsage;

pub use builder::{
    GenDiskBuilder,
    RegisteredDisk, //
};
pub use operations::DiskOperations;
pub use queue_guard::QueueGuard;

/// The data that a disk's `private_data` points to.
struct DiskData<T: DiskOperations> {
    tag_set: Arc<TagSet<T::Queue>>,
    data: Arc<T::Data>,
    queue_data: QueueDataSlot<QueueData<T>>,
}

impl<T: DiskOperations> DiskData<T> {
    #[inline]
    fn new(tag_set: Arc<TagSet<T::Queue>>, data: Arc<T::Data>) -> Self {
        Self {
            tag_set,
            data,
            queue_data: QueueDataSlot::new(),
        }
    }

    /// Drops all but the driver's data, which it returns.
    #[inline]
    fn into_data(self) -> Arc<T::Data> {
        self.data
    }
}

type QueueData<T> = <<T as DiskOperations>::Queue as Operations>::QueueData;

/// A disk of `T`, with its request queue.
///
/// C struct: `struct gendisk`.
///
/// Context: any. Only the drop of the last reference may sleep.
///
/// # Invariants
///
/// The disk was made by [`GenDiskBuilder::build`] for `T`, so that its `private_data` points to a
/// live `DiskData<T>` until the last reference is gone, and its queue has the tag set that this
/// keeps.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::{
///         DiskOperations,
///         GenDisk, //
///     },
///     sync::Arc, //
/// };
///
/// /// Replaces the data that the queue functions get, and has failed requests dispatched again.
/// fn replace<T: DiskOperations<Queue = Q>, Q: kernel::block::mq::Operations>(
///     disk: &GenDisk<T>,
///     data: Arc<Q::QueueData>,
/// ) -> Result {
///     let old = disk.take_queue_data(|| {});
///     disk.set_queue_data(data).map_err(|_| EBUSY)?;
///     disk.kick_requeued();
///     drop(old);
///     Ok(())
/// }
/// ```
#[repr(transparent)]
pub struct GenDisk<T: DiskOperations>(Opaque<bindings::gendisk>, PhantomData<T>);

// SAFETY: Any thread may drop a reference to a disk, since any may call `put_disk`. The data of the
// disk is `Send` and `Sync`, so that `T::free` may run in the thread that drops the last reference.
unsafe impl<T: DiskOperations> Send for GenDisk<T> {}
// SAFETY: The methods of a shared disk call functions of the block layer that take the locks they
// need, or read single words. The data of the disk is `Send` and `Sync`.
unsafe impl<T: DiskOperations> Sync for GenDisk<T> {}

// SAFETY: The reference count is that of the device embedded in the disk, and the disk is not freed
// before that is 0.
unsafe impl<T: DiskOperations> AlwaysRefCounted for GenDisk<T> {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: `self` is a reference to the disk, so that the device in it is valid and its
        // count is not 0.
        unsafe { bindings::get_device(bindings::disk_to_dev(self.as_raw())) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: By the safety requirements of `dec_ref` the caller passes on one count, and
        // `GenDisk` is transparent over the `struct gendisk`.
        unsafe { bindings::put_disk(obj.as_ptr().cast()) };
    }
}

impl<T: DiskOperations> GenDisk<T> {
    /// # Safety
    ///
    /// `disk` must point to a disk that satisfies the invariants of [`GenDisk`] and stays
    /// referenced for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(disk: *mut bindings::gendisk) -> &'a Self {
        // SAFETY: The type is transparent over an `Opaque`. By the safety requirements the disk is
        // valid for `'a` and satisfies the invariants.
        unsafe { &*disk.cast() }
    }

    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::gendisk {
        self.0.get()
    }

    #[inline]
    fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: The disk is valid. Its queue is set before `build` makes a `GenDisk` of it, and
        // is not changed.
        unsafe { (*self.as_raw()).queue }
    }

    #[inline]
    fn private(&self) -> &DiskData<T> {
        // SAFETY: By the type invariant `private_data` points to a `DiskData<T>` for as long as
        // there is a reference to the disk, which is borrowed.
        unsafe { &*(*self.as_raw()).private_data.cast() }
    }

    /// Returns the disk's tag set.
    ///
    /// Context: any.
    #[inline]
    pub fn tag_set(&self) -> &TagSet<T::Queue> {
        // SAFETY: By the type invariant the tag set of the queue is a `TagSet` that the private
        // data keeps for as long as there is a reference to the disk, which is borrowed.
        unsafe { TagSet::from_raw((*self.queue()).tag_set) }
    }

    /// Returns the driver's data of the disk.
    ///
    /// Context: any.
    #[inline]
    pub fn data(&self) -> ArcBorrow<'_, T::Data> {
        self.private().data.as_arc_borrow()
    }

    /// Returns the disk's device, for messages.
    ///
    /// Context: any.
    #[inline]
    pub fn device(&self) -> &Device {
        // SAFETY: The device is embedded in the disk, which is borrowed for as long as the result.
        unsafe { Device::from_raw(bindings::disk_to_dev(self.as_raw())) }
    }

    /// Sets the size, in sectors of 512 bytes.
    ///
    /// Context: process context; takes a spinlock.
    #[inline]
    pub fn set_capacity(&self, sectors: u64) {
        // SAFETY: The disk is valid, since it is borrowed.
        unsafe { bindings::set_capacity(self.as_raw(), sectors) };
    }

    /// Sets the size, in sectors of 512 bytes, and sends a uevent: a `change` with `RESIZE=1` if
    /// the size changes and neither the old nor the new one is 0, a plain `change` otherwise. If
    /// `scan` is true, the next open scans for partitions.
    ///
    /// Context: may sleep.
    pub fn set_capacity_and_notify(&self, sectors: u64, scan: bool) {
        // SAFETY: The disk is valid, since it is borrowed.
        if unsafe { bindings::get_capacity(self.as_raw()) } == 0 {
            // The size comes before the flag: a task that opens the disk in between would clear the
            // flag and find no partitions on a disk without a size. Nothing slow may come between
            // the two, since an open in between does not scan.
            self.set_capacity(sectors);
        }
        if scan {
            self.need_partition_scan();
        }
        // SAFETY: The disk is valid, since it is borrowed. The function sends a uevent only if the
        // disk is live.
        if !unsafe { bindings::set_capacity_and_notify(self.as_raw(), sectors) } {
            self.notify_change();
        }
    }

    /// Sends a `change` uevent.
    ///
    /// Context: may sleep.
    #[inline]
    pub fn notify_change(&self) {
        // SAFETY: The device is embedded in the disk, which is borrowed. The function returns an
        // error if the device was not added.
        unsafe {
            bindings::kobject_uevent(
                &raw mut (*bindings::disk_to_dev(self.as_raw())).kobj,
                bindings::kobject_action_KOBJ_CHANGE,
            )
        };
    }

    /// Sends a `change` uevent with one more variable, `NAME=value`.
    ///
    /// Context: may sleep.
    pub fn notify_change_with(&self, variable: &CStr) {
        let mut env = [variable.as_char_ptr().cast_mut(), ptr::null_mut()];
        // SAFETY: The device is embedded in the disk, which is borrowed. The function returns an
        // error if the device was not added. The array ends with a null pointer, and the function
        // only reads the string.
        unsafe {
            bindings::kobject_uevent_env(
                &raw mut (*bindings::disk_to_dev(self.as_raw())).kobj,
                bindings::kobject_action_KOBJ_CHANGE,
                env.as_mut_ptr(),
            )
        };
    }

    /// Makes the next open scan for partitions.
    ///
    /// Context: any.
    #[inline]
    pub fn need_partition_scan(&self) {
        // SAFETY: The disk is valid, since it is borrowed.
        unsafe { bindings::disk_set_need_part_scan(self.as_raw()) };
    }

    /// Sets whether the disk is read-only, and sends a `change` uevent if that changes.
    ///
    /// Context: may sleep.
    #[inline]
    pub fn set_read_only(&self, read_only: bool) {
        // SAFETY: The disk is valid, since it is borrowed.
        unsafe { bindings::set_disk_ro(self.as_raw(), read_only) };
    }

    /// Clears the read-only policy that user space has set by `BLKROSET`.
    ///
    /// Context: any.
    #[inline]
    pub fn clear_user_read_only(&self) {
        // SAFETY: The disk is valid, since it is borrowed, and `part0`, which is set when the disk
        // is allocated, is the block device of the whole disk.
        unsafe { bindings::bdev_clear_read_only((*self.as_raw()).part0) };
    }

    /// Returns how many partitions are open. The number can change at any time, unless the caller
    /// has the disk open and no other task does, or no task at all.
    ///
    /// Context: any.
    #[inline]
    pub fn open_partitions(&self) -> u32 {
        // SAFETY: The disk is valid, since it is borrowed. The block layer writes the word under
        // `open_mutex`; a volatile read of a word does not tear.
        unsafe { (&raw const (*self.as_raw()).open_partitions).read_volatile() }
    }

    /// Writes back the page cache of the whole disk, drops it even if that fails, and sets the size
    /// to 0. The page cache of a partition stays for as long as the partition is open.
    ///
    /// Context: may sleep, until the requests of the write-back have finished.
    #[inline]
    pub fn invalidate(&self) {
        // SAFETY: The disk is valid, since it is borrowed, and `part0`, which is set when the disk
        // is allocated, is the block device of the whole disk.
        unsafe {
            bindings::sync_blockdev((*self.as_raw()).part0);
            bindings::invalidate_disk(self.as_raw());
        }
    }

    /// Tells the users of the disk that its medium is gone: a file system on it shuts down, and the
    /// page cache that is not in use is dropped.
    ///
    /// Context: may sleep.
    #[inline]
    pub fn force_media_change(&self) {
        // SAFETY: The disk is valid, since it is borrowed.
        unsafe { bindings::disk_force_media_change(self.as_raw()) };
    }

    /// Calls `f` with the queue's limits and applies the result, while no request is in flight. The
    /// wait for that takes `patience` jiffies at most.
    ///
    /// `f` runs under the queue's `limits_lock`, so that it must not call this function.
    ///
    /// Fails with `EINVAL` if the limits are invalid, and with `EBUSY` if requests are still in
    /// flight after that time. The limits do not change then.
    ///
    /// Context: may sleep. No lock that a request in flight needs may be held.
    pub fn update_limits(&self, patience: Jiffies, f: impl FnOnce(&mut Limits)) -> Result {
        let _noio = NoIo::enter();
        // SAFETY: The queue is valid, since its disk is borrowed. This takes `limits_lock`, which
        // each path below releases once, by a commit or by a cancel.
        let mut limits = Limits(unsafe { bindings::queue_limits_start_update(self.queue()) });
        // A disk without sectors and without a cache has no requests, unless a partition is open.
        // It needs no freeze, which would wait for an RCU grace period.
        // SAFETY: The disk is valid, since it is borrowed.
        let idle = unsafe { bindings::get_capacity(self.as_raw()) } == 0
            && self.open_partitions() == 0
            && limits.0.features & bindings::BLK_FEAT_WRITE_CACHE == 0;
        f(&mut limits);
        if idle {
            // SAFETY: The queue is valid, since its disk is borrowed. `limits_lock` is held by the
            // start of the update above, and the limits are those that it returned.
            return to_result(unsafe {
                bindings::queue_limits_commit_update(self.queue(), &mut limits.0)
            });
        }
        // SAFETY: The queue is valid, since its disk is borrowed. `limits_lock` is held by the
        // start of the update above, and is released once, by the commit or by the cancel. The
        // queue is unfrozen as often as it is frozen.
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

    /// Sets the time after which [`Operations::timeout`] is called for a request, in seconds, for
    /// requests that start from now on.
    ///
    /// Context: any.
    #[inline]
    pub fn set_timeout(&self, seconds: u32) {
        // SAFETY: The queue is valid, since its disk is borrowed.
        unsafe { bindings::blk_queue_rq_timeout(self.queue(), timeout_in_jiffies(seconds)) };
    }

    /// Returns the data that [`Self::set_queue_data`] has set, if any.
    ///
    /// # Safety
    ///
    /// Only a call of [`Operations::queue_rq`] or [`Operations::commit_rqs`] for this disk may use
    /// the result, and only until it returns.
    #[inline]
    pub(super) unsafe fn queue_data(&self) -> Option<ArcBorrow<'_, QueueData<T>>> {
        // SAFETY: By the safety requirements the result is used within a dispatch of this queue.
        // `take_queue_data` keeps the reference that it takes out of the slot until all dispatches
        // that have begun before have returned, and the drop of the slot, which is the only other
        // end of a reference, comes after the last dispatch.
        unsafe { self.private().queue_data.get() }
    }

    /// Sets the data that the queue functions get from now on. Fails with `data` if there is data
    /// already.
    ///
    /// Context: any.
    #[inline]
    pub fn set_queue_data(&self, data: Arc<QueueData<T>>) -> Result<(), Arc<QueueData<T>>> {
        self.private().queue_data.set(data)
    }

    /// Removes the data that the queue functions get, and calls `f` while no queue function runs
    /// and none is started. Returns the data.
    ///
    /// Context: may sleep, until the running queue functions have returned. It must not be called
    /// by [`Operations::queue_rq`] or [`Operations::commit_rqs`], nor with a lock held that one of
    /// them takes.
    pub fn take_queue_data(&self, f: impl FnOnce()) -> Option<Arc<QueueData<T>>> {
        let data = self.private().queue_data.take();
        // SAFETY: The queue is valid, since its disk is borrowed. The queue functions run under the
        // read side of the SRCU that this waits for, so that none that has seen `data` runs
        // afterwards.
        unsafe { bindings::blk_mq_quiesce_queue(self.queue()) };
        f();
        // SAFETY: The queue is valid, since its disk is borrowed, and was quiesced once by this
        // function.
        unsafe { bindings::blk_mq_unquiesce_queue(self.queue()) };
        data
    }

    /// Calls `f` with each request that is started. A request that starts or finishes during the
    /// call may be left out. `f` is not called if the queue is frozen, since no request is in
    /// flight then.
    ///
    /// Context: that of `f`, which may sleep. A freeze of the queue waits for the call, so that `f`
    /// must not wait for one.
    pub fn for_each_started<F: Fn(&Request<T::Queue>)>(&self, f: F) {
        /// # Safety
        ///
        /// `data` must point to a queue and an `F`, and `rq` must be a started request of a tag set
        /// of `T::Queue`, and be referenced during the call.
        unsafe extern "C" fn call<T: DiskOperations, F: Fn(&Request<T::Queue>)>(
            rq: *mut bindings::request,
            data: *mut ffi::c_void,
        ) -> bool {
            // SAFETY: By the safety requirements `data` points to these types, and the request is
            // valid.
            let (data, queue) = unsafe { (&*data.cast::<(*mut _, F)>(), (*rq).q) };
            if queue == data.0 {
                // SAFETY: By the safety requirements `rq` is a started request of a tag set of
                // `T::Queue`, which is not freed during the call.
                data.1(unsafe { Request::from_raw(rq) });
            }
            true
        }
        let Some(_usage) = QueueUsage::try_get(self) else {
            return;
        };
        let data = (self.queue(), f);
        // SAFETY: The tag set is allocated. Its arrays are replaced only while the queue is frozen,
        // which the usage count prevents; blk-mq passes started requests only, and holds a
        // reference to each. `data` lives during the call.
        unsafe {
            bindings::blk_mq_tagset_busy_iter(
                self.tag_set().as_raw(),
                Some(call::<T, F>),
                ptr::from_ref(&data).cast_mut().cast(),
            )
        };
    }

    /// Makes blk-mq dispatch the requests again that [`OwnedRequest::requeue_later`] has given
    /// back.
    ///
    /// Context: any.
    ///
    /// [`OwnedRequest::requeue_later`]: super::OwnedRequest::requeue_later
    #[inline]
    pub fn kick_requeued(&self) {
        // SAFETY: The queue is valid, since its disk is borrowed.
        unsafe { bindings::blk_mq_kick_requeue_list(self.queue()) };
    }

    /// Waits until the queue has no request. The driver should fail every request that it is handed
    /// meanwhile, so that the wait is bounded.
    ///
    /// Context: may sleep. No lock that a request needs may be held.
    #[inline]
    pub fn drain(&self) {
        let _noio = NoIo::enter();
        // SAFETY: The queue is valid, since its disk is borrowed, and is unfrozen as often as it is
        // frozen.
        unsafe {
            bindings::blk_mq_freeze_queue_nomemsave(self.queue());
            bindings::blk_mq_unfreeze_queue_nomemrestore(self.queue());
        }
    }

    /// Keeps requests from being freed, so that one can be looked up by its tag. [`None`] if the
    /// queue is frozen or dead, so that no request can be in flight.
    ///
    /// Context: any. A freeze of the queue waits until the guard is dropped.
    #[inline]
    pub fn hold_requests(&self) -> Option<QueueGuard<'_, T>> {
        QueueGuard::new(self)
    }
}
