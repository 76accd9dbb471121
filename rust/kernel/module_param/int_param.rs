// SPDX-License-Identifier: GPL-2.0

//! Module parameters that user space can read in sysfs.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use crate::{bindings, prelude::*, str::as_char_ptr_in_const_context};
use core::cell::UnsafeCell;

/// A parameter of C type `int`, which is set when the module is loaded and shown in
/// `/sys/module/*/parameters`.
///
/// # Invariants
///
/// The value is an aligned `int` that Rust and C code only read and write as a whole word.
pub struct IntParam(UnsafeCell<i32>);

// SAFETY: By the type invariant all code accesses the value as a whole word, and methods by
// volatile accesses, so that a shared reference in several threads sees no torn value.
unsafe impl Sync for IntParam {}

impl IntParam {
    /// Creates a parameter with a default value.
    ///
    /// Context: any.
    #[inline]
    pub const fn new(default: i32) -> Self {
        // INVARIANT: The methods access the value as a whole word, and so does C code, since
        // `Registration::new` gives the parameter the operations `param_ops_int`.
        Self(UnsafeCell::new(default))
    }

    /// Returns the value.
    ///
    /// Context: any.
    #[inline]
    pub fn get(&self) -> i32 {
        // SAFETY: The pointer is valid and aligned, and by the type invariant no other access tears
        // the value.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the value by the one that is in force, which user space sees then.
    ///
    /// Context: any.
    #[inline]
    pub fn adjust(&self, value: i32) {
        // SAFETY: The pointer is valid and aligned. By the type invariant every other access is one
        // of the whole word, which a volatile write does not tear.
        unsafe { self.0.get().write_volatile(value) };
    }

    /// Returns the pointer that [`int_param!`](crate::int_param) registers.
    ///
    /// Context: any.
    #[inline]
    pub const fn as_ptr(&self) -> *mut c_void {
        self.0.get().cast()
    }
}

/// The entry of a parameter in the section `__param`.
///
/// C struct: `struct kernel_param`.
///
/// # Invariants
///
/// The name and the value are static, and the entry is not written.
#[repr(transparent)]
pub struct Registration(bindings::kernel_param);

// SAFETY: By the type invariant the entry is not written, and what it points to is static and, like
// the `IntParam`, may be used by any thread.
unsafe impl Sync for Registration {}

impl Registration {
    /// Creates the entry of a parameter of mode 0444, for [`int_param!`](crate::int_param).
    ///
    /// Context: any.
    pub const fn new(
        name: &'static CStr,
        module: *mut bindings::module,
        value: &'static IntParam,
    ) -> Self {
        // INVARIANT: The references are `'static`. The caller puts the entry into a read-only
        // static.
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
/// the content for the section `.modinfo`: `b"parm=name:text\0parmtype=name:int\0"`.
// `crate` stands for the module that calls the macro.
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
