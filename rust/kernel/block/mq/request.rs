// SPDX-License-Identifier: GPL-2.0

//! Requests, and the types for the states that they are in.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    gen_disk::GenDisk,
    phase::{Fate, Phase},
    Operations, //
};
use crate::{
    bindings,
    block::BlkStatus,
    ffi,
    sync::{
        atomic::{Acquire, Atomic, Full, Release},
        barrier::{smp_mb, Read},
    },
    types::Opaque, //
};
use core::{cell::UnsafeCell, marker::PhantomData, mem::ManuallyDrop, ops::Deref, ptr::NonNull};

/// The private data behind each `struct request`.
pub(super) struct Pdu<T: Operations> {
    phase: Atomic<u64>,
    data: T::RequestData,
    /// Written by the owner of the request only, and not while the request is published.
    header: UnsafeCell<T::Header>,
}

impl<T: Operations> Pdu<T> {
    #[inline]
    pub(super) fn new() -> Self {
        Self {
            phase: Atomic::new(Phase::IDLE),
            data: T::new_request_data(),
            header: UnsafeCell::default(),
        }
    }
}

/// A request of a disk of `T`, in any state.
///
/// C struct: `struct request`.
///
/// # Invariants
///
/// The request was allocated by a tag set of `T`, so that its private data is an initialised
/// `Pdu<T>`, and stays allocated for as long as the reference lives.
#[repr(transparent)]
pub struct Request<T: Operations>(Opaque<bindings::request>, PhantomData<T>);

