// SPDX-License-Identifier: GPL-2.0

//! Requests, and the types for the states that they are in.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    cursor::DataPosition,
    gen_disk::GenDisk,
    Operations, //
};
use crate::{
    bindings,
    block::BlkStatus,
    error::Error,
    ffi,
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

mod flag;

pub use flag::{
    Flag,
    Flags, //
};

/// A request of a disk of `T`, in any state.
///
/// C struct: `struct request`.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::mq::{
///         Operations,
///         Request,
///         TimerReturn, //
///     },
///     sync::atomic::{
///         Atomic,
///         Relaxed, //
///     }, //
/// };
///
/// /// For `Operations::timeout`. The data counts how often it was called for the request.
/// fn timed_out<T: Operations<RequestData = Atomic<u32>>>(rq: &Request<T>) -> TimerReturn {
///     let timeouts = rq.data().fetch_add(1, Relaxed) + 1;
///     pr_warn!("a request has waited for {timeouts} timeouts\n");
///     TimerReturn::ResetTimer
/// }
/// ```
///
/// # Invariants
///
/// The request was allocated by a tag set of `T`. For as long as the reference lives, the request
/// stays allocated, and its data is an initialised `T::RequestData`.
#[repr(transparent)]
pub struct Request<T: Operations>(Opaque<bindings::request>, PhantomData<T>);

// SAFETY: A shared reference gives access to the driver's data, which is `Sync`, and to a raw
// pointer.
unsafe impl<T: Operations> Sync for Request<T> {}

impl<T: Operations> Request<T> {
    /// # Safety
    ///
    /// `rq` must point to a request that satisfies the invariants of [`Request`] for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(rq: *mut bindings::request) -> &'a Self {
        // SAFETY: The type is transparent over an `Opaque`. By the safety requirements the request
        // stays allocated for `'a` and satisfies the invariants.
        unsafe { &*rq.cast() }
    }

    /// Returns the C request, for instance for a tracepoint. To read a field that may change needs
    /// what C code needs for that.
    ///
    /// Context: any.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::request {
        self.0.get()
    }

    /// Returns the driver's own data of the request. It outlives the request's I/O: it is stale
    /// until the driver writes it for the present one.
    ///
    /// Context: any.
    #[inline]
    pub fn data(&self) -> &T::RequestData {
        // SAFETY: By the type invariant the private data of the request is an initialised
        // `T::RequestData` while `self` is borrowed. No mutable reference to it is made before it
        // is dropped.
        unsafe { &*bindings::blk_mq_rq_to_pdu(self.as_raw()).cast() }
    }
}

/// Sets the timeout, in jiffies, for the next start of a request's timer; 0 stands for the queue's
/// timeout. If another task starts the request at the same time, either value may take effect.
///
/// # Safety
///
/// `rq` must point to an allocated request.
#[inline]
pub(super) unsafe fn set_timeout(rq: *mut bindings::request, jiffies: ffi::c_uint) {
    // SAFETY: By the safety requirements the request is allocated. The block layer reads and writes
    // the word without a lock, too; a volatile write does not tear.
    unsafe { (&raw mut (*rq).timeout).write_volatile(jiffies) };
}

/// The operation of a request.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::Op;
///
/// fn has_payload(op: Op) -> bool {
///     matches!(op, Op::Read | Op::Write)
/// }
///
/// assert!(has_payload(Op::Read) && !has_payload(Op::Discard));
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Read from the disk into the request's segments.
    Read,
    /// Write the request's segments to the disk.
    Write,
    /// Make durable what was written before.
    Flush,
    /// Discard the contents of the sectors; there are no segments.
    Discard,
    /// Write zeroes to the sectors; there are no segments.
    WriteZeroes,
    /// An operation that this abstraction does not know.
    Other,
}

/// A request that the driver has started. The block layer does not change it, so that it can be
/// read.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     Operations,
///     StartedRequest, //
/// };
///
/// /// Whether a device that takes `max` segments at a time can transfer the request at once.
/// fn fits<T: Operations>(rq: &StartedRequest<T>, max: usize) -> bool {
///     let mut left = max;
///     rq.for_each_segment(|_| {
///         let fits = left > 0;
///         left = left.saturating_sub(1);
///         fits
///     })
/// }
/// ```
///
/// # Invariants
///
/// The request was started, belongs to a disk that was made for `T`, and is neither ended nor
/// requeued while the value lives.
#[repr(transparent)]
pub struct StartedRequest<T: Operations>(NonNull<bindings::request>, PhantomData<T>);

