// SPDX-License-Identifier: GPL-2.0

//! What stands for items of a stock kernel that the patches for the kernel tree change.
//!
//! A crate can add methods to its own types only. A type that gets methods is therefore one of this
//! crate, of the same name, and refers to the kernel's for the methods that this has already.

use crate::{
    bindings,
    sync::aref::AlwaysRefCounted,
    types::NotThreadSafe, //
};
use core::{
    ops::Deref,
    ptr::NonNull, //
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

/// Returns the current task.
#[macro_export]
macro_rules! current {
    () => {
        // SAFETY: The reference to the current task does not outlive the caller's scope, which the
        // task leaves before it leaves its context.
        unsafe { &*$crate::task::Task::current() }
    };
}

/// The kernel's `module!`, with parameters of type `c_int` that have permissions. It is for modules
/// that are loaded.
///
/// The kernel's macro makes a module for the parameters, too. It is therefore called in a module of
/// its own.
#[macro_export]
macro_rules! module_with_params {
    (@split $type:ident, $name:literal, [$($fields:tt)*] params: { $($params:tt)* }, ) => {
        const __LOG_PREFIX: &[u8] = ::core::concat!($name, "\0").as_bytes();

        type LocalModule = $type;

        mod __module {
            use super::$type;

            $crate::macros::module! {
                type: $type,
                name: $name,
                $($fields)*
            }
        }

        mod module_parameters {
            $crate::module_with_params!(@params $($params)*);
        }
    };
    (@split $type:ident, $name:literal, [$($fields:tt)*] $key:ident: $value:tt, $($rest:tt)*) => {
        $crate::module_with_params!(@split $type, $name, [$($fields)* $key: $value,] $($rest)*);
    };
    (@params $(
        $param:ident: c_int {
            default: $default:expr,
            permissions: $permissions:literal,
            description: $description:literal,
        },
    )*) => {$(
        #[allow(non_upper_case_globals)]
        pub(crate) static $param: $crate::module_param::IntParam =
            $crate::module_param::IntParam::new($default);

        const _: () = {
            #[link_section = "__param"]
            #[used(compiler)]
            static PARAM: $crate::module_param::KernelParam =
                $crate::module_param::KernelParam::new($crate::bindings::kernel_param {
                    name: ::core::concat!(::core::stringify!($param), "\0").as_ptr().cast(),
                    mod_: $crate::module::this_module::<super::LocalModule>().as_ptr(),
                    ops: &raw const $crate::bindings::param_ops_int,
                    perm: $permissions,
                    level: -1,
                    flags: 0,
                    __bindgen_anon_1: $crate::bindings::kernel_param__bindgen_ty_1 {
                        arg: $param.as_void_ptr(),
                    },
                });

            const TEXT: &str = ::core::concat!(
                "parm=", ::core::stringify!($param), ":", $description, "\0",
                "parmtype=", ::core::stringify!($param), ":int\0"
            );

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static INFO: [u8; TEXT.len()] = match TEXT.as_bytes().first_chunk() {
                Some(bytes) => *bytes,
                None => [0; TEXT.len()],
            };
        };
    )*};
    (type: $type:ident, name: $name:literal, $($rest:tt)*) => {
        $crate::module_with_params!(@split $type, $name, [] $($rest)*);
    };
}

/// Declares a function for each tracepoint that a C file defines, and one that says whether the
/// tracepoint is on. The kernel's macro knows the kernel's tracepoints only.
#[macro_export]
macro_rules! declare_trace {
    ($(
        $(#[$attr:meta])*
        $pub:vis unsafe fn $name:ident($($argname:ident: $argtyp:ty),* $(,)?);
    )*) => {$($crate::macros::paste! {
        /// Returns whether the tracepoint is on, so that its arguments are of use.
        #[cfg_attr(not(CONFIG_TRACEPOINTS), allow(dead_code))]
        #[inline(always)]
        $pub fn [<$name _enabled>]() -> bool {
            #[cfg(CONFIG_TRACEPOINTS)]
            // SAFETY: The key of a tracepoint can be read at any time.
            return unsafe {
                $crate::jump_label::static_branch_unlikely!(
                    $crate::bindings::[<__tracepoint_ $name>],
                    $crate::bindings::tracepoint,
                    key
                )
            };

            #[cfg(not(CONFIG_TRACEPOINTS))]
            false
        }

        $(#[$attr])*
        #[inline(always)]
        $pub unsafe fn $name($($argname: $argtyp),*) {
            #[cfg(CONFIG_TRACEPOINTS)]
            if [<$name _enabled>]() {
                // SAFETY: The caller gives arguments that the tracepoint may have.
                unsafe { $crate::bindings::[<rust_do_trace_ $name>]($($argname),*) };
            }

            #[cfg(not(CONFIG_TRACEPOINTS))]
            {
                $(let _unused = $argname;)*
            }
        }
    })*};
}
