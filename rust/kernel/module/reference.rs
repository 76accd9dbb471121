// SPDX-License-Identifier: GPL-2.0

//! Keeping a module loaded, and its version.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use crate::{
    bindings,
    module::{this_module, ModuleMetadata}, //
};
use core::marker::PhantomData;

/// A reference that keeps the module `M` from being unloaded.
///
/// Who drops the last one in the module's own code must be waited for when the module is unloaded.
///
/// # Invariants
///
/// The value stands for one count of the module's references.
pub struct ModuleRef<M: ModuleMetadata>(PhantomData<fn() -> M>);

impl<M: ModuleMetadata> ModuleRef<M> {
    /// Takes a reference, unless the module is being unloaded. Does not sleep.
    #[inline]
    pub fn try_get() -> Option<Self> {
        // SAFETY: The module is that of this code, which is there.
        if !unsafe { bindings::try_module_get(this_module::<M>().as_ptr()) } {
            return None;
        }
        // INVARIANT: The count was taken just above.
        Some(Self(PhantomData))
    }
}

impl<M: ModuleMetadata> Drop for ModuleRef<M> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a count to give back.
        unsafe { bindings::module_put(this_module::<M>().as_ptr()) };
    }
}