// SAFETY: A shared reference gives access to the atomic phase, to the driver's data, which is
// `Sync`, to the timeout, a word that is read and written whole, and to a raw pointer.
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

    #[inline]
    fn pdu(&self) -> &Pdu<T> {
        // SAFETY: By the type invariant the private data of the request is an initialised `Pdu<T>`,
        // for as long as `self` is borrowed. No mutable reference to it is ever made.
        unsafe { &*bindings::blk_mq_rq_to_pdu(self.as_raw()).cast() }
    }

    /// Sets the timeout, in jiffies, for the next start of the request's timer; 0 stands for the
    /// queue's timeout. If another task starts the request at the same time, either value may take
    /// effect.
    ///
    /// Context: any.
    #[inline]
    pub(super) fn set_timeout(&self, jiffies: ffi::c_uint) {
        // SAFETY: By the type invariant the request is allocated. The block layer reads and writes
        // the word without a lock, too; a volatile write does not tear.
        unsafe { (&raw mut (*self.as_raw()).timeout).write_volatile(jiffies) };
    }

    /// Returns the driver's own data of the request. It outlives the request's I/O: it is stale
    /// until the driver writes it for the present one.
    ///
    /// Context: any.
    #[inline]
    pub fn data(&self) -> &T::RequestData {
        &self.pdu().data
    }

    /// Calls `f` with the driver's data and returns its result, or [`None`] if the request was not
    /// published during the call, or was published anew.
    ///
    /// Context: that of `f`.
    #[inline]
    pub fn published<R>(&self, f: impl FnOnce(&T::RequestData) -> R) -> Option<R> {
        let phase = &self.pdu().phase;
        let before = Phase::unpack(phase.load(Acquire));
        let ret = f(self.data());
        smp_mb(Read);
        let after = Phase::unpack(phase.load(Acquire));
        (before.live && after.live && before.cookie == after.cookie).then_some(ret)
    }

    /// Returns whether the request is published and an `ActiveRequest` or an undecided [`Claim`]
    /// exists: the request waits to be sent, is being sent, or its reply is being received.
    ///
    /// Context: any.
    #[inline]
    pub fn is_in_use(&self) -> bool {
        let phase = Phase::unpack(self.pdu().phase.load(Acquire));
        phase.live && phase.users > 0
    }

    /// Claims the request, if it is published, under `cookie` if that is [`Some`], if `wanted`
    /// returns true for the driver's data, and if it is not claimed. `wanted` may be called more
    /// than once.
    ///
    /// Context: that of `wanted`.
    pub fn claim(
        &self,
        cookie: Option<u32>,
        wanted: impl Fn(&T::RequestData) -> bool,
    ) -> Option<Claim<T>> {
        // `wanted` reads the data after the phase was read, and the data changes only while the
        // request is not published: if the phase can be replaced, the data belongs to this
        // publication.
        self.update(|phase| {
            let claimed = phase.claim(cookie)?;
            wanted(self.data()).then_some(claimed)
        })?;
        // INVARIANT: The update has set `claimed` on a live request and counted one more user, so
        // that the request is started and does not finish before the value is dropped.
        Some(Claim(StartedRequest(
            NonNull::from(self).cast(),
            PhantomData,
        )))
    }

    /// Replaces the phase by what `f` returns for it, and returns the new phase. Does nothing if
    /// `f` returns [`None`]. `f` is called again if the phase has changed meanwhile.
    fn update(&self, f: impl Fn(Phase) -> Option<Phase>) -> Option<Phase> {
        let word = &self.pdu().phase;
        let mut old = word.load(Acquire);
        loop {
            let new = f(Phase::unpack(old))?;
            match word.cmpxchg(old, new.pack(), Full) {
                Ok(_) => return Some(new),
                Err(current) => old = current,
            }
        }
    }

    /// Drops one user, decides on `fate` if that is [`Some`], and finishes or requeues the request
    /// if no user is left and its result is decided.
    ///
    /// # Safety
    ///
    /// The caller must own one count of `users`, and with `Some(fate)` also the claim. It owns
    /// neither afterwards, and must not use the request unless it owns another count.
    unsafe fn put_user(&self, fate: Option<Fate>) {
        let Some(phase) = self.update(|phase| Some(phase.put_user(fate))) else {
            return;
        };
        if phase.live {
            return;
        }
        // The request is no longer published, and only the task that took the last user away sees
        // that: no value for the request exists.
        match phase.fate {
            Fate::Open => {}
            // SAFETY: The request was started, as a published one is, and no other task ends or
            // requeues it, as only this one has seen it cease to be published.
            Fate::Requeue => unsafe { bindings::blk_mq_requeue_request(self.as_raw(), true) },
            // SAFETY: The request was started, as a published one is, and no other task ends or
            // requeues it, as only this one has seen it cease to be published.
            Fate::End(status) => unsafe {
                bindings::blk_mq_end_request(self.as_raw(), status.into_raw())
            },
        }
    }
}

