// SPDX-License-Identifier: GPL-2.0

//! Disks with requests.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    operations::{Operations, OperationsVTable},
    request::{Pdu, Request},
};
use crate::kernel::bindings as helpers;
use core::{
    marker::PhantomData,
    mem,
    ops::Deref,
    ptr::{self, NonNull}, //
};
use kernel::{
    alloc::flags::GFP_KERNEL,
    bindings,
    device::Device,
    error::{from_err_ptr, from_result, to_result},
    ffi,
    fmt::{self, Write},
    module::{this_module, ModuleMetadata},
    prelude::*,
    static_lock_class,
    str::{as_char_ptr_in_const_context, NullTerminatedFormatter},
    sync::{
        aref::{ARef, AlwaysRefCounted},
        Arc, ArcBorrow,
    },
    task::Pid,
    types::Opaque, //
};

/// What user space can do to a disk, and what hangs off it.
pub(crate) trait DiskOperations: Sized + 'static {
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

    /// An ioctl that the block layer does not know, from a native or a compat task. May sleep.
    fn ioctl(disk: &GenDisk<Self>, cmd: u32, arg: usize) -> Result<i32>;

    /// The content of the file `pid` while there is one, see [`PidFile`]. May sleep. Must not wait
    /// for whoever removes the file.
    fn pid(disk: &GenDisk<Self>) -> Pid;
}

/// What a disk's `private_data` points to.
struct DiskData<T: DiskOperations> {
    tag_set: Opaque<bindings::blk_mq_tag_set>,
    data: Arc<T::Data>,
}

/// The limits of a disk's queue that a driver can change while it is in use.
///
/// C struct: `struct queue_limits`.
pub(crate) struct Limits(bindings::queue_limits);

impl Limits {
    /// Sets or clears a feature bit.
    fn feature(&mut self, bit: bindings::blk_features_t, on: bool) {
        if on {
            self.0.features |= bit;
        } else {
            self.0.features &= !bit;
        }
    }

    /// The smallest unit of I/O, and the unit that is written atomically, in bytes.
    pub(crate) fn block_size(&mut self, bytes: u32) -> &mut Self {
        self.0.logical_block_size = bytes;
        self.0.physical_block_size = bytes;
        self
    }

    /// Whether the disk has a volatile write cache, and whether it takes FUA writes.
    pub(crate) fn write_cache(&mut self, cache: bool, fua: bool) -> &mut Self {
        // SAFETY: The functions return constants.
        let (cache_bit, fua_bit) = unsafe {
            (
                helpers::blk_feat_write_cache(),
                helpers::blk_feat_fua(), //
            )
        };
        self.feature(cache_bit, cache);
        self.feature(fua_bit, cache && fua);
        self
    }

    /// Whether seeking costs.
    pub(crate) fn rotational(&mut self, on: bool) -> &mut Self {
        self.feature(bindings::BLK_FEAT_ROTATIONAL, on);
        self
    }

    /// The largest discard in bytes, 0 for none.
    pub(crate) fn max_discard(&mut self, bytes: u32) -> &mut Self {
        self.0.max_hw_discard_sectors = bytes >> bindings::SECTOR_SHIFT;
        self
    }

    /// The largest write of zeroes in bytes, 0 for none.
    pub(crate) fn max_write_zeroes(&mut self, bytes: u32) -> &mut Self {
        self.0.max_write_zeroes_sectors = bytes >> bindings::SECTOR_SHIFT;
        self
    }
}

/// A disk of `T`: a `struct gendisk` with its request queue.
///
/// # Invariants
///
/// The disk was made by [`DiskBuilder::build`] for `T`, so that `private_data` points to a live
/// `DiskData<T>` until the last reference is gone, and its tag set serves this queue alone.
#[repr(transparent)]
pub(crate) struct GenDisk<T: DiskOperations>(Opaque<bindings::gendisk>, PhantomData<T>);

// SAFETY: A disk may be used and released from any thread; the data is `Send` and `Sync`.
unsafe impl<T: DiskOperations> Send for GenDisk<T> {}
// SAFETY: As above.
unsafe impl<T: DiskOperations> Sync for GenDisk<T> {}

