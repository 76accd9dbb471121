// SPDX-License-Identifier: GPL-2.0

//! References that keep a module loaded.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use crate::{
    bindings,
    module::{
        this_module,
        ModuleMetadata, //
    }, //
};
use core::marker::PhantomData;

/// A reference that keeps the module `M` from being unloaded.
///
/// If code of the module itself drops the last reference, the module's exit must wait for that code
/// to finish, since it runs on after the drop.
///
/// Context: any, when it is dropped.
///
/// # Examples
///
/// ```
/// use kernel::{
///     module::ModuleRef,
///     ModuleMetadata, //
/// };
///
/// /// What outlives the last close of a device.
/// struct Work<M: ModuleMetadata> {
///     _module: ModuleRef<M>,
/// }
///
/// fn start<M: ModuleMetadata>() -> Result<Work<M>> {
///     let _module = ModuleRef::try_get().ok_or(ENODEV)?;
///     Ok(Work { _module })
/// }
/// ```
///
/// # Invariants
///
/// The value owns one count of the module's references.
pub struct ModuleRef<M: ModuleMetadata>(PhantomData<fn() -> M>);

impl<M: ModuleMetadata> ModuleRef<M> {
    /// Takes a reference. [`None`] if the module is being unloaded.
    ///
    /// Context: any.
    #[inline]
    pub fn try_get() -> Option<Self> {
        // SAFETY: The module is valid: `M` is the module that the calling code is part of, so that
        // it is loaded.
        if !unsafe { bindings::try_module_get(this_module::<M>().as_ptr()) } {
            return None;
        }
        // INVARIANT: `try_module_get` has taken the count.
        Some(Self(PhantomData))
    }
}

impl<M: ModuleMetadata> Drop for ModuleRef<M> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value owns one count, which keeps the module valid
        // until this call gives it back.
        unsafe { bindings::module_put(this_module::<M>().as_ptr()) };
    }
}
