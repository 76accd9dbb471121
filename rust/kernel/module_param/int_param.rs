// SPDX-License-Identifier: GPL-2.0

//! Module parameters that C's operations read and write.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use crate::prelude::*;
use core::cell::UnsafeCell;

/// A parameter of C type `int`, of type `c_int` in [`module!`], which creates the value. It is set
/// when the module is loaded and, as its permissions say, shown and set in
/// `/sys/module/*/parameters`.
///
/// # Examples
///
/// ```
/// use kernel::module_param::IntParam;
///
/// static DEPTH: IntParam = IntParam::new(16);
///
/// assert_eq!(DEPTH.value(), 16);
/// // The next power of two is what is used, and what user space sees.
/// DEPTH.set_value(DEPTH.value().max(17));
/// assert_eq!(DEPTH.value(), 17);
/// ```
///
/// # Invariants
///
/// The value is an aligned `int` that Rust and C code only read and write as a whole word.
///
/// [`module!`]: macros::module
pub struct IntParam(UnsafeCell<c_int>);

// SAFETY: By the type invariant all code accesses the value as a whole word, and methods by
// volatile accesses, so that a shared reference in several threads sees no torn value.
unsafe impl Sync for IntParam {}

impl IntParam {
    /// Creates a parameter with a default value.
    ///
    /// Context: any.
    #[inline]
    pub const fn new(default: c_int) -> Self {
        // INVARIANT: The methods access the value as a whole word, and so does C code, since
        // `module!` gives the parameter the operations `param_ops_int`.
        Self(UnsafeCell::new(default))
    }

    /// Returns the value.
    ///
    /// Context: any.
    #[inline]
    pub fn value(&self) -> c_int {
        // SAFETY: The pointer is valid and aligned, and by the type invariant no other access tears
        // the value.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the value by the one that is in force, which user space sees then.
    ///
    /// Context: any.
    #[inline]
    pub fn set_value(&self, value: c_int) {
        // SAFETY: The pointer is valid and aligned. By the type invariant every other access is one
        // of the whole word, which a volatile write does not tear.
        unsafe { self.0.get().write_volatile(value) };
    }

    /// Returns the pointer that [`module!`](macros::module) registers.
    ///
    /// Context: any.
    #[inline]
    pub const fn as_void_ptr(&self) -> *mut c_void {
        self.0.get().cast()
    }
}