// SAFETY: A request is not bound to a thread. What a shared reference gives access to is constant
// while the request is started, or `Sync`.
unsafe impl<T: Operations> Send for StartedRequest<T> {}
// SAFETY: What a shared reference gives access to is constant while the request is started, or
// `Sync`.
unsafe impl<T: Operations> Sync for StartedRequest<T> {}

impl<T: Operations> Deref for StartedRequest<T> {
    type Target = Request<T>;

    #[inline]
    fn deref(&self) -> &Request<T> {
        // SAFETY: By the type invariant the request is started while the value lives, hence
        // allocated, and belongs to a disk of `T`.
        unsafe { Request::from_raw(self.0.as_ptr()) }
    }
}

impl<T: Operations> StartedRequest<T> {
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`StartedRequest`] while the value lives.
    #[inline]
    pub(super) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: By the safety requirements the request satisfies them.
        Self(rq, PhantomData)
    }

    #[inline]
    pub(super) fn as_non_null(&self) -> NonNull<bindings::request> {
        self.0
    }

    /// Returns the disk that the request is for.
    ///
    /// Context: any.
    #[inline]
    pub fn disk(&self) -> &GenDisk<T::Disk> {
        // SAFETY: By the type invariant the request is started and belongs to a disk that was made
        // for `T`. A disk is not freed while a request of it is in flight.
        unsafe { GenDisk::from_raw((*(*self.0.as_ptr()).q).disk) }
    }

    /// Returns the request's operation.
    ///
    /// Context: any.
    pub fn op(&self) -> Op {
        // SAFETY: By the type invariant the request is started, so that it is valid and its flags
        // are constant.
        match unsafe { bindings::req_op(self.0.as_ptr()) } {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_FLUSH => Op::Flush,
            bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// Returns the position on the disk, in sectors of 512 bytes.
    ///
    /// Context: any.
    #[inline]
    pub fn sector(&self) -> u64 {
        // SAFETY: By the type invariant the request is started, so that it is valid and its
        // position constant.
        unsafe { bindings::blk_rq_pos(self.0.as_ptr()) }
    }

    /// Returns the length in bytes; 0 for a flush.
    ///
    /// Context: any.
    #[inline]
    pub fn bytes(&self) -> u32 {
        // SAFETY: By the type invariant the request is started, so that it is valid and its length
        // constant.
        unsafe { bindings::blk_rq_bytes(self.0.as_ptr()) }
    }

    /// Returns the request's flags.
    ///
    /// Context: any.
    #[inline]
    pub fn flags(&self) -> Flags {
        // SAFETY: By the type invariant the request is started, so that it is valid and its flags
        // are constant.
        Flags::from_raw(unsafe { (*self.0.as_ptr()).cmd_flags })
    }

    /// Returns whether fault injection asks the driver to ignore the reply, so that the request
    /// times out.
    ///
    /// Context: any.
    #[inline]
    pub fn should_fake_timeout(&self) -> bool {
        // SAFETY: By the type invariant the request is started, so that it is valid, and its queue
        // is not freed while it is in flight.
        unsafe { bindings::blk_should_fake_timeout((*self.0.as_ptr()).q) }
    }

    /// Returns the request's tag together with the hardware queue that it belongs to, from which
    /// `QueueGuard::request` finds the request.
    ///
    /// Context: any.
    #[inline]
    pub fn unique_tag(&self) -> u32 {
        // SAFETY: By the type invariant the request is started, so that it is valid and keeps its
        // tag and its hardware queue.
        unsafe { bindings::blk_mq_unique_tag(self.0.as_ptr()) }
    }

    /// Calls `f` with each physically contiguous segment of the data, until it returns false. Only
    /// reads and writes have data. Returns whether it never returned false.
    ///
    /// Context: that of `f`.
    #[inline]
    pub fn for_each_segment(&self, f: impl FnMut(bindings::bio_vec) -> bool) -> bool {
        // SAFETY: By the type invariant the request is started while the value lives.
        unsafe { DataPosition::start_of(self).for_each_segment(f) }
    }
}

/// A request that the block layer has handed to the driver, which has not started it. Dropping it
/// ends the request with an I/O error.
///
/// Context: any.
///
/// # Invariants
///
/// The request satisfies the invariants of [`Request`]. The block layer has handed it to the
/// driver, which has not started it, and there is no other value for it.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     IdleRequest,
///     Operations,
///     OwnedRequest,
///     Rejected, //
/// };
///
/// fn start_if<T: Operations>(
///     has_room: bool,
///     rq: IdleRequest<T>,
/// ) -> Result<OwnedRequest<T>, Rejected<T>> {
///     if !has_room {
///         // The block layer tries again.
///         return Err(rq.reject(ENOMEM));
///     }
///     Ok(rq.start())
/// }
/// ```
pub struct IdleRequest<T: Operations>(NonNull<bindings::request>, PhantomData<T>);

// SAFETY: A request is not bound to a thread.
unsafe impl<T: Operations> Send for IdleRequest<T> {}
// SAFETY: A shared reference gives access to the disk, which is `Sync`.
unsafe impl<T: Operations> Sync for IdleRequest<T> {}

impl<T: Operations> IdleRequest<T> {
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`IdleRequest`]. It passes to the value.
    #[inline]
    pub(super) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: By the safety requirements the request satisfies them.
        Self(rq, PhantomData)
    }

    #[inline]
    pub(super) fn into_raw(self) -> NonNull<bindings::request> {
        ManuallyDrop::new(self).0
    }

    /// Starts the request: from here on its timer runs.
    ///
    /// Context: any.
    #[inline]
    pub fn start(self) -> OwnedRequest<T> {
        let rq = self.into_raw();
        // The request may have a shorter timeout from an earlier start.
        // SAFETY: By the type invariant the request is allocated.
        unsafe { set_timeout(rq.as_ptr(), 0) };
        // SAFETY: By the type invariant the request is valid, and the driver has been handed it and
        // has not started it.
        unsafe { bindings::blk_mq_start_request(rq.as_ptr()) };
        // INVARIANT: The request was started just above, and has no other value.
        // SAFETY: The request is started, and is ended or requeued by this value only.
        OwnedRequest(unsafe { StartedRequest::from_raw(rq) })
    }

    /// Returns the disk that the request is for.
    ///
    /// Context: any.
    #[inline]
    pub fn disk(&self) -> &GenDisk<T::Disk> {
        // SAFETY: By the type invariant the driver has been handed the request, which is of a disk
        // that was made for `T`. A disk is not freed while the driver has a request of it.
        unsafe { GenDisk::from_raw((*(*self.0.as_ptr()).q).disk) }
    }

    /// Refuses the request, for [`Operations::queue_rq`] to return. The block layer ends the
    /// request with the status that stands for `error`. It keeps the request and tries again after
    /// some milliseconds if `error` is `ENOMEM`, and when a request finishes if it is `EBUSY`.
    ///
    /// Context: any.
    #[inline]
    pub fn reject(self, error: Error) -> Rejected<T> {
        Rejected {
            rq: self,
            status: BlkStatus::from_error(error),
        }
    }
}

