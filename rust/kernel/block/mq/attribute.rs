// SPDX-License-Identifier: GPL-2.0

//! Files in a disk's sysfs directory.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use super::gen_disk::{DiskOperations, GenDisk};
use crate::{
    bindings,
    error::to_result,
    ffi,
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    str::{as_char_ptr_in_const_context, Formatter},
    sync::aref::ARef, //
};
use core::{marker::PhantomData, slice};

/// What a file in the sysfs directory of disks of `T` is called and says.
pub trait Attribute<T: DiskOperations>: 'static {
    /// The name of the file.
    const NAME: &'static CStr;

    /// Writes the content, which is cut off after a page. May sleep. Must not wait for whoever
    /// removes the file.
    fn show(disk: &GenDisk<T>, to: &mut dyn fmt::Write) -> fmt::Result;
}

/// A file that everybody may read. Dropping it removes the file, and waits for readers.
///
/// # Invariants
///
/// The file exists.
pub struct AttributeFile<T: DiskOperations, A: Attribute<T>> {
    disk: ARef<GenDisk<T>>,
    _attribute: PhantomData<fn() -> A>,
}

impl<T: DiskOperations, A: Attribute<T>> AttributeFile<T, A> {
    // Debug options give `struct attribute` more fields.
    #[allow(clippy::needless_update)]
    const ATTRIBUTE: bindings::device_attribute = bindings::device_attribute {
        attr: bindings::attribute {
            name: as_char_ptr_in_const_context(A::NAME),
            mode: 0o444,
            ..pin_init::zeroed()
        },
        __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
            show: Some(Self::show),
        },
        ..pin_init::zeroed()
    };

    /// Creates the file. Sleeps. Fails with `EEXIST` when it is there already.
    pub fn create(disk: &GenDisk<T>) -> Result<Self> {
        // SAFETY: The device was added, and the attribute is a constant.
        to_result(unsafe {
            bindings::device_create_file(
                bindings::disk_to_dev(disk.as_raw()),
                &const { Self::ATTRIBUTE },
            )
        })?;
        // INVARIANT: Created just above.
        Ok(Self {
            disk: disk.into(),
            _attribute: PhantomData,
        })
    }

    /// # Safety
    ///
    /// Called by sysfs only, with the device of a disk of `T` and a page to fill.
    unsafe extern "C" fn show(
        dev: *mut bindings::device,
        _attr: *mut bindings::device_attribute,
        buf: *mut ffi::c_char,
    ) -> isize {
        // SAFETY: The file is only ever made for disks of `T`; sysfs passes a page, zeroed. It
        // takes less than a page for an answer.
        let (disk, page) = unsafe {
            (
                GenDisk::<T>::from_raw(bindings::dev_to_disk(dev)),
                slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE),
            )
        };
        let mut to = Formatter::new(page);
        // What does not fit is cut off.
        let _ = A::show(disk, &mut to);
        to.bytes_written().min(PAGE_SIZE - 1) as isize
    }
}

impl<T: DiskOperations, A: Attribute<T>> Drop for AttributeFile<T, A> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a file to remove.
        unsafe {
            bindings::device_remove_file(
                bindings::disk_to_dev(self.disk.as_raw()),
                &const { Self::ATTRIBUTE },
            )
        };
    }
}
