// SPDX-License-Identifier: GPL-2.0

//! The kernel crate with what it lacks for this driver, for builds outside of the kernel tree.
//!
//! Every file below is one of the kernel tree's `rust/kernel`. Where that has a file for the
//! module, too, the module's items here stand for those that the file would have in addition.

extern crate self as kernel;

pub use upstream::*;

mod stock;

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

    mod int_param;

    pub use int_param::IntParam;
}

pub mod net {
    //! Networking.

    pub mod addr;
    pub mod data_ready;
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

    pub use crate::{
        current,
        module_with_params as module, //
    };
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

    mod process;

    pub use process::{
        Comm,
        Thread, //
    };

    pub use crate::stock::{
        CurrentTask,
        Task, //
    };
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

    pub use crate::declare_trace;
}

pub mod workqueue {
    //! Workqueues.

    pub use upstream::workqueue::*;

    mod builder;

    pub use builder::{
        Builder,
        OwnedQueue, //
    };

    pub use crate::stock::Queue;
}