impl<T: Operations> Drop for IdleRequest<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the driver owns the request, and there is no other value
        // for it, so that it is ended once. A request that was not started may be ended.
        unsafe { bindings::blk_mq_end_request(self.0.as_ptr(), BlkStatus::IOERR.into_raw()) };
    }
}

/// A request that the driver has refused, and the reason.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     IdleRequest,
///     Operations,
///     Rejected, //
/// };
///
/// /// For `Operations::queue_rq`: everything fails once the device is gone.
/// fn refuse_if_gone<T: Operations>(
///     is_gone: bool,
///     rq: IdleRequest<T>,
/// ) -> Result<IdleRequest<T>, Rejected<T>> {
///     if is_gone {
///         return Err(rq.reject(ENODEV));
///     }
///     Ok(rq)
/// }
/// ```
pub struct Rejected<T: Operations> {
    rq: IdleRequest<T>,
    status: BlkStatus,
}

impl<T: Operations> Rejected<T> {
    /// Gives the request back to the block layer, which has handed out `handed`, and returns the
    /// status for it to act on.
    #[inline]
    pub(super) fn into_raw_status(self, handed: NonNull<bindings::request>) -> u8 {
        if self.rq.0 != handed {
            // It is not the request that the block layer expects back, so that it is ended here.
            // The driver still has the other one.
            let rq = self.rq.into_raw();
            // SAFETY: The value was the only one for the request, and was not dropped, so that the
            // request is ended once. A request that was not started may be ended.
            unsafe { bindings::blk_mq_end_request(rq.as_ptr(), self.status.into_raw()) };
            return BlkStatus::OK.into_raw();
        }
        // The status of an error is never that of a success, so that the block layer takes the
        // request back.
        self.rq.into_raw();
        self.status.into_raw()
    }
}