// SAFETY: The reference count is that of the device embedded in the disk.
unsafe impl<T: DiskOperations> AlwaysRefCounted for GenDisk<T> {
    fn inc_ref(&self) {
        // SAFETY: A reference to the disk exists, so its device's count is not zero.
        unsafe { bindings::get_device(helpers::disk_to_dev(self.as_raw())) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller hands over one count.
        unsafe { bindings::put_disk(obj.as_ptr().cast()) };
    }
}

impl<T: DiskOperations> GenDisk<T> {
    /// # Safety
    ///
    /// `disk` must satisfy the invariants of [`GenDisk`] and stay referenced for `'a`.
    pub(super) unsafe fn from_raw<'a>(disk: *mut bindings::gendisk) -> &'a Self {
        // SAFETY: The type is transparent and the caller promises the rest.
        unsafe { &*disk.cast() }
    }

    fn as_raw(&self) -> *mut bindings::gendisk {
        self.0.get()
    }

    fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: A disk has a queue from birth to death.
        unsafe { (*self.as_raw()).queue }
    }

    fn private(&self) -> &DiskData<T> {
        // SAFETY: By the type invariant.
        unsafe { &*(*self.as_raw()).private_data.cast() }
    }

    fn tag_set(&self) -> *mut bindings::blk_mq_tag_set {
        self.private().tag_set.get()
    }

    /// What the driver hung off the disk.
    pub(crate) fn data(&self) -> ArcBorrow<'_, T::Data> {
        self.private().data.as_arc_borrow()
    }

    /// The device, for messages.
    pub(crate) fn device(&self) -> &Device {
        // SAFETY: The device is embedded in the disk, which is borrowed.
        unsafe { Device::from_raw(helpers::disk_to_dev(self.as_raw())) }
    }

    /// Sets the size in sectors. Sleeps.
    pub(crate) fn set_capacity(&self, sectors: u64) {
        // SAFETY: The disk is valid.
        unsafe { bindings::set_capacity(self.as_raw(), sectors) };
    }

    /// Sets the size in sectors, and tells user space in any case: `RESIZE=1` if an old size
    /// changed, a plain `change` uevent otherwise. Sleeps.
    pub(crate) fn set_capacity_and_notify(&self, sectors: u64) {
        // SAFETY: The disk is valid and was added.
        if !unsafe { bindings::set_capacity_and_notify(self.as_raw(), sectors) } {
            self.notify_change();
        }
    }

    /// Sends a `change` uevent. Sleeps.
    pub(crate) fn notify_change(&self) {
        // SAFETY: The device is valid and was added.
        unsafe {
            bindings::kobject_uevent(
                &raw mut (*helpers::disk_to_dev(self.as_raw())).kobj,
                bindings::kobject_action_KOBJ_CHANGE,
            )
        };
    }

    /// Has partitions looked for at the next open.
    pub(crate) fn need_partition_scan(&self) {
        // SAFETY: The disk is valid.
        unsafe { helpers::disk_set_need_part_scan(self.as_raw()) };
    }

    /// Sets whether the disk is read-only. Sleeps.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        // SAFETY: The disk is valid.
        unsafe { bindings::set_disk_ro(self.as_raw(), read_only) };
    }

    /// Drops what is cached of the disk and sets its size to 0. Sleeps.
    pub(crate) fn invalidate(&self) {
        // SAFETY: The disk is valid.
        unsafe { bindings::invalidate_disk(self.as_raw()) };
    }

    /// Tells users of the disk that its medium is gone. Sleeps.
    pub(crate) fn force_media_change(&self) {
        // SAFETY: The disk is valid.
        unsafe { bindings::disk_force_media_change(self.as_raw()) };
    }

    /// Changes the queue's limits by `f`, with no request in flight meanwhile. Sleeps, until that
    /// is so. Fails with `EINVAL` if the result is no good, and then changes nothing.
    pub(crate) fn update_limits(&self, f: impl FnOnce(&mut Limits)) -> Result {
        // SAFETY: The queue is valid. The lock that this takes is released by the commit.
        let mut limits = Limits(unsafe { helpers::queue_limits_start_update(self.queue()) });
        // A disk without sectors and cache has no requests: spare it the freeze.
        // SAFETY: The disk is valid, and the function returns a constant.
        let idle = unsafe {
            helpers::get_capacity(self.as_raw()) == 0
                && limits.0.features & helpers::blk_feat_write_cache() == 0
        };
        f(&mut limits);
        // SAFETY: The lock taken above is held.
        to_result(unsafe {
            if idle {
                bindings::queue_limits_commit_update(self.queue(), &mut limits.0)
            } else {
                bindings::queue_limits_commit_update_frozen(self.queue(), &mut limits.0)
            }
        })
    }

    /// Sets the time after which [`Operations::timeout`] is called, in seconds.
    pub(crate) fn set_timeout(&self, seconds: u32) {
        let jiffies = seconds.saturating_mul(bindings::CONFIG_HZ);
        // SAFETY: The queue is valid.
        unsafe { bindings::blk_queue_rq_timeout(self.queue(), jiffies) };
    }

    /// Asks for `nr` hardware queues. Sleeps, until no request is in flight.
    pub(crate) fn set_hw_queues(&self, nr: u32) {
        let Ok(nr) = ffi::c_int::try_from(nr) else {
            return;
        };
        // SAFETY: The tag set is valid by the type invariant.
        unsafe { bindings::blk_mq_update_nr_hw_queues(self.tag_set(), nr) };
    }

    /// Calls `f` while no queue function runs and none is started. Sleeps.
    pub(crate) fn quiesced<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: The queue is valid.
        unsafe { bindings::blk_mq_quiesce_queue(self.queue()) };
        let ret = f();
        // SAFETY: Pairs with the call above.
        unsafe { bindings::blk_mq_unquiesce_queue(self.queue()) };
        ret
    }

    /// Calls `f` with each request that is started. Requests that start or finish meanwhile may
    /// or may not be seen.
    pub(crate) fn for_each_started<F: Fn(&Request<T::Queue>)>(&self, f: F) {
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
        // SAFETY: The tag set is valid by the type invariant, and `f` lives across the call.
        unsafe {
            bindings::blk_mq_tagset_busy_iter(
                self.tag_set(),
                Some(call::<T, F>),
                ptr::from_ref(&f).cast_mut().cast(),
            )
        };
    }

    /// Keeps requests from being freed, to look one up by its tag. `None` when the queue is frozen
    /// or dead, so that no request can be in flight.
    pub(crate) fn hold_requests(&self) -> Option<QueueGuard<'_, T>> {
        // SAFETY: The queue is valid.
        // INVARIANT: The count was taken.
        unsafe { helpers::blk_queue_usage_tryget(self.queue()) }.then_some(QueueGuard(self))
    }
}

