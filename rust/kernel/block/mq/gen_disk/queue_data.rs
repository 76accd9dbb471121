// SPDX-License-Identifier: GPL-2.0

//! The data that the queue functions of a disk get.

use crate::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full, //
        },
        Arc,
        ArcBorrow, //
    }, //
};
use core::ptr;

/// A slot for the data that the queue functions of a disk get.
///
/// # Invariants
///
/// The pointer is null, or one from [`Arc::into_raw`] for a reference that the value owns.
pub(super) struct QueueDataSlot<Q>(Atomic<*mut Q>);

impl<Q> QueueDataSlot<Q> {
    pub(super) fn new() -> Self {
        // INVARIANT: The pointer is null.
        Self(Atomic::new(ptr::null_mut()))
    }

    /// # Safety
    ///
    /// Data that is taken out of the slot during `'a` must stay referenced for `'a`.
    #[inline]
    pub(super) unsafe fn get<'a>(&self) -> Option<ArcBorrow<'a, Q>> {
        let data = self.0.load(Acquire);
        // SAFETY: By the type invariant the pointer is from `Arc::into_raw`, of a reference that
        // the slot owned at the load. By the safety requirements that or another one exists for
        // `'a`, and the slot gives out no mutable access to the data.
        (!data.is_null()).then(|| unsafe { ArcBorrow::from_raw(data) })
    }

    pub(super) fn set(&self, data: Arc<Q>) -> Result<(), Arc<Q>> {
        let new = Arc::into_raw(data).cast_mut();
        // INVARIANT: If the exchange succeeds, the pointer is from `Arc::into_raw` and the slot
        // owns its reference.
        match self.0.cmpxchg(ptr::null_mut(), new, Full) {
            Ok(_) => Ok(()),
            // SAFETY: The pointer is from the `Arc::into_raw` above. The failed exchange has not
            // stored it, so that its reference is still this function's.
            Err(_) => Err(unsafe { Arc::from_raw(new) }),
        }
    }

    pub(super) fn take(&self) -> Option<Arc<Q>> {
        // INVARIANT: The pointer is null now, and the reference has moved to this function.
        let data = self.0.xchg(ptr::null_mut(), Full);
        // SAFETY: By the type invariant the pointer is from `Arc::into_raw`, of a reference that
        // the slot owned until the exchange.
        (!data.is_null()).then(|| unsafe { Arc::from_raw(data) })
    }
}

impl<Q> Drop for QueueDataSlot<Q> {
    fn drop(&mut self) {
        drop(self.take());
    }
}