/// A started request to which the driver holds the only reference. Dropping it ends the request
/// with an I/O error.
///
/// Context: any.
///
/// # Invariants
///
/// The request was started, and there is no other value for it.
///
/// # Examples
///
/// ```
/// use kernel::block::{
///     mq::{
///         Op,
///         Operations,
///         OwnedRequest, //
///     },
///     BlkStatus, //
/// };
///
/// fn finish<T: Operations>(rq: OwnedRequest<T>) {
///     match rq.op() {
///         Op::Read | Op::Write if rq.bytes() > 0 => rq.end(BlkStatus::OK),
///         Op::Flush => rq.requeue(),
///         _ => rq.end(BlkStatus::NOTSUPP),
///     }
/// }
/// ```
pub struct OwnedRequest<T: Operations>(StartedRequest<T>);

impl<T: Operations> OwnedRequest<T> {
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`OwnedRequest`]. It passes to the value.
    #[inline]
    pub(super) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: By the safety requirements the request satisfies them.
        // SAFETY: By the safety requirements the request is started, and is ended or requeued by
        // this value only.
        Self(unsafe { StartedRequest::from_raw(rq) })
    }

    #[inline]
    pub(super) fn into_raw(self) -> NonNull<bindings::request> {
        ManuallyDrop::new(self).0.as_non_null()
    }

    /// Finishes the request with `status`.
    ///
    /// Context: any.
    #[inline]
    pub fn end(self, status: BlkStatus) {
        // SAFETY: By the type invariant the request is started and there is no other value for it.
        // This one is not dropped, so that the request is given back once.
        unsafe { bindings::blk_mq_end_request(self.into_raw().as_ptr(), status.into_raw()) };
    }

    /// Has [`Operations::complete`] called for the request, on the CPU and in the context that the
    /// queue's settings say.
    ///
    /// The driver must implement that function.
    ///
    /// Context: any.
    #[inline]
    pub fn complete(self) {
        const { assert!(T::HAS_COMPLETE) };
        let rq = self.into_raw();
        // SAFETY: By the type invariant the request is started and there is no other value for it.
        // The one that was is not dropped.
        if !unsafe { bindings::blk_mq_complete_request_remote(rq.as_ptr()) } {
            // SAFETY: The block layer has left the call to this function, so that the request is
            // still started and has no value.
            T::complete(unsafe { Self::from_raw(rq) });
        }
    }

    /// Gives the request back to the block layer, which hands it to the driver again at once.
    ///
    /// Context: any.
    #[inline]
    pub fn requeue(self) {
        self.give_back(true);
    }

    /// Gives the request back to the block layer, which hands it to the driver again after
    /// [`GenDisk::kick_requeued`](super::GenDisk::kick_requeued).
    ///
    /// Context: any.
    #[inline]
    pub fn requeue_later(self) {
        self.give_back(false);
    }

    #[inline]
    fn give_back(self, kick: bool) {
        // SAFETY: By the type invariant the request is started and there is no other value for it.
        // This one is not dropped, so that the request is given back once.
        unsafe { bindings::blk_mq_requeue_request(self.into_raw().as_ptr(), kick) };
    }
}

impl<T: Operations> Deref for OwnedRequest<T> {
    type Target = StartedRequest<T>;

    #[inline]
    fn deref(&self) -> &StartedRequest<T> {
        &self.0
    }
}

impl<T: Operations> Drop for OwnedRequest<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the request is started and there is no other value for it,
        // so that it is ended once. It is not used afterwards.
        unsafe {
            bindings::blk_mq_end_request(self.0.as_non_null().as_ptr(), BlkStatus::IOERR.into_raw())
        };
    }
}
