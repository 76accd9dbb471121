// SPDX-License-Identifier: GPL-2.0

//! The callbacks of disks.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    DiskData,
    GenDisk, //
};
use crate::{
    bindings,
    block::mq::Operations,
    error::{
        from_result,
        VTABLE_DEFAULT_ERROR, //
    },
    ffi,
    macros::vtable,
    module::this_module,
    prelude::*,
    sync::Arc, //
};
use core::marker::PhantomData;

/// The callbacks of a disk, and the types that belong to it.
///
/// C struct: `struct block_device_operations`.
///
/// The module that implements this stays loaded while the disk is open.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::{
///         DiskOperations,
///         GenDisk,
///         Operations, //
///     },
///     sync::atomic::{
///         Atomic,
///         Relaxed, //
///     }, //
/// };
///
/// /// The requests are served by `Q`.
/// struct Disk<Q>(core::marker::PhantomData<Q>);
///
/// #[vtable]
/// impl<Q: Operations<Disk = Self>> DiskOperations for Disk<Q> {
///     /// How often the disk was opened.
///     type Data = Atomic<u32>;
///     type Queue = Q;
///
///     fn open(disk: &GenDisk<Self>) -> Result {
///         disk.data().fetch_add(1, Relaxed);
///         Ok(())
///     }
///
///     fn ioctl(disk: &GenDisk<Self>, cmd: u32, _arg: usize) -> Result<i32> {
///         match cmd {
///             0xab00 => Ok(disk.data().load(Relaxed) as i32),
///             _ => Err(ENOTTY),
///         }
///     }
/// }
/// ```
#[vtable]
pub trait DiskOperations: Sized + 'static {
    /// The driver's data of a disk, which every callback can reach.
    type Data: Send + Sync + 'static;

    /// The callbacks for the disk's requests.
    type Queue: Operations<Disk = Self>;

    /// Called when a task opens the disk or a partition of it. An error makes the open fail.
    ///
    /// Context: may sleep, with `disk->open_mutex` held.
    fn open(_disk: &GenDisk<Self>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called when a task closes the disk or a partition of it that [`Self::open`] has let it open.
    ///
    /// Context: may sleep, with `disk->open_mutex` held.
    fn release(_disk: &GenDisk<Self>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called when the last reference to the disk is gone, with the disk's data. Without it the
    /// data is dropped.
    ///
    /// Context: may sleep. The task that drops the last reference may hold any lock that allows it
    /// to sleep, so that this should defer work that takes locks or waits.
    fn free(_data: Arc<Self::Data>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called for an ioctl that the block layer does not know, from a native or a compat task. It
    /// should fail with `ENOTTY` if the driver does not know it either.
    ///
    /// Context: may sleep, without locks of the block layer.
    fn ioctl(_disk: &GenDisk<Self>, _cmd: u32, _arg: usize) -> Result<i32> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The C callbacks of disks of `T`.
pub(super) struct DiskOperationsVTable<T: DiskOperations>(PhantomData<T>);

impl<T: DiskOperations> DiskOperationsVTable<T> {
    /// The operations for a disk.
    pub(super) const VTABLE: bindings::block_device_operations =
        bindings::block_device_operations {
            owner: this_module::<<T as DiskOperations>::OwnerModule>().as_ptr(),
            open: if T::HAS_OPEN { Some(Self::open) } else { None },
            release: if T::HAS_RELEASE {
                Some(Self::release)
            } else {
                None
            },
            ioctl: if T::HAS_IOCTL {
                Some(Self::ioctl)
            } else {
                None
            },
            compat_ioctl: if T::HAS_IOCTL {
                Some(Self::ioctl)
            } else {
                None
            },
            free_disk: Some(Self::free_disk),
            ..pin_init::zeroed()
        };

    /// # Safety
    ///
    /// Only the block layer may call this, with a valid disk that satisfies the invariants of
    /// [`GenDisk`] for `T`.
    unsafe extern "C" fn open(
        disk: *mut bindings::gendisk,
        _mode: bindings::blk_mode_t,
    ) -> ffi::c_int {
        // SAFETY: By the safety requirements the disk satisfies the invariants. The caller keeps it
        // referenced during the call.
        from_result(|| T::open(unsafe { GenDisk::from_raw(disk) }).map(|()| 0))
    }

    /// # Safety
    ///
    /// Only the block layer may call this, with a valid disk that satisfies the invariants of
    /// [`GenDisk`] for `T`.
    unsafe extern "C" fn release(disk: *mut bindings::gendisk) {
        // SAFETY: By the safety requirements the disk satisfies the invariants. The caller keeps it
        // referenced during the call.
        T::release(unsafe { GenDisk::from_raw(disk) });
    }

    /// # Safety
    ///
    /// Only the block layer may call this, with a valid block device, the whole or a partition, of
    /// a disk that satisfies the invariants of [`GenDisk`] for `T`.
    unsafe extern "C" fn ioctl(
        bdev: *mut bindings::block_device,
        _mode: bindings::blk_mode_t,
        cmd: ffi::c_uint,
        arg: ffi::c_ulong,
    ) -> ffi::c_int {
        // SAFETY: By the safety requirements the disk satisfies the invariants. The block device is
        // open during the call, which keeps the disk referenced.
        from_result(|| T::ioctl(unsafe { GenDisk::from_raw((*bdev).bd_disk) }, cmd, arg))
    }

    /// # Safety
    ///
    /// Only the block layer may call this, once, with a disk that satisfies the invariants of
    /// [`GenDisk`] for `T` and was added, after the last reference to it is gone.
    unsafe extern "C" fn free_disk(disk: *mut bindings::gendisk) {
        // SAFETY: By the safety requirements `private_data` is the pointer that the builder got
        // from `KBox::into_raw`, and leaves to this function once the disk is added. There is no
        // reference to the disk left through which it could be used.
        let private = unsafe { KBox::from_raw((*disk).private_data.cast::<DiskData<T>>()) };
        let data = DiskData::into_data(KBox::into_inner(private));
        if T::HAS_FREE {
            T::free(data);
        }
    }
}
