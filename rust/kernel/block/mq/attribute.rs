// SPDX-License-Identifier: GPL-2.0

//! Attribute files in the sysfs directory of a disk.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use super::gen_disk::{
    DiskOperations,
    GenDisk, //
};
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

/// The name and the content of a file in the sysfs directory of a disk.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::{
///         Attribute,
///         AttributeFile,
///         DiskOperations,
///         GenDisk, //
///     },
///     fmt, //
/// };
///
/// struct Serial(u32);
///
/// impl Attribute for Serial {
///     const NAME: &'static CStr = c"serial";
///
///     fn show(&self, to: &mut dyn fmt::Write) -> fmt::Result {
///         writeln!(to, "{}", self.0)
///     }
/// }
///
/// /// The file exists until the value is dropped.
/// fn create<T: DiskOperations>(disk: &GenDisk<T>) -> Result<AttributeFile<T, Serial>> {
///     AttributeFile::create(disk, Serial(7))
/// }
/// ```
pub trait Attribute: Send + Sync + 'static {
    /// The name of the file.
    const NAME: &'static CStr;

    /// Writes the content, of which all but the first `PAGE_SIZE - 1` bytes are cut off.
    ///
    /// Context: may sleep, with an active reference to the file held. It must not wait for a task
    /// that drops the [`AttributeFile`].
    fn show(&self, to: &mut dyn fmt::Write) -> fmt::Result;
}

/// The attribute that sysfs has a pointer to, and the value that the file shows.
///
/// # Invariants
///
/// `attribute` is initialised, and its `show` is [`Self::show`]. It is not written after that.
#[pin_data]
struct Content<A> {
    #[pin]
    attribute: Opaque<bindings::device_attribute>,
    value: A,
}

// SAFETY: By the type invariant the attribute is not written once it is initialised, and its
// pointers are to static memory, so that any thread may own it. The value is `Send`.
unsafe impl<A: Attribute> Send for Content<A> {}
// SAFETY: By the type invariant the attribute is not written once it is initialised, so that
// threads may read it at once. The value is `Sync`.
unsafe impl<A: Attribute> Sync for Content<A> {}

impl<A: Attribute> Content<A> {
    fn new(value: A) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // SAFETY: The slot is valid for writes and the first statement initialises all of it,
            // so that the others write to fields of a valid value.
            // INVARIANT: `show` is that of this type.
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
    /// Only sysfs may call this, with the attribute of a `Content<A>` that is not dropped during
    /// the call, and with a buffer of one page for the file's content.
    unsafe extern "C" fn show(
        _dev: *mut bindings::device,
        attr: *mut bindings::device_attribute,
        buf: *mut ffi::c_char,
    ) -> isize {
        // SAFETY: By the safety requirements `attr` is the attribute of a live `Content<A>`.
        // `Opaque` is transparent, so that its address is that of the attribute.
        let content = unsafe { &*container_of!(Opaque::cast_from(attr), Self, attribute) };
        // SAFETY: By the safety requirements the buffer has a page, which sysfs has zeroed and
        // nothing else uses during the call.
        let page = unsafe { slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE) };
        let mut to = Formatter::new(page);
        // `Formatter` fails if the content does not fit; the part that fits is shown.
        let _ = content.value.show(&mut to);
        // sysfs warns if a file shows a full page.
        to.bytes_written().min(PAGE_SIZE - 1) as isize
    }
}

/// A file of mode 0444. Dropping the value removes the file.
///
/// Context: may sleep, when it is dropped, too. The drop waits for readers, so that it must not
/// hold a lock that [`Attribute::show`] takes.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     Attribute,
///     AttributeFile,
///     DiskOperations, //
/// };
///
/// /// Tells the tasks that poll the file of a change, if there is a file.
/// fn changed<T: DiskOperations, A: Attribute>(file: Option<&AttributeFile<T, A>>) {
///     if let Some(file) = file {
///         file.notify();
///     }
/// }
/// ```
///
/// # Invariants
///
/// The file exists, with the attribute of `content`.
pub struct AttributeFile<T: DiskOperations, A: Attribute> {
    disk: ARef<GenDisk<T>>,
    content: Pin<KBox<Content<A>>>,
}

impl<T: DiskOperations, A: Attribute> AttributeFile<T, A> {
    /// Creates a file that shows `value`.
    ///
    /// Fails with `EEXIST` if there is a file of the name, and with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn create(disk: &GenDisk<T>, value: A) -> Result<Self> {
        let content = KBox::pin_init(Content::new(value), GFP_KERNEL)?;
        // SAFETY: The disk's device is valid, and the function fails if it was not added. The
        // attribute is initialised and pinned. It is not freed before the drop of the value removes
        // the file, and if the call fails, sysfs keeps no pointer to it.
        to_result(unsafe {
            bindings::device_create_file(
                bindings::disk_to_dev(disk.as_raw()),
                content.attribute.get(),
            )
        })?;
        // INVARIANT: `device_create_file` has created the file with this attribute.
        Ok(Self {
            disk: disk.into(),
            content,
        })
    }

    /// Wakes the tasks that poll the file for a change of its content.
    ///
    /// Context: may sleep.
    pub fn notify(&self) {
        // SAFETY: By the type invariant the file exists, in the directory of the disk's device,
        // which `disk` keeps referenced. The function only reads the name.
        unsafe {
            bindings::sysfs_notify(
                &raw mut (*bindings::disk_to_dev(self.disk.as_raw())).kobj,
                core::ptr::null(),
                A::NAME.as_char_ptr(),
            )
        };
    }
}

impl<T: DiskOperations, A: Attribute> Drop for AttributeFile<T, A> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the file exists with this attribute, and `disk` keeps the
        // device referenced. The call returns when no reader is left, so that the attribute may be
        // freed afterwards.
        unsafe {
            bindings::device_remove_file(
                bindings::disk_to_dev(self.disk.as_raw()),
                self.content.attribute.get(),
            )
        };
    }
}
