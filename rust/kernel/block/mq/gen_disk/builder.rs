// SPDX-License-Identifier: GPL-2.0

//! Creation of disks, and their registration with user space.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    operations::DiskOperationsVTable,
    DiskData,
    DiskOperations,
    GenDisk, //
};
use crate::{
    alloc::flags::GFP_KERNEL,
    bindings,
    block::mq::{
        is_valid_block_size,
        TagSet, //
    },
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi,
    fmt::{
        self,
        Write, //
    },
    page::PAGE_SIZE,
    prelude::*,
    static_lock_class,
    str::NullTerminatedFormatter,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};
use core::{
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    }, //
};

/// A builder of disks.
///
/// C struct: `struct queue_limits`.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::{
///         DiskOperations,
///         GenDiskBuilder,
///         RegisteredDisk,
///         TagSet, //
///     },
///     sync::Arc, //
/// };
///
/// fn add<T: DiskOperations>(
///     tag_set: Arc<TagSet<T::Queue>>,
///     data: Arc<T::Data>,
/// ) -> Result<RegisteredDisk<T>> {
///     GenDiskBuilder::new()
///         .capacity_sectors(4096)
///         .logical_block_size(512)?
///         .rotational(false)
///         .build(fmt!("example{}", 0), tag_set, data)
/// }
///
/// assert_eq!(GenDiskBuilder::validate_block_size(1000), Err(EINVAL));
/// ```
pub struct GenDiskBuilder {
    limits: bindings::queue_limits,
    capacity_sectors: u64,
    major: u32,
    first_minor: u32,
    minors: u32,
}

impl Default for GenDiskBuilder {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}

impl GenDiskBuilder {
    /// Creates a builder of a disk without sectors, with blocks of one page, and with numbers that
    /// the block layer chooses.
    ///
    /// Context: any.
    pub fn new() -> Self {
        Self {
            limits: bindings::queue_limits {
                logical_block_size: PAGE_SIZE as u32,
                physical_block_size: PAGE_SIZE as u32,
                ..pin_init::zeroed()
            },
            capacity_sectors: 0,
            major: 0,
            first_minor: 0,
            minors: 0,
        }
    }

    /// Sets the disk's numbers: the major, which a [`Major`](crate::block::Major) has registered,
    /// the first minor, and the number of minors for the disk and its partitions.
    ///
    /// Context: any.
    #[inline]
    pub fn numbers(mut self, major: u32, first_minor: u32, minors: u32) -> Self {
        self.major = major;
        self.first_minor = first_minor;
        self.minors = minors;
        self
    }

    /// Sets the size, in sectors of 512 bytes.
    ///
    /// Context: any.
    #[inline]
    pub fn capacity_sectors(mut self, sectors: u64) -> Self {
        self.capacity_sectors = sectors;
        self
    }

    /// Sets whether the disk is rotational.
    ///
    /// Context: any.
    #[inline]
    pub fn rotational(mut self, rotational: bool) -> Self {
        self.limits.features &= !bindings::BLK_FEAT_ROTATIONAL;
        if rotational {
            self.limits.features |= bindings::BLK_FEAT_ROTATIONAL;
        }
        self
    }