/// The operation of a request.
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
// `Sync`; `header` is written only by a mutable borrow of the only value for the request.
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

    /// Returns whether the data must be durable before the request is finished.
    ///
    /// Context: any.
    #[inline]
    pub fn is_fua(&self) -> bool {
        // SAFETY: By the type invariant the request is started, so that it is valid and its flags
        // are constant.
        unsafe { bindings::blk_rq_is_fua(self.0.as_ptr()) }
    }

    /// Returns whether zeroes must be allocated rather than deallocated.
    ///
    /// Context: any.
    #[inline]
    pub fn is_nounmap(&self) -> bool {
        // SAFETY: By the type invariant the request is started, so that it is valid and its flags
        // are constant.
        unsafe { bindings::blk_rq_is_nounmap(self.0.as_ptr()) }
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

    /// Returns the cookie of the last publication, which is the present one if the request is
    /// published.
    ///
    /// Context: any.
    #[inline]
    pub fn cookie(&self) -> u32 {
        Phase::unpack(self.pdu().phase.load(Acquire)).cookie
    }

    /// Returns the header that is sent in front of the data, as [`OwnedRequest::set_header`] has
    /// set it last. It must be copied to be sent: references to the pages that requests are in are
    /// not counted.
    ///
    /// Context: any.
    #[inline]
    pub fn header(&self) -> &T::Header {
        // SAFETY: By the type invariant of the request the `Pdu` is valid while `self` is borrowed.
        // Only `OwnedRequest::set_header` writes the header, by a mutable borrow of the only value
        // for the request, of which `self` is a part then.
        unsafe { &*self.pdu().header.get() }
    }

    /// Calls `f` with each physically contiguous segment of the data, until it returns false. Only
    /// reads and writes have data.
    ///
    /// Context: that of `f`.
    pub fn for_each_segment(&self, mut f: impl FnMut(bindings::bio_vec) -> bool) {
        if !matches!(self.op(), Op::Read | Op::Write) {
            return;
        }
        // SAFETY: By the type invariant the request is started, so that it is valid and its list of
        // bios constant.
        let mut next = unsafe { (*self.0.as_ptr()).bio };
        while let Some(bio) = NonNull::new(next) {
            // SAFETY: By the type invariant the request is started, so that its bios stay
            // allocated, and so do their vectors.
            let (vecs, mut iter) = unsafe {
                next = (*bio.as_ptr()).bi_next;
                ((*bio.as_ptr()).bi_io_vec, (*bio.as_ptr()).bi_iter)
            };
            while iter.bi_size > 0 {
                // SAFETY: `iter` is a copy of the iterator of the bio that `vecs` belong to, which
                // reads and writes have, and has bytes left.
                let segment = unsafe { bindings::mp_bvec_iter_bvec(vecs, iter) };
                if !f(segment) {
                    return;
                }
                // SAFETY: `iter` is a copy of the iterator of the bio that `vecs` belong to, and
                // `segment`, which starts at `iter`, ends within the current vector.
                unsafe {
                    bindings::bvec_iter_advance_single(vecs, &mut iter, segment.bv_len);
                }
            }
        }
    }
}

/// A request to which the driver holds the only reference. Dropping it ends the request with an I/O
/// error.
///
/// Context: any.
///
/// # Invariants
///
/// The request was started, is not published, and there is no other value for it.
pub struct OwnedRequest<T: Operations>(StartedRequest<T>);

impl<T: Operations> OwnedRequest<T> {
    /// Takes over a request from the block layer and starts it.
    ///
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`Request`] until it is ended or requeued, and the block
    /// layer must have handed it to the driver, which has not started it since.
    #[inline]
    pub(super) unsafe fn start(rq: NonNull<bindings::request>) -> Self {
        // The request may have a shorter timeout from an earlier start.
        // SAFETY: By the safety requirements `rq` satisfies the invariants of `Request` during the
        // call.
        unsafe { Request::<T>::from_raw(rq.as_ptr()) }.set_timeout(0);
        // SAFETY: By the safety requirements `rq` is a valid request that the driver has been
        // handed and has not started.
        unsafe { bindings::blk_mq_start_request(rq.as_ptr()) };
        // INVARIANT: The request was started just above. A request that the block layer hands out
        // is not published, and has no other value.
        Self(StartedRequest(rq, PhantomData))
    }

    /// Sets the header that is sent in front of the data.
    ///
    /// Context: any.
    #[inline]
    pub fn set_header(&mut self, header: T::Header) {
        // SAFETY: By the type invariant there is no other value for the request, and this one is
        // borrowed mutably, so that there is no reference to the header.
        unsafe { *self.pdu().header.get() = header };
    }

    /// Finishes the request with `status`.
    ///
    /// Context: any.
    #[inline]
    pub fn end(self, status: BlkStatus) {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is started and there is no other value for it.
        // This one is not dropped, so that the request is given back once.
        unsafe { bindings::blk_mq_end_request(this.0 .0.as_ptr(), status.into_raw()) };
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
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is started and there is no other value for it.
        // This one is not dropped, so that the request is given back once.
        unsafe { bindings::blk_mq_requeue_request(this.0 .0.as_ptr(), kick) };
    }

    /// Publishes the request under `cookie`: from here on it can be found by its tag and claimed.
    /// The same tag should get the same cookie again as late as possible.
    ///
    /// Context: any.
    #[inline]
    pub fn publish(self, cookie: u32) -> ActiveRequest<T> {
        let this = ManuallyDrop::new(self);
        let rq = StartedRequest(this.0 .0, PhantomData);
        let word = &rq.pdu().phase;
        // A plain store will do: no other task changes the phase of a request that is not
        // published. Release: a task that sees the request published sees the driver's data, too.
        word.store(Phase::published(cookie).pack(), Release);
        // INVARIANT: The request is started and live, with one user, for which this value stands.
        ActiveRequest(rq)
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
        unsafe { bindings::blk_mq_end_request(self.0 .0.as_ptr(), BlkStatus::IOERR.into_raw()) };
    }
}

