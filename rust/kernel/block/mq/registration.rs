// SPDX-License-Identifier: GPL-2.0

//! Creation of disks, and their registration with user space.
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

/// The parameters of a new disk.
pub struct DiskBuilder<'a> {
    /// The disk's name under `/dev`.
    pub name: fmt::Arguments<'a>,
    /// The disk's major number, which a [`Major`](crate::block::Major) has registered.
    pub major: u32,
    /// The disk's first minor number.
    pub first_minor: u32,
    /// The number of minors, for the disk and its partitions.
    pub minors: u32,
    /// The number of hardware queues. The block layer reduces it to the number of CPUs.
    pub hw_queues: u32,
    /// The number of requests per hardware queue.
    pub queue_depth: u32,
    /// The length of the largest request, in bytes.
    pub max_bytes: u32,
    /// The length of a request that suits the disk best, in bytes.
    pub io_opt: u32,
}

impl DiskBuilder<'_> {
    /// Creates the disk and adds it.
    ///
    /// Fails with `EINVAL` if the name is too long or a number is out of range, with `EEXIST` or
    /// `EBUSY` if the name or the minor is taken, and with `ENOMEM`.
    ///
    /// Context: may sleep. User space can open the disk before this returns.
    pub fn build<T: DiskOperations>(self, data: Arc<T::Data>) -> Result<RegisteredDisk<T>> {
        let private = Self::alloc_tag_set::<T>(self.hw_queues, self.queue_depth, data)?;
        let mut limits = bindings::queue_limits {
            max_hw_sectors: self.max_bytes >> bindings::SECTOR_SHIFT,
            io_opt: self.io_opt,
            max_segments: u16::MAX,
            max_segment_size: u32::MAX,
            ..pin_init::zeroed()
        };
        // SAFETY: `alloc_tag_set` has allocated the tag set, which the disk's private data keeps
        // until the disk is freed. The limits are initialised and live during the call. The queue
        // data may be null, and the lock class is static.
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
        // SAFETY: `__blk_mq_alloc_disk` has returned a valid disk, and nothing else has a pointer
        // to it before it is added.
        unsafe {
            (*disk).major = self.major as ffi::c_int;
            (*disk).first_minor = self.first_minor as ffi::c_int;
            (*disk).minors = self.minors as ffi::c_int;
            (*disk).private_data = KBox::into_raw(private).cast();
            (*disk).fops = &const { Vtable::<T>::FOPS };
        }
        // INVARIANT: The private data was set just above, and the tag set in it was allocated for
        // this queue.
        // SAFETY: The disk is valid, hence its address not null, and the reference that
        // `__blk_mq_alloc_disk` returned passes to the `ARef`.
        let disk = unsafe { ARef::<GenDisk<T>>::from_raw(NonNull::new_unchecked(disk.cast())) };
        match self.add(&disk) {
            // INVARIANT: `add` has added the disk. From here on `free_disk` frees the private data.
            Ok(()) => Ok(RegisteredDisk(disk)),
            Err(error) => {
                // SAFETY: `private_data` is the pointer from `KBox::into_raw` above. `free_disk`,
                // which also takes the box back, is only called for a disk that was added, and
                // `add` has failed.
                let private =
                    unsafe { KBox::from_raw((*disk.as_raw()).private_data.cast::<DiskData<T>>()) };
                // This is the last reference. The disk must be released before its tag set is
                // freed.
                drop(disk);
                free_private(private);
                Err(error)
            }
        }
    }

    /// Sets the disk's name and adds it.
    fn add<T: DiskOperations>(self, disk: &GenDisk<T>) -> Result {
        // SAFETY: The disk is valid. It is not added yet, so nothing else reads or writes its name.
        let name = unsafe { &mut (*disk.as_raw()).disk_name };
        NullTerminatedFormatter::new(name)
            .ok_or(EINVAL)?
            .write_fmt(self.name)?;
        // SAFETY: The disk is valid, has a name, numbers, operations and private data, and was not
        // added before. The parent and the groups may be null.
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
            // The block layer places the `Pdu` right behind the `struct request`.
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
                        // Hardware queues are not bound to CPUs: a CPU that goes offline does not
                        // wait for the requests of its queue, which may themselves wait for a
                        // reconnect.
                        | bindings::BLK_MQ_F_STACKING,
                    ..pin_init::zeroed()
                }),
                data,
                queue_data: QueueDataSlot::new(),
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The tag set is filled in, its operations are static, and it keeps its address:
        // the box is not moved out of before `free_private`.
        to_result(unsafe { bindings::blk_mq_alloc_tag_set(private.tag_set.get()) })?;
        Ok(private)
    }
}

/// Frees what [`DiskBuilder::alloc_tag_set`] has allocated.
#[inline]
fn free_private<T: DiskOperations>(private: KBox<DiskData<T>>) -> Arc<T::Data> {
    // SAFETY: `alloc_tag_set` has allocated the tag set. The callers have released the disk, or
    // never had one, so no queue uses the tag set.
    unsafe { bindings::blk_mq_free_tag_set(private.tag_set.get()) };
    KBox::into_inner(private).data
}

/// A disk that user space can see. Dropping it removes the disk.
///
/// Context: may sleep. The drop waits until the requests in flight have finished and takes
/// `disk->open_mutex`: it must not run in a callback of the disk, nor with a lock held that a
/// callback takes.
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
    /// Only the block layer may call this, with a valid disk that [`DiskBuilder::build`] made for
    /// `T`.
    unsafe extern "C" fn open(
        disk: *mut bindings::gendisk,
        _mode: bindings::blk_mode_t,
    ) -> ffi::c_int {
        // SAFETY: The caller passes a disk that `build` made for `T`, and keeps it referenced
        // during the call.
        from_result(|| T::open(unsafe { GenDisk::from_raw(disk) }).map(|()| 0))
    }

    /// # Safety
    ///
    /// Only the block layer may call this, with a valid disk that [`DiskBuilder::build`] made for
    /// `T`.
    unsafe extern "C" fn release(disk: *mut bindings::gendisk) {
        // SAFETY: The caller passes a disk that `build` made for `T`, and keeps it referenced
        // during the call.
        T::release(unsafe { GenDisk::from_raw(disk) });
    }

    /// # Safety
    ///
    /// Only the block layer may call this, with a valid block device, the whole or a partition, of
    /// a disk that [`DiskBuilder::build`] made for `T`.
    unsafe extern "C" fn ioctl(
        bdev: *mut bindings::block_device,
        _mode: bindings::blk_mode_t,
        cmd: ffi::c_uint,
        arg: ffi::c_ulong,
    ) -> ffi::c_int {
        // SAFETY: The caller passes a block device that is open during the call, which keeps the
        // disk that it points to referenced; `build` made that disk for `T`.
        from_result(|| T::ioctl(unsafe { GenDisk::from_raw((*bdev).bd_disk) }, cmd, arg))
    }

    /// # Safety
    ///
    /// Only the block layer may call this, once, with a disk that [`DiskBuilder::build`] made for
    /// `T`, after the last reference to it is gone.
    unsafe extern "C" fn free_disk(disk: *mut bindings::gendisk) {
        // SAFETY: `private_data` is the pointer from `KBox::into_raw` in `build`, which leaves it
        // to this function once the disk is added. There is no reference to the disk left through
        // which it could be used.
        let private = unsafe { KBox::from_raw((*disk).private_data.cast::<DiskData<T>>()) };
        T::free(free_private(private));
    }
}