/// Keeps the requests of a disk allocated.
///
/// # Invariants
///
/// Holds one count of the queue's usage counter.
pub(crate) struct QueueGuard<'a, T: DiskOperations>(&'a GenDisk<T>);

impl<T: DiskOperations> QueueGuard<'_, T> {
    /// The request last started under a tag that [`unique_tag`] gave, or might have given: any
    /// value may be asked for.
    ///
    /// [`unique_tag`]: super::StartedRequest::unique_tag
    pub(crate) fn request(&self, unique_tag: u32) -> Option<&Request<T::Queue>> {
        let set = self.0.tag_set();
        // SAFETY: The tags of a set change only while its queues are frozen, which the usage count
        // prevents. `blk_mq_tag_to_rq` checks the tag itself, and requests that an I/O scheduler
        // allocated are freed only while the queue is frozen, too.
        let rq = unsafe {
            let hwq = usize::from(helpers::blk_mq_unique_tag_to_hwq(unique_tag));
            if hwq >= (*set).nr_hw_queues as usize {
                return None;
            }
            let tags = *(*set).tags.add(hwq);
            let tag = helpers::blk_mq_unique_tag_to_tag(unique_tag);
            helpers::blk_mq_tag_to_rq(tags, tag.into())
        };
        // SAFETY: A request found by its tag belongs to the tag set, and stays allocated as above.
        NonNull::new(rq).map(|rq| unsafe { Request::from_raw(rq.as_ptr()) })
    }
}

impl<T: DiskOperations> Drop for QueueGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a count to give back.
        unsafe { helpers::blk_queue_usage_put(self.0.queue()) };
    }
}

/// What a new disk looks like.
pub(crate) struct DiskBuilder<'a> {
    /// Its name under `/dev`.
    pub(crate) name: fmt::Arguments<'a>,
    /// Its major number, from [`Major`](crate::kernel::block::Major).
    pub(crate) major: u32,
    /// Its first minor number.
    pub(crate) first_minor: u32,
    /// The number of minors, its own and those of its partitions.
    pub(crate) minors: u32,
    /// The number of hardware queues.
    pub(crate) hw_queues: u32,
    /// Requests per hardware queue.
    pub(crate) queue_depth: u32,
    /// The largest request in bytes.
    pub(crate) max_bytes: u32,
    /// The size of request that suits the disk best, in bytes.
    pub(crate) io_opt: u32,
}

