// SPDX-License-Identifier: GPL-2.0

//! Files in a disk's sysfs directory.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use super::gen_disk::{DiskOperations, GenDisk};
use crate::{
    bindings,
    container_of,
    error::to_result,
    ffi,
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    str::Formatter,
    sync::aref::ARef,
    types::Opaque, //
};
use core::slice;

/// What a file in the sysfs directory of a disk is called and says.
pub trait Attribute: Send + Sync + 'static {
    /// The name of the file.
    const NAME: &'static CStr;

    /// Writes the content, which is cut off after a page. May sleep. Must not wait for whoever
    /// removes the file.
    fn show(&self, to: &mut dyn fmt::Write) -> fmt::Result;
}

/// What sysfs knows of a file, and what the file says.
///
/// # Invariants
///
/// `attribute` is initialised, and its `show` is that of [`AttributeFile`] with this `A`.
#[pin_data]
struct Content<A> {
    #[pin]
    attribute: Opaque<bindings::device_attribute>,
    value: A,
}

// SAFETY: The attribute does not change once it is initialised, and points to what lives for ever. The
// value is `Send`.
unsafe impl<A: Attribute> Send for Content<A> {}
// SAFETY: What shares a content reads the attribute, and the value, which is `Sync`.
unsafe impl<A: Attribute> Sync for Content<A> {}

impl<A: Attribute> Content<A> {
    fn new(value: A) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // SAFETY: All bytes of the attribute are written, and its first field is initialised after
            // that.
            attribute <- Opaque::ffi_init(|slot: *mut bindings::device_attribute| unsafe {
                slot.write(pin_init::zeroed());
                (*slot).attr.name = A::NAME.as_char_ptr();
                (*slot).attr.mode = 0o444;
                (*slot).__bindgen_anon_1.show = Some(Self::show);
                bindings::sysfs_attr_init(&raw mut (*slot).attr);
            }),
            value,
        })
    }

    /// # Safety
    ///
    /// Called by sysfs only, with the attribute of a `Content<A>` that is not dropped meanwhile, and
    /// with a page to fill.
    unsafe extern "C" fn show(
        _dev: *mut bindings::device,
        attr: *mut bindings::device_attribute,
        buf: *mut ffi::c_char,
    ) -> isize {
        // SAFETY: By the caller's promise. `Opaque` is transparent.
        let content = unsafe { &*container_of!(Opaque::cast_from(attr), Self, attribute) };
        // SAFETY: sysfs passes a page, zeroed, which nobody else has.
        let page = unsafe { slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE) };
        let mut to = Formatter::new(page);
        // What does not fit is cut off.
        let _ = content.value.show(&mut to);
        // sysfs takes less than a page for an answer.
        to.bytes_written().min(PAGE_SIZE - 1) as isize
    }
}

/// A file that everybody may read. Dropping it removes the file, and waits for readers.
///
/// # Invariants
///
/// The file exists, with the attribute of `content`.
pub struct AttributeFile<T: DiskOperations, A: Attribute> {
    disk: ARef<GenDisk<T>>,
    content: Pin<KBox<Content<A>>>,
}

impl<T: DiskOperations, A: Attribute> AttributeFile<T, A> {
    /// Creates the file, which says `value`. Sleeps. Fails with `EEXIST` when it is there already,
    /// and with `ENOMEM`.
    pub fn create(disk: &GenDisk<T>, value: A) -> Result<Self> {
        let content = KBox::pin_init(Content::new(value), GFP_KERNEL)?;
        // SAFETY: The device was added. The attribute is initialised, and stays where it is until the
        // file is removed.
        to_result(unsafe {
            bindings::device_create_file(
                bindings::disk_to_dev(disk.as_raw()),
                content.attribute.get(),
            )
        })?;
        // INVARIANT: Created just above.
        Ok(Self {
            disk: disk.into(),
            content,
        })
    }
}

impl<T: DiskOperations, A: Attribute> Drop for AttributeFile<T, A> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a file to remove. Nobody reads it afterwards, so
        // that the attribute may go.
        unsafe {
            bindings::device_remove_file(
                bindings::disk_to_dev(self.disk.as_raw()),
                self.content.attribute.get(),
            )
        };
    }
}