/// A published request that cannot finish while the value lives. Dropping it lets the request
/// finish if its result is decided, and leaves it published for a claim otherwise.
///
/// Context: any.
///
/// # Invariants
///
/// The request is live, and the value owns one count of its users.
#[repr(transparent)]
pub struct ActiveRequest<T: Operations>(StartedRequest<T>);

impl<T: Operations> ActiveRequest<T> {
    #[inline]
    pub(super) fn into_raw(self) -> NonNull<bindings::request> {
        ManuallyDrop::new(self).0 .0
    }

    /// # Safety
    ///
    /// `rq` must come from [`Self::into_raw`], and be passed to this function once only.
    #[inline]
    pub(super) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: The request is live, since `into_raw` has kept the count of a value, which the
        // new value owns.
        Self(StartedRequest(rq, PhantomData))
    }
}

impl<T: Operations> Deref for ActiveRequest<T> {
    type Target = StartedRequest<T>;

    #[inline]
    fn deref(&self) -> &StartedRequest<T> {
        &self.0
    }
}

impl<T: Operations> Drop for ActiveRequest<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value owns one count of the users, which it does not
        // use afterwards.
        unsafe { self.0.put_user(None) };
    }
}

/// The right to decide the result of a published request, and to write the data of a read until
/// then. Dropping it undecided ends the request with an I/O error.
///
/// Context: any.
///
/// # Invariants
///
/// The request is live and claimed, and the value owns the claim and one count of its users.
pub struct Claim<T: Operations>(StartedRequest<T>);

impl<T: Operations> Claim<T> {
    /// Decides that the request finishes with `status`, as soon as no value for it is left.
    ///
    /// Context: any.
    #[inline]
    pub fn end(self, status: BlkStatus) {
        self.decide(Fate::End(status));
    }

    /// Decides that the request returns to the block layer's queue, as soon as no value for it is
    /// left.
    ///
    /// Context: any.
    #[inline]
    pub fn requeue(self) {
        self.decide(Fate::Requeue);
    }

    /// Gives up the claim without a decision: the request stays published and can be claimed again.
    ///
    /// Context: any.
    #[inline]
    pub fn release(self) {
        let this = ManuallyDrop::new(self);
        // The value owned the claim and one count, which the update takes away. The result is not
        // decided, so that the request stays published even without a user.
        this.update(|phase| Some(phase.unclaim()));
    }

    #[inline]
    fn decide(self, fate: Fate) {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the value owned the claim and one count of the users. It is
        // not dropped, and the request is not used afterwards.
        unsafe { this.0.put_user(Some(fate)) };
    }
}

impl<T: Operations> Deref for Claim<T> {
    type Target = StartedRequest<T>;

    #[inline]
    fn deref(&self) -> &StartedRequest<T> {
        &self.0
    }
}

impl<T: Operations> Drop for Claim<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value owns the claim and one count of the users,
        // neither of which it uses afterwards.
        unsafe { self.0.put_user(Some(Fate::End(BlkStatus::IOERR))) };
    }
}
