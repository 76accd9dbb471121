// SPDX-License-Identifier: GPL-2.0

//! Tag sets, which hold the requests of one or more disks.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::operations::{
    Operations,
    OperationsVTable, //
};
use crate::{
    bindings,
    cpu::nr_cpu_ids,
    error::to_result,
    ffi,
    prelude::*,
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    mem, //
};

mod flags;

pub use flags::{
    Flag,
    Flags, //
};

/// The hardware queues of one or more disks, and the requests of each.
///
/// C struct: `struct blk_mq_tag_set`.
///
/// Context: may sleep, when it is dropped, too.
///
/// # Invariants
///
/// The tag set was allocated for `T`, so that the private data of each of its requests is an
/// initialised `T::RequestData`.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::{
///         tag_set::Flag,
///         Operations,
///         TagSet, //
///     },
///     sync::Arc, //
/// };
///
/// fn create<T: Operations>(queues: u32) -> Result<Arc<TagSet<T>>> {
///     let flags = Flag::Blocking | Flag::NoDefaultScheduler;
///     Arc::pin_init(TagSet::new(queues, 128, 1, flags), GFP_KERNEL)
/// }
/// ```
#[pin_data(PinnedDrop)]
#[repr(transparent)]
pub struct TagSet<T: Operations> {
    #[pin]
    inner: Opaque<bindings::blk_mq_tag_set>,
    _operations: PhantomData<T>,
}

// SAFETY: Any thread may free a tag set, and drop the data of its requests, which is `Send`.
unsafe impl<T: Operations> Send for TagSet<T> {}
// SAFETY: The methods of a shared tag set call functions of the block layer that take the locks
// they need, or read single words.
unsafe impl<T: Operations> Sync for TagSet<T> {}

impl<T: Operations> TagSet<T> {
    /// Creates a tag set of `nr_hw_queues` hardware queues, which the block layer reduces to the
    /// number of CPUs, with `num_tags` requests each. `num_maps` is the number of kinds of queues.
    ///
    /// Fails with `EINVAL` if a number is out of range, and with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn new(
        nr_hw_queues: u32,
        num_tags: u32,
        num_maps: u32,
        flags: impl Into<Flags>,
    ) -> impl PinInit<Self, Error> {
        const {
            // The block layer places the data right behind the `struct request`.
            assert!(mem::align_of::<T::RequestData>() <= mem::align_of::<bindings::request>());
            assert!(mem::size_of::<T::RequestData>() <= u32::MAX as usize);
        };
        let flags = flags.into();
        try_pin_init!(Self {
            // SAFETY: The slot is valid for writes, and the first statement initialises all of it.
            // It is pinned, and its operations are static. If the allocation fails, there is
            // nothing to free.
            // INVARIANT: The tag set was allocated with the operations of `T`, of which
            // `init_request` initialises the private data.
            inner <- Opaque::try_ffi_init(|slot: *mut bindings::blk_mq_tag_set| unsafe {
                slot.write(bindings::blk_mq_tag_set {
                    ops: &const { OperationsVTable::<T>::VTABLE },
                    nr_hw_queues,
                    queue_depth: num_tags,
                    nr_maps: num_maps,
                    numa_node: bindings::NUMA_NO_NODE,
                    cmd_size: mem::size_of::<T::RequestData>() as u32,
                    flags: flags.into(),
                    ..pin_init::zeroed()
                });
                to_result(bindings::blk_mq_alloc_tag_set(slot))
            }),
            _operations: PhantomData,
        })
    }

    /// # Safety
    ///
    /// `set` must point to a tag set that satisfies the invariants of [`TagSet`] for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(set: *mut bindings::blk_mq_tag_set) -> &'a Self {
        // SAFETY: The type is transparent over an `Opaque`. By the safety requirements the tag set
        // is valid for `'a` and satisfies the invariants.
        unsafe { &*set.cast() }
    }

    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::blk_mq_tag_set {
        self.inner.get()
    }

    /// Returns the number of hardware queues. Another task may change it at any time.
    ///
    /// Context: any.
    #[inline]
    pub fn hw_queue_count(&self) -> u32 {
        // SAFETY: By the type invariant the tag set is allocated. A volatile read of a word does
        // not tear.
        unsafe { (&raw const (*self.as_raw()).nr_hw_queues).read_volatile() }
    }

    /// Changes the number of hardware queues to `nr_hw_queues`, but to no more than there are CPUs.
    ///
    /// Fails with `EINVAL` if the number is 0 or too large, and with `ENOMEM`. The number may have
    /// changed in part then.
    ///
    /// Context: may sleep, until no request of the tag set's disks is in flight. No lock that such
    /// a request needs may be held.
    pub fn update_hw_queue_count(&self, nr_hw_queues: u32) -> Result {
        let nr = ffi::c_int::try_from(nr_hw_queues).map_err(|_| EINVAL)?;
        if nr == 0 {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariant the tag set is allocated. The function takes the locks that
        // it needs.
        unsafe { bindings::blk_mq_update_nr_hw_queues(self.as_raw(), nr) };
        if self.hw_queue_count() < nr_hw_queues.min(nr_cpu_ids()) {
            return Err(ENOMEM);
        }
        Ok(())
    }
}

#[pinned_drop]
impl<T: Operations> PinnedDrop for TagSet<T> {
    #[inline]
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the tag set is allocated. A disk keeps a reference to its
        // tag set until the disk is freed, so that no queue uses this one.
        unsafe { bindings::blk_mq_free_tag_set(self.as_raw()) };
    }
}
