// SPDX-License-Identifier: GPL-2.0

//! Module parameters that user space can read in sysfs.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use crate::{bindings, prelude::*, str::as_char_ptr_in_const_context};
use core::cell::UnsafeCell;

/// A parameter of C type `int`, in `/sys/module/*/parameters`, set when the module is loaded.
///
/// # Invariants
///
/// The value is an aligned int that everybody, C included, reads and writes whole.
pub struct IntParam(UnsafeCell<i32>);

// SAFETY: By the type invariant.
unsafe impl Sync for IntParam {}

impl IntParam {
    /// A parameter with a default.
    #[inline]
    pub const fn new(default: i32) -> Self {
        // INVARIANT: The functions below do so, and C for as long as it has no other operations
        // than `param_ops_int`.
        Self(UnsafeCell::new(default))
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> i32 {
        // SAFETY: By the type invariant.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the value by the one in force, for user space to see.
    #[inline]
    pub fn adjust(&self, value: i32) {
        // SAFETY: By the type invariant.
        unsafe { self.0.get().write_volatile(value) };
    }

    /// For [`int_param!`](crate::int_param).
    #[inline]
    pub const fn as_ptr(&self) -> *mut c_void {
        self.0.get().cast()
    }
}

/// What the parameter code finds in the section `__param`.
///
/// # Invariants
///
/// Name and value are there for as long as the module is loaded, and nobody writes this.
#[repr(transparent)]
pub struct Registration(bindings::kernel_param);

// SAFETY: By the type invariant.
unsafe impl Sync for Registration {}

impl Registration {
    /// For [`int_param!`](crate::int_param): a parameter readable by all in sysfs.
    pub const fn new(
        name: &'static CStr,
        module: *mut bindings::module,
        value: &'static IntParam,
    ) -> Self {
        // INVARIANT: They are static.
        Self(bindings::kernel_param {
            name: as_char_ptr_in_const_context(name),
            mod_: module,
            ops: &raw const bindings::param_ops_int,
            perm: 0o444,
            level: -1,
            flags: 0,
            __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
                arg: value.as_ptr(),
            },
        })
    }
}

/// Declares a static [`IntParam`] of the module and registers it under a name. The description is
/// what goes to the section `.modinfo`: `b"parm=name:text\0parmtype=name:int\0"`.
// The module that calls the macro is meant.
#[allow(clippy::crate_in_macro_def)]
#[macro_export]
macro_rules! int_param {
    ($(#[$doc:meta])* $name:ident, $cname:literal, $default:literal, $info:literal) => {
        $(#[$doc])*
        static $name: $crate::module_param::int_param::IntParam =
            $crate::module_param::int_param::IntParam::new($default);

        const _: () = {
            #[link_section = "__param"]
            #[used(compiler)]
            static PARAM: $crate::module_param::int_param::Registration =
                $crate::module_param::int_param::Registration::new(
                    $cname,
                    $crate::module::this_module::<crate::LocalModule>().as_ptr(),
                    &$name,
                );

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static INFO: [u8; $info.len()] = *$info;
        };
    };
}