    /// Checks a block size, in bytes.
    ///
    /// Fails with `EINVAL` unless the size is a power of two from 512 up to the size of a page.
    ///
    /// Context: any.
    pub fn validate_block_size(bytes: u32) -> Result {
        if !is_valid_block_size(bytes as usize) || bytes as usize > PAGE_SIZE {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Sets the logical block size, in bytes: that of the smallest unit that can be addressed.
    ///
    /// Fails as [`Self::validate_block_size`] does.
    ///
    /// Context: any.
    pub fn logical_block_size(mut self, bytes: u32) -> Result<Self> {
        Self::validate_block_size(bytes)?;
        self.limits.logical_block_size = bytes;
        Ok(self)
    }

    /// Sets the physical block size, in bytes: that of the smallest unit that is written without
    /// reading.
    ///
    /// Fails as [`Self::validate_block_size`] does.
    ///
    /// Context: any.
    pub fn physical_block_size(mut self, bytes: u32) -> Result<Self> {
        Self::validate_block_size(bytes)?;
        self.limits.physical_block_size = bytes;
        Ok(self)
    }

    /// Sets the length of the largest request, in sectors of 512 bytes.
    ///
    /// Context: any.
    #[inline]
    pub fn max_hw_sectors(mut self, sectors: u32) -> Self {
        self.limits.max_hw_sectors = sectors;
        self
    }

    /// Sets how many segments a request may have, and how long each may be, in bytes.
    ///
    /// Context: any.
    #[inline]
    pub fn max_segments(mut self, count: u16, bytes: u32) -> Self {
        self.limits.max_segments = count;
        self.limits.max_segment_size = bytes;
        self
    }

    /// Sets the length of a request that suits the disk best, in bytes.
    ///
    /// Context: any.
    #[inline]
    pub fn io_opt(mut self, bytes: u32) -> Self {
        self.limits.io_opt = bytes;
        self
    }

    /// Creates the disk and adds it.
    ///
    /// Fails with `EINVAL` if the name is too long, a number is out of range or the limits are
    /// invalid, with `EEXIST` or `EBUSY` if the name or the minor is taken, and with `ENOMEM`.
    ///
    /// Context: may sleep. User space can open the disk before this returns.
    pub fn build<T: DiskOperations>(
        mut self,
        name: fmt::Arguments<'_>,
        tag_set: Arc<TagSet<T::Queue>>,
        data: Arc<T::Data>,
    ) -> Result<RegisteredDisk<T>> {
        let private = KBox::new(DiskData::<T>::new(tag_set, data), GFP_KERNEL)?;
        // SAFETY: The tag set is allocated, and the disk's private data keeps it until the disk is
        // freed. The limits are initialised and live during the call. The queue data may be null,
        // and the lock class is static.
        let disk = from_err_ptr(unsafe {
            bindings::__blk_mq_alloc_disk(
                private.tag_set.as_raw(),
                &mut self.limits,
                ptr::null_mut(),
                static_lock_class!().as_ptr(),
            )
        })?;
        // SAFETY: `__blk_mq_alloc_disk` has returned a valid disk, and nothing else has a pointer
        // to it before it is added.
        unsafe {
            (*disk).major = self.major as ffi::c_int;
            (*disk).first_minor = self.first_minor as ffi::c_int;
            (*disk).minors = self.minors as ffi::c_int;
            (*disk).private_data = KBox::into_raw(private).cast();
            (*disk).fops = &const { DiskOperationsVTable::<T>::VTABLE };
        }
        // INVARIANT: The private data was set just above, and keeps the tag set that the disk was
        // allocated with.
        // SAFETY: The disk is valid, hence its address not null, and the reference that
        // `__blk_mq_alloc_disk` returned passes to the `ARef`.
        let disk = unsafe { ARef::<GenDisk<T>>::from_raw(NonNull::new_unchecked(disk.cast())) };
        disk.set_capacity(self.capacity_sectors);
        match Self::add(&disk, name) {
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
                drop(private);
                Err(error)
            }
        }
    }

    /// Sets the disk's name and adds it.
    fn add<T: DiskOperations>(disk: &GenDisk<T>, name: fmt::Arguments<'_>) -> Result {
        // SAFETY: The disk is valid. It is not added yet, so nothing else reads or writes its name.
        let to = unsafe { &mut (*disk.as_raw()).disk_name };
        NullTerminatedFormatter::new(to)
            .ok_or(EINVAL)?
            .write_fmt(name)?;
        // SAFETY: The disk is valid, has a name, numbers, operations and private data, and was not
        // added before. The parent and the groups may be null.
        to_result(unsafe {
            bindings::device_add_disk(ptr::null_mut(), disk.as_raw(), ptr::null_mut())
        })
    }
}

/// A disk that user space can see. Dropping it removes the disk.
///
/// Context: may sleep. The drop waits until the requests in flight have finished and takes
/// `disk->open_mutex`: it must not run in a callback of the disk, nor with a lock held that a
/// callback takes.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     DiskOperations,
///     RegisteredDisk, //
/// };
///
/// /// Removes a disk whose device is gone. File systems on it learn that at once.
/// fn remove<T: DiskOperations>(disk: RegisteredDisk<T>) {
///     disk.force_media_change();
///     drop(disk);
/// }
/// ```
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
