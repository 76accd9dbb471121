// SPDX-License-Identifier: GPL-2.0

//! The kernel crate with what it lacks for this driver, for builds outside of the kernel tree.
//!
//! Every file below is one of the kernel tree's `rust/kernel`. Where that has a file for the
//! module, too, the module's items here stand for those that the file would have in addition. A
//! crate can add methods to its own types only: where one of the kernel's types gets methods, a
//! type of the same name stands for it here, and refers to it for the methods that it has already.

extern crate self as kernel;

pub use upstream::*;

/// The kernel's bindings, and the prototypes of the C helpers under `rust/helpers`.
#[allow(
    clippy::all,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]
pub mod bindings {
    use upstream::ffi;

    pub use upstream::bindings::*;

    include!(env!("NBD_BINDINGS"));
}

/// The module of operations that unit tests of this crate implement, as the kernel crate has it.
#[allow(dead_code)]
struct LocalModule;

impl ModuleMetadata for LocalModule {
    const NAME: &'static str::CStr = c"rust_kernel";

    const THIS_MODULE: ThisModule = {
        // SAFETY: The kernel takes a null pointer for a module that is built in.
        unsafe { ThisModule::from_ptr(core::ptr::null_mut()) }
    };
}

pub mod block {
    //! Types for working with the block layer.

    pub use upstream::block::*;

    mod major;
    pub mod mq;
    mod status;

    pub use major::Major;
    pub use status::BlkStatus;
}

pub mod bvec;
pub mod capability;

pub mod cred {
    //! Credentials.

    pub use upstream::cred::*;

    mod scope;

    pub use scope::with_kernel_creds;
}

pub mod debugfs {
    //! debugfs.

    pub use upstream::debugfs::*;

    pub mod owned;
}

pub mod mm {
    //! Memory management.

    pub use upstream::mm::*;

    mod scope;

    pub use scope::{
        NoIo,
        NoReclaim, //
    };
}

pub mod module {
    //! Modules.

    pub use upstream::module::*;

    mod reference;
    mod version;

    pub use reference::ModuleRef;
}

pub mod module_param {
    //! Parameters of modules.

    pub use upstream::module_param::*;

    pub mod int_param;
}

pub mod net {
    //! Networking.

    pub mod addr;
    pub mod netlink {
        //! Generic netlink: the kernel's file, since what it keeps private gets methods here.

        use crate::bindings;

        include!("net/netlink_generated.rs");

        /// What the kernel's own method of the name does, which is private to its crate.
        trait AsRaw {
            fn as_raw(&self) -> u32;
        }

        impl AsRaw for alloc::Flags {
            #[inline]
            fn as_raw(&self) -> u32 {
                // SAFETY: The type has the size of its one field, which is a `u32`.
                unsafe { core::mem::transmute(*self) }
            }
        }

        mod attr;
        mod command;
        mod message;

        pub use attr::{
            attr_size,
            Attr,
            Items,
            Parsed,
            Policy, //
        };
        pub use command::{
            CommandFamily,
            CommandRegistration,
            Commands,
            Info,
            Operation, //
        };
        pub use message::Nest;
    }
    pub mod ready;
    pub mod socket;
}

pub mod prelude {
    //! What most files need.

    pub use crate::current;
    pub use upstream::prelude::*;
}

pub mod ratelimit;

pub mod sync {
    //! Synchronisation primitives.

    pub use upstream::sync::*;

    pub mod wait;
}

pub mod task {
    //! Tasks.

    pub use upstream::task::*;

    use crate::{
        sync::aref::AlwaysRefCounted,
        types::NotThreadSafe, //
    };
    use core::{
        ops::Deref,
        ptr::NonNull, //
    };

    mod process;

    pub use process::{
        Comm,
        Thread, //
    };

    /// A task.
    #[repr(transparent)]
    pub struct Task(upstream::task::Task);

    impl Task {
        /// Returns a reference to the current task.
        ///
        /// # Safety
        ///
        /// The task must not leave the context in which this is called while there is the
        /// reference.
        #[inline]
        pub unsafe fn current() -> impl Deref<Target = CurrentTask> {
            struct Current;

            impl Deref for Current {
                type Target = CurrentTask;

                #[inline]
                fn deref(&self) -> &CurrentTask {
                    // SAFETY: The pointer is to the current task, which is valid, and both types
                    // are transparent wrappers of it. The caller of `current` has promised that the
                    // task stays in the context.
                    unsafe { &*upstream::task::Task::current_raw().cast() }
                }
            }

            Current
        }
    }

    impl Deref for Task {
        type Target = upstream::task::Task;

        #[inline]
        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    // SAFETY: These are the functions of the kernel's type, of which this one is a transparent
    // wrapper.
    unsafe impl AlwaysRefCounted for Task {
        #[inline]
        fn inc_ref(&self) {
            self.0.inc_ref();
        }

        #[inline]
        unsafe fn dec_ref(task: NonNull<Self>) {
            // SAFETY: The requirements are the same.
            unsafe { upstream::task::Task::dec_ref(task.cast()) };
        }
    }

    /// The current task.
    #[repr(transparent)]
    pub struct CurrentTask(Task, NotThreadSafe);

    impl Deref for CurrentTask {
        type Target = Task;

        #[inline]
        fn deref(&self) -> &Task {
            &self.0
        }
    }
}

pub mod time {
    //! Time.

    pub use upstream::time::*;

    mod tick;

    pub use tick::{
        jiffies,
        jiffies_since, //
    };
}

pub mod tracepoint {
    //! Tracepoints.

    pub use upstream::tracepoint::*;

    mod do_trace;
}

pub mod workqueue {
    //! Workqueues.

    pub use upstream::workqueue::*;

    use crate::bindings;
    use core::ops::Deref;

    mod builder;

    pub use builder::{
        Builder,
        OwnedQueue, //
    };

    /// A kernel work queue.
    #[repr(transparent)]
    pub struct Queue(upstream::workqueue::Queue);

    impl Queue {
        /// Creates a reference to a C workqueue.
        ///
        /// # Safety
        ///
        /// The pointer must be to a workqueue that is valid for `'a`.
        #[inline]
        pub unsafe fn from_raw<'a>(queue: *const bindings::workqueue_struct) -> &'a Self {
            // SAFETY: By the safety requirements the workqueue is valid for `'a`. Both types are
            // transparent wrappers of it.
            unsafe { &*queue.cast() }
        }
    }

    impl Deref for Queue {
        type Target = upstream::workqueue::Queue;

        #[inline]
        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }
}

/// Returns the current task.
#[macro_export]
macro_rules! current {
    () => {
        // SAFETY: The reference to the current task does not outlive the caller's scope, which the
        // task leaves before it leaves its context.
        unsafe { &*$crate::task::Task::current() }
    };
}