impl DiskBuilder<'_> {
    /// Makes the disk and adds it. Sleeps.
    pub(crate) fn build<T: DiskOperations>(self, data: Arc<T::Data>) -> Result<RegisteredDisk<T>> {
        let private = Self::alloc_tag_set::<T>(self.hw_queues, self.queue_depth, data)?;
        let mut limits = bindings::queue_limits {
            max_hw_sectors: self.max_bytes >> bindings::SECTOR_SHIFT,
            io_opt: self.io_opt,
            max_segments: u16::MAX,
            max_segment_size: u32::MAX,
            ..pin_init::zeroed()
        };
        // SAFETY: The tag set was allocated; the limits and the lock class are valid.
        let disk = from_err_ptr(unsafe {
            bindings::__blk_mq_alloc_disk(
                private.tag_set.get(),
                &mut limits,
                ptr::null_mut(),
                static_lock_class!().as_ptr(),
            )
        });
        let disk = match disk {
            Ok(disk) => disk,
            Err(error) => {
                free_private(private);
                return Err(error);
            }
        };
        // From here on `free_disk` frees the private data.
        // SAFETY: The disk is ours alone until it is added.
        unsafe {
            (*disk).major = self.major as ffi::c_int;
            (*disk).first_minor = self.first_minor as ffi::c_int;
            (*disk).minors = self.minors as ffi::c_int;
            (*disk).private_data = KBox::into_raw(private).cast();
            (*disk).fops = &const { Vtable::<T>::FOPS };
        }
        // SAFETY: The reference of `__blk_mq_alloc_disk` is handed over.
        // INVARIANT: The private data was set just above.
        let disk = unsafe { ARef::<GenDisk<T>>::from_raw(NonNull::new_unchecked(disk.cast())) };
        // SAFETY: The disk is not added yet, so its name is ours to write.
        let name = unsafe { &mut (*disk.as_raw()).disk_name };
        NullTerminatedFormatter::new(name)
            .ok_or(EINVAL)?
            .write_fmt(self.name)?;
        // SAFETY: The disk is complete, and its vtable's `owner` is set by `fops_of`.
        to_result(unsafe {
            bindings::device_add_disk(ptr::null_mut(), disk.as_raw(), ptr::null_mut())
        })?;
        // INVARIANT: Added just above.
        Ok(RegisteredDisk(disk))
    }

    fn alloc_tag_set<T: DiskOperations>(
        hw_queues: u32,
        queue_depth: u32,
        data: Arc<T::Data>,
    ) -> Result<KBox<DiskData<T>>> {
        let private = KBox::new(
            DiskData::<T> {
                tag_set: Opaque::new(bindings::blk_mq_tag_set {
                    ops: &const { OperationsVTable::<T::Queue>::VTABLE },
                    nr_hw_queues: hw_queues,
                    queue_depth,
                    numa_node: bindings::NUMA_NO_NODE,
                    cmd_size: mem::size_of::<Pdu<T::Queue>>() as u32,
                    flags: bindings::BLK_MQ_F_BLOCKING,
                    ..pin_init::zeroed()
                }),
                data,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The tag set is filled in, and stays where it is: the box is never moved out of.
        to_result(unsafe { bindings::blk_mq_alloc_tag_set(private.tag_set.get()) })?;
        Ok(private)
    }
}

/// Frees what [`DiskBuilder::alloc_tag_set`] made.
fn free_private<T: DiskOperations>(private: KBox<DiskData<T>>) {
    // SAFETY: The tag set was allocated, and no queue uses it any more.
    unsafe { bindings::blk_mq_free_tag_set(private.tag_set.get()) };
}

/// A disk that user space can see; dropping it takes it away.
///
/// # Invariants
///
/// The disk was added and not deleted.
pub(crate) struct RegisteredDisk<T: DiskOperations>(ARef<GenDisk<T>>);

impl<T: DiskOperations> Deref for RegisteredDisk<T> {
    type Target = GenDisk<T>;

    fn deref(&self) -> &GenDisk<T> {
        &self.0
    }
}

impl<T: DiskOperations> Drop for RegisteredDisk<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the disk was added and not deleted.
        unsafe { bindings::del_gendisk(self.0.as_raw()) };
    }
}

