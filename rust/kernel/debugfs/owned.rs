// SPDX-License-Identifier: GPL-2.0

//! Directories of debugfs with files to be read. An open file keeps its module loaded, for closing
//! it calls code of the module, whether or not the file is still there. The files of the `kernel`
//! crate do not.
//!
//! C header: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)

use crate::{
    bindings,
    ffi,
    fmt,
    module::{this_module, ModuleMetadata},
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::Arc, //
};
use core::{marker::PhantomData, ptr};

/// Prints what a file is about. May sleep.
pub type Print<T> = fn(&T, &mut fmt::Formatter<'_>) -> fmt::Result;

/// A directory of debugfs's own directory; it goes away with the value.
///
/// # Invariants
///
/// The value is what `debugfs_create_dir` has returned, and was not removed.
pub struct Root(*mut bindings::dentry);

// SAFETY: debugfs has locks of its own.
unsafe impl Send for Root {}
// SAFETY: As above.
unsafe impl Sync for Root {}

impl Root {
    /// Makes the directory. Without debugfs there is none, and no error. Sleeps. Fails with
    /// `ENOMEM`.
    pub fn new(name: &CStr) -> Result<Arc<Self>> {
        // SAFETY: `name` is a string of C, and without a parent it is debugfs itself.
        let dentry = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), ptr::null_mut()) };
        // INVARIANT: Just above.
        Ok(Arc::new(Self(dentry), GFP_KERNEL)?)
    }
}

impl Drop for Root {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant. Directories in it have a reference to the value.
        unsafe { bindings::debugfs_remove(self.0) };
    }
}

/// What a file prints, and how.
struct File<T> {
    data: T,
    print: Print<T>,
}

impl<T> fmt::Display for File<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.print)(&self.data, f)
    }
}

/// A directory in a [`Root`] whose files print a `T`; it goes away with the value. `M` is the
/// module of this code.
///
/// # Invariants
///
/// - `dentry` is what `debugfs_create_dir` has returned in `_root`, and was not removed.
/// - The private data of each file in it is an element of `files`, which does not change.
pub struct Dir<T: Send + Sync + 'static, M: ModuleMetadata> {
    dentry: *mut bindings::dentry,
    files: KVec<File<T>>,
    _root: Arc<Root>,
    _module: PhantomData<fn() -> M>,
}

// SAFETY: debugfs has locks of its own; who reads a file uses a `&T` on any task.
unsafe impl<T: Send + Sync + 'static, M: ModuleMetadata> Send for Dir<T, M> {}
// SAFETY: As above.
unsafe impl<T: Send + Sync + 'static, M: ModuleMetadata> Sync for Dir<T, M> {}

impl<T: Clone + Send + Sync + 'static, M: ModuleMetadata> Dir<T, M> {
    /// Makes the directory, with a file for each of `files`, which only root can read. What debugfs
    /// cannot make is not there. Sleeps. Fails with `ENOMEM`.
    pub fn new(
        root: &Arc<Root>,
        name: &CStr,
        data: &T,
        files: &[(&'static CStr, Print<T>)],
    ) -> Result<Self> {
        let mut entries = KVec::with_capacity(files.len(), GFP_KERNEL)?;
        for (_, print) in files {
            let file = File {
                data: data.clone(),
                print: *print,
            };
            entries.push(file, GFP_KERNEL)?;
        }
        // SAFETY: `name` is a string of C, and by its invariant `root` is a directory or an error,
        // which debugfs passes on.
        let dentry = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), root.0) };
        // INVARIANT: There is no file yet.
        let dir = Self {
            dentry,
            files: entries,
            _root: root.clone(),
            _module: PhantomData,
        };
        let operations: &'static _ = &Self::OPERATIONS;
        for ((name, _), file) in files.iter().zip(&dir.files) {
            // INVARIANT: `file` is an element.
            // SAFETY: As above. The operations are for a `File<T>`, which is there until the
            // directory is removed, and live as long as the module, which they name as their owner.
            unsafe {
                bindings::debugfs_create_file(
                    name.as_char_ptr(),
                    0o400,
                    dir.dentry,
                    ptr::from_ref(file).cast_mut().cast(),
                    operations,
                )
            };
        }
        Ok(dir)
    }
}

impl<T: Send + Sync + 'static, M: ModuleMetadata> Dir<T, M> {
    const OPERATIONS: bindings::file_operations = bindings::file_operations {
        owner: this_module::<M>().as_ptr(),
        open: Some(Self::open),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Debugfs calls it for a file in such a directory, which is not removed meanwhile.
    unsafe extern "C" fn open(
        inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> ffi::c_int {
        // SAFETY: The inode is valid.
        let data = unsafe { (*inode).i_private };
        // SAFETY: The file is valid and being opened, and `show` gets `data`.
        unsafe { bindings::single_open(file, Some(Self::show), data) }
    }

    /// # Safety
    ///
    /// `seq_read` calls it for a file that [`Self::open`] has opened. Debugfs lets no read begin
    /// when the file was removed, and waits for reads before that.
    unsafe extern "C" fn show(seq: *mut bindings::seq_file, _: *mut ffi::c_void) -> ffi::c_int {
        // SAFETY: By the type invariant the private data is a `File<T>` of a directory that is
        // there, for debugfs waits.
        let file = unsafe { &*(*seq).private.cast::<File<T>>() };
        // SAFETY: The sequence is valid, and locked for this call.
        let seq = unsafe { SeqFile::from_raw(seq) };
        seq_print!(seq, "{}", file);
        0
    }
}

impl<T: Send + Sync + 'static, M: ModuleMetadata> Drop for Dir<T, M> {
    /// Waits for those who read a file.
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant. The files go with it, before what they point to.
        unsafe { bindings::debugfs_remove(self.dentry) };
    }
}
