// SPDX-License-Identifier: GPL-2.0

//! Making disks and showing them to user space.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    gen_disk::{DiskData, DiskOperations, GenDisk, QueueDataSlot},
    operations::OperationsVTable,
    request::Pdu, //
};
use crate::{
    alloc::flags::GFP_KERNEL,
    bindings,
    error::{from_err_ptr, from_result, to_result},
    ffi,
    fmt::{self, Write},
    module::this_module,
    prelude::*,
    static_lock_class,
    str::NullTerminatedFormatter,
    sync::{aref::ARef, Arc},
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    mem,
    ops::Deref,
    ptr::{self, NonNull}, //
};

/// What a new disk looks like.
pub struct DiskBuilder<'a> {
    /// Its name under `/dev`.
    pub name: fmt::Arguments<'a>,
    /// Its major number, from [`Major`](crate::block::Major).
    pub major: u32,
    /// Its first minor number.
    pub first_minor: u32,
    /// The number of minors, its own and those of its partitions.
    pub minors: u32,
    /// The number of hardware queues; there are no more than CPUs.
    pub hw_queues: u32,
    /// Requests per hardware queue.
    pub queue_depth: u32,
    /// The largest request in bytes.
    pub max_bytes: u32,
    /// The size of request that suits the disk best, in bytes.
    pub io_opt: u32,
}

impl DiskBuilder<'_> {
    /// Makes the disk and adds it. Sleeps. Fails with `EINVAL` if the name has no room or a number
    /// is no good, with `ENOMEM`, and with `EEXIST` or `EBUSY` if there is such a disk or minor.
    pub fn build<T: DiskOperations>(self, data: Arc<T::Data>) -> Result<RegisteredDisk<T>> {
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
        match self.add(&disk) {
            // INVARIANT: Added just above. From here on `free_disk` frees the private data.
            Ok(()) => Ok(RegisteredDisk(disk)),
            Err(error) => {
                // SAFETY: The disk is valid; `build` put the box there.
                let private =
                    unsafe { KBox::from_raw((*disk.as_raw()).private_data.cast::<DiskData<T>>()) };
                // The last reference; `free_disk` is for disks that were added.
                drop(disk);
                free_private(private);
                Err(error)
            }
        }
    }

    /// Names the disk and adds it.
    fn add<T: DiskOperations>(self, disk: &GenDisk<T>) -> Result {
        // SAFETY: The disk is not added yet, so its name is ours to write.
        let name = unsafe { &mut (*disk.as_raw()).disk_name };
        NullTerminatedFormatter::new(name)
            .ok_or(EINVAL)?
            .write_fmt(self.name)?;
        // SAFETY: The disk is complete.
        to_result(unsafe {
            bindings::device_add_disk(ptr::null_mut(), disk.as_raw(), ptr::null_mut())
        })
    }

    fn alloc_tag_set<T: DiskOperations>(
        hw_queues: u32,
        queue_depth: u32,
        data: Arc<T::Data>,
    ) -> Result<KBox<DiskData<T>>> {
        const {
            assert!(!mem::needs_drop::<Pdu<T::Queue>>());
            // It follows the request.
            assert!(mem::align_of::<Pdu<T::Queue>>() <= mem::align_of::<bindings::request>());
        };
        let private = KBox::new(
            DiskData::<T> {
                tag_set: Opaque::new(bindings::blk_mq_tag_set {
                    ops: &const { OperationsVTable::<T::Queue>::VTABLE },
                    nr_hw_queues: hw_queues,
                    queue_depth,
                    numa_node: bindings::NUMA_NO_NODE,
                    cmd_size: mem::size_of::<Pdu<T::Queue>>() as u32,
                    flags: bindings::BLK_MQ_F_BLOCKING
                        | bindings::BLK_MQ_F_NO_SCHED_BY_DEFAULT
                        // Hardware queues are not bound to processors: one that goes offline need
                        // not wait for the requests of its queue, which may wait for a reconnect.
                        | bindings::BLK_MQ_F_STACKING,
                    ..pin_init::zeroed()
                }),
                data,
                queue_data: QueueDataSlot::new(),
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The tag set is filled in, and stays where it is: the box is never moved out of.
        to_result(unsafe { bindings::blk_mq_alloc_tag_set(private.tag_set.get()) })?;
        Ok(private)
    }
}

/// Frees what [`DiskBuilder::alloc_tag_set`] made.
#[inline]
fn free_private<T: DiskOperations>(private: KBox<DiskData<T>>) -> Arc<T::Data> {
    // SAFETY: The tag set was allocated, and no queue uses it any more.
    unsafe { bindings::blk_mq_free_tag_set(private.tag_set.get()) };
    KBox::into_inner(private).data
}

/// A disk that user space can see; dropping it takes it away. That sleeps until requests in flight
/// have finished: not from a callback of the disk's, nor with a lock held that one of them takes.
///
/// # Invariants
///
/// The disk was added and not deleted.
pub struct RegisteredDisk<T: DiskOperations>(ARef<GenDisk<T>>);

impl<T: DiskOperations> Deref for RegisteredDisk<T> {
    type Target = GenDisk<T>;

    #[inline]
    fn deref(&self) -> &GenDisk<T> {
        &self.0
    }
}

impl<T: DiskOperations> Drop for RegisteredDisk<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the disk was added and not deleted.
        unsafe { bindings::del_gendisk(self.0.as_raw()) };
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
    /// See [`Self::open`]; the last reference to the disk is gone.
    unsafe extern "C" fn free_disk(disk: *mut bindings::gendisk) {
        // SAFETY: `build` put the box there; nobody can use it any more.
        let private = unsafe { KBox::from_raw((*disk).private_data.cast::<DiskData<T>>()) };
        T::free(free_private(private));
    }
}