/// The read-only file `pid` in the disk's sysfs directory, which says who uses the disk. Dropping
/// it removes the file, and waits for readers.
///
/// # Invariants
///
/// The file exists.
pub(crate) struct PidFile<T: DiskOperations>(ARef<GenDisk<T>>);

impl<T: DiskOperations> PidFile<T> {
    /// Creates the file `pid`. Sleeps. Fails with `EEXIST` when it is there already.
    pub(crate) fn create(disk: &GenDisk<T>) -> Result<Self> {
        // SAFETY: The device was added, and the attribute is a constant.
        to_result(unsafe {
            bindings::device_create_file(
                helpers::disk_to_dev(disk.as_raw()),
                &const { Vtable::<T>::PID },
            )
        })?;
        // INVARIANT: Created just above.
        Ok(Self(disk.into()))
    }
}

impl<T: DiskOperations> Drop for PidFile<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a file to remove.
        unsafe {
            bindings::device_remove_file(
                helpers::disk_to_dev(self.0.as_raw()),
                &const { Vtable::<T>::PID },
            )
        };
    }
}

/// The C callbacks of disks of `T`.
struct Vtable<T>(PhantomData<T>);

impl<T: DiskOperations> Vtable<T> {
    const FOPS: bindings::block_device_operations = bindings::block_device_operations {
        owner: this_module::<T::OwnerModule>().as_ptr(),
        open: Some(Self::open),
        release: Some(Self::release),
        ioctl: Some(Self::ioctl),
        compat_ioctl: Some(Self::ioctl),
        free_disk: Some(Self::free_disk),
        ..pin_init::zeroed()
    };

    const PID: bindings::device_attribute = bindings::device_attribute {
        attr: bindings::attribute {
            name: as_char_ptr_in_const_context(c"pid"),
            mode: 0o444,
            ..pin_init::zeroed()
        },
        __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
            show: Some(Self::show_pid),
        },
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Called by the block layer only, with a disk of `T`, as are the others.
    unsafe extern "C" fn open(
        disk: *mut bindings::gendisk,
        _mode: bindings::blk_mode_t,
    ) -> ffi::c_int {
        // SAFETY: The block layer passes a valid disk of this vtable.
        from_result(|| T::open(unsafe { GenDisk::from_raw(disk) }).map(|()| 0))
    }

    /// # Safety
    ///
    /// See [`Self::open`].
    unsafe extern "C" fn release(disk: *mut bindings::gendisk) {
        // SAFETY: The block layer passes a valid disk of this vtable.
        T::release(unsafe { GenDisk::from_raw(disk) });
    }

    /// # Safety
    ///
    /// See [`Self::open`]; `bdev` is the disk or a partition of it.
    unsafe extern "C" fn ioctl(
        bdev: *mut bindings::block_device,
        _mode: bindings::blk_mode_t,
        cmd: ffi::c_uint,
        arg: ffi::c_ulong,
    ) -> ffi::c_int {
        // SAFETY: The block layer passes a valid block device of a disk of this vtable.
        from_result(|| T::ioctl(unsafe { GenDisk::from_raw((*bdev).bd_disk) }, cmd, arg))
    }

    /// # Safety
    ///
    /// Called by sysfs only, with the device of a disk of `T` and a page to fill.
    unsafe extern "C" fn show_pid(
        dev: *mut bindings::device,
        _attr: *mut bindings::device_attribute,
        buf: *mut ffi::c_char,
    ) -> isize {
        // SAFETY: The file is only ever made for disks of `T`.
        let pid = T::pid(unsafe { GenDisk::<T>::from_raw(helpers::dev_to_disk(dev)) });
        // SAFETY: sysfs passes a page, and the format takes one int.
        unsafe { bindings::sysfs_emit(buf, c"%d\n".as_char_ptr(), pid) as isize }
    }

    /// # Safety
    ///
    /// See [`Self::open`]; the last reference to the disk is gone.
    unsafe extern "C" fn free_disk(disk: *mut bindings::gendisk) {
        // SAFETY: `build` put the box there; nobody can use it any more.
        free_private(unsafe { KBox::from_raw((*disk).private_data.cast::<DiskData<T>>()) });
    }
}
