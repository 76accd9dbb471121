// SPDX-License-Identifier: GPL-2.0

//! Directories of debugfs whose files keep the module loaded.
//!
//! The file operations of the other files of `debugfs` have no owner, so that a file can be open
//! when its module is unloaded. Closing it calls code of the module, whether the file was removed
//! or not.
//!
//! C header: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)

use crate::{
    bindings,
    ffi,
    fmt,
    module::{
        this_module,
        ModuleMetadata, //
    },
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::Arc, //
};
use core::{
    marker::PhantomData,
    ptr, //
};

/// A function that prints the content of a file.
///
/// Context: may sleep. The removal of the file waits for it.
pub type Print<T> = fn(&T, &mut fmt::Formatter<'_>) -> fmt::Result;

/// A directory in the root of debugfs. Dropping the value removes it. [`Dir`] has an example.
///
/// Context: may sleep, when it is dropped.
///
/// # Invariants
///
/// The value is what `debugfs_create_dir` has returned, and was not removed.
pub struct Root(*mut bindings::dentry);

// SAFETY: Any thread may call debugfs to add to the directory or to remove it.
unsafe impl Send for Root {}
// SAFETY: A shared reference only passes the directory to debugfs, which takes the locks of
// directories itself.
unsafe impl Sync for Root {}

impl Root {
    /// Creates the directory. If debugfs cannot create it, this is no error, and the directories in
    /// it are missing, too.
    ///
    /// Fails with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn new(name: &CStr) -> Result<Arc<Self>> {
        // SAFETY: `name` is NUL-terminated and lives during the call, and a null parent stands for
        // the root of debugfs.
        let dentry = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), ptr::null_mut()) };
        // INVARIANT: `debugfs_create_dir` has just returned the value.
        Ok(Arc::new(Self(dentry), GFP_KERNEL)?)
    }
}

impl Drop for Root {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant `debugfs_create_dir` has returned the value, be it a
        // directory or an error, and it was not removed. Each `Dir` in it has removed itself, since
        // it keeps a reference to this value.
        unsafe { bindings::debugfs_remove(self.0) };
    }
}

/// The data of a file, and the function that prints it.
struct File<T> {
    data: T,
    print: Print<T>,
}

impl<T> fmt::Display for File<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.print)(&self.data, f)
    }
}

/// A directory in a [`Root`] whose files print a `T`. Dropping the value removes it. `M` is the
/// module that the caller is part of.
///
/// Context: may sleep, when it is dropped. The drop waits for readers, so that it must not hold a
/// lock that a [`Print`] function takes.
///
/// # Examples
///
/// ```
/// use kernel::{
///     debugfs::owned::{
///         Dir,
///         Print,
///         Root, //
///     },
///     fmt,
///     sync::{
///         atomic::{
///             Atomic,
///             Relaxed, //
///         },
///         Arc, //
///     }, //
/// };
///
/// type Count = Arc<Atomic<u32>>;
///
/// fn print(count: &Count, f: &mut fmt::Formatter<'_>) -> fmt::Result {
///     writeln!(f, "{}", count.load(Relaxed))
/// }
///
/// const FILES: [(&CStr, Print<Count>); 1] = [(c"count", print)];
///
/// let root = Root::new(c"example-owned")?;
/// let count = Arc::new(Atomic::new(0), GFP_KERNEL)?;
/// let dir = Dir::<_, crate::LocalModule>::new(&root, c"first", &count, &FILES)?;
/// // Whoever reads `example-owned/first/count` sees this.
/// count.store(1, Relaxed);
/// drop(dir);
/// # Ok::<(), Error>(())
/// ```
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

// SAFETY: Any thread may call debugfs to remove the directory. Readers of the files use a `&T` in
// any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Send + Sync + 'static, M: ModuleMetadata> Send for Dir<T, M> {}
// SAFETY: A shared reference gives access to nothing. Readers of the files use a `&T` in any
// thread, and `T` is `Sync`.
unsafe impl<T: Send + Sync + 'static, M: ModuleMetadata> Sync for Dir<T, M> {}

impl<T: Clone + Send + Sync + 'static, M: ModuleMetadata> Dir<T, M> {
    /// Creates the directory, with a file of mode 0400 for each of `files`. If debugfs cannot
    /// create the directory or a file, this is no error, and it is missing.
    ///
    /// Fails with `ENOMEM`.
    ///
    /// Context: may sleep.
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
        // SAFETY: `name` is NUL-terminated and lives during the call. By its type invariant `root`
        // is a directory or an error, which debugfs returns in turn.
        let dentry = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), root.0) };
        // INVARIANT: `debugfs_create_dir` has just returned `dentry`, and there is no file in it
        // yet.
        let dir = Self {
            dentry,
            files: entries,
            _root: root.clone(),
            _module: PhantomData,
        };
        let operations: &'static _ = &Self::OPERATIONS;
        for ((name, _), file) in files.iter().zip(&dir.files) {
            // INVARIANT: `file` is an element of `files`, which does not change from here on; a
            // move of `dir` does not move the elements.
            // SAFETY: `name` is NUL-terminated, and by the type invariant `dentry` is a directory
            // or an error. The operations are for private data that is a `File<T>`, which stays
            // until the directory is removed. They live as long as the module, which they name as
            // their owner.
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

    /// Opens a file.
    ///
    /// # Safety
    ///
    /// Only debugfs may call this, for a file in a directory of this type that is not removed
    /// during the call.
    unsafe extern "C" fn open(
        inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> ffi::c_int {
        // SAFETY: debugfs passes the valid inode of the file.
        let data = unsafe { (*inode).i_private };
        // SAFETY: By the safety requirements the file is valid and being opened, and has no private
        // data yet. `show` takes private data of this kind.
        unsafe { bindings::single_open(file, Some(Self::show), data) }
    }

    /// Prints the content of a file.
    ///
    /// # Safety
    ///
    /// Only `seq_read` may call this, for a file that [`Self::open`] has opened. debugfs starts no
    /// read of a file that was removed, and the removal waits for reads that have started.
    unsafe extern "C" fn show(seq: *mut bindings::seq_file, _: *mut ffi::c_void) -> ffi::c_int {
        // SAFETY: By the type invariant the private data of the file is a `File<T>` of a directory
        // that was not removed, and whose removal waits for this read.
        let file = unsafe { &*(*seq).private.cast::<File<T>>() };
        // SAFETY: `seq_read` passes a valid sequence, whose lock it holds during the call.
        let seq = unsafe { SeqFile::from_raw(seq) };
        seq_print!(seq, "{}", file);
        0
    }
}

impl<T: Send + Sync + 'static, M: ModuleMetadata> Drop for Dir<T, M> {
    /// Removes the directory and waits for readers of its files.
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant `debugfs_create_dir` has returned `dentry`, and it was not
        // removed. The files are removed with it, and their readers are waited for, before `files`
        // is dropped.
        unsafe { bindings::debugfs_remove(self.dentry) };
    }
}
