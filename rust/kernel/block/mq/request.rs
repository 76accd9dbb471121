// SPDX-License-Identifier: GPL-2.0

//! Requests and the hands they are in.
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

/// What the driver keeps behind each `struct request`.
pub(super) struct Pdu<T: Operations> {
    phase: Atomic<u64>,
    data: T::RequestData,
    /// Written by the owner of the request, and by nobody while it is published.
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

/// A `struct request` of a disk of `T`, in whosever hands.
///
/// # Invariants
///
/// The request was allocated by a tag set of `T`, so that its private data is an initialised
/// [`Pdu<T>`], and stays allocated for as long as the reference lives.
#[repr(transparent)]
pub struct Request<T: Operations>(Opaque<bindings::request>, PhantomData<T>);

// SAFETY: A shared reference only gives access to the phase and the driver's data, which are
// `Sync`.
unsafe impl<T: Operations> Sync for Request<T> {}

impl<T: Operations> Request<T> {
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`Request`] for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(rq: *mut bindings::request) -> &'a Self {
        // SAFETY: The type is transparent and the caller promises the rest.
        unsafe { &*rq.cast() }
    }

    /// The C request. Reading what may change while the request is in use needs what C needs for that.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::request {
        self.0.get()
    }

    #[inline]
    fn pdu(&self) -> &Pdu<T> {
        // SAFETY: By the type invariant the private data of the request is a live `Pdu<T>`.
        unsafe { &*bindings::blk_mq_rq_to_pdu(self.as_raw()).cast() }
    }

    /// Has the timer run for so many jiffies when it is started next; 0 for the queue's timeout. If
    /// the request is started by another task meanwhile, either value may be the one that counts.
    #[inline]
    pub(super) fn set_timeout(&self, jiffies: ffi::c_uint) {
        // SAFETY: The request is allocated. C, too, reads and writes the word without a lock.
        unsafe { (&raw mut (*self.as_raw()).timeout).write_volatile(jiffies) };
    }

    /// The driver's own data of this request. It outlives the request's I/O: what it says of an
    /// earlier one is stale until the driver writes it anew.
    #[inline]
    pub fn data(&self) -> &T::RequestData {
        &self.pdu().data
    }

    /// What `f` says of the driver's data, if the request is published now; the data is then that
    /// of this publication.
    #[inline]
    pub fn published<R>(&self, f: impl FnOnce(&T::RequestData) -> R) -> Option<R> {
        let phase = &self.pdu().phase;
        let before = Phase::unpack(phase.load(Acquire));
        let ret = f(self.data());
        smp_mb(Read);
        let after = Phase::unpack(phase.load(Acquire));
        (before.live && after.live && before.cookie == after.cookie).then_some(ret)
    }

    /// Whether the request is published and used by somebody: it waits to be sent, is being sent,
    /// or its reply is being received.
    #[inline]
    pub fn is_in_use(&self) -> bool {
        let phase = Phase::unpack(self.pdu().phase.load(Acquire));
        phase.live && phase.users > 0
    }

    /// Claims the request if it is published, under `cookie` if one is given, `wanted` is true of
    /// the driver's data, and nobody else has claimed it. Does not sleep.
    pub fn claim(
        &self,
        cookie: Option<u32>,
        wanted: impl Fn(&T::RequestData) -> bool,
    ) -> Option<Claim<T>> {
        // The data is read after the phase, and changes only while the request is not published:
        // if the phase can be replaced, the data belongs to this publication.
        self.update(|phase| {
            let claimed = phase.claim(cookie)?;
            wanted(self.data()).then_some(claimed)
        })?;
        // INVARIANT: The update set `claimed` on a live request and counted a user.
        Some(Claim(StartedRequest(
            NonNull::from(self).cast(),
            PhantomData,
        )))
    }

    /// Replaces the phase by `f` of it, until nobody interferes; `None` leaves it alone.
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

    /// Drops one user, with `fate` if the user was one that decides, and finishes the request if
    /// that was the last thing it waited for.
    ///
    /// # Safety
    ///
    /// The caller must own one count of `users`, and with `Some(fate)` also the claim; both are
    /// used up. `self` may be gone afterwards.
    unsafe fn put_user(&self, fate: Option<Fate>) {
        let Some(phase) = self.update(|phase| Some(phase.put_user(fate))) else {
            return;
        };
        if phase.live {
            return;
        }
        // The request is no longer published, and of all users only this one saw it go: it is
        // ours alone.
        match phase.fate {
            Fate::Open => {}
            // SAFETY: The request was started and is owned by the driver, that is by us.
            Fate::Requeue => unsafe { bindings::blk_mq_requeue_request(self.as_raw(), true) },
            // SAFETY: As above.
            Fate::End(status) => unsafe {
                bindings::blk_mq_end_request(self.as_raw(), status.into_raw())
            },
        }
    }
}

/// The operations that a driver can be asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Read into the request's segments.
    Read,
    /// Write the request's segments.
    Write,
    /// Make what was written durable.
    Flush,
    /// Forget the data.
    Discard,
    /// Write zeroes; there are no segments.
    WriteZeroes,
    /// An operation that this abstraction does not know.
    Other,
}

/// A request that is in the driver's hands for as long as the value lives: the block layer does
/// not change it, so that it can be read.
///
/// # Invariants
///
/// The request was started, and is neither ended nor requeued while the value lives.
#[repr(transparent)]
pub struct StartedRequest<T: Operations>(NonNull<bindings::request>, PhantomData<T>);

// SAFETY: A started request may be used from any thread; what a shared reference gives access to
// is either constant while the request is started, or `Sync`.
unsafe impl<T: Operations> Send for StartedRequest<T> {}
// SAFETY: As above.
unsafe impl<T: Operations> Sync for StartedRequest<T> {}

impl<T: Operations> Deref for StartedRequest<T> {
    type Target = Request<T>;

    #[inline]
    fn deref(&self) -> &Request<T> {
        // SAFETY: By the type invariant the request stays in the driver's hands, hence allocated.
        unsafe { Request::from_raw(self.0.as_ptr()) }
    }
}

impl<T: Operations> StartedRequest<T> {
    /// The disk that the request is for.
    #[inline]
    pub fn disk(&self) -> &GenDisk<T::Disk> {
        // SAFETY: The request is valid, and was made by the queue of a disk of `T`, which stays for
        // as long as a request is in flight.
        unsafe { GenDisk::from_raw((*(*self.0.as_ptr()).q).disk) }
    }

    /// The operation asked for.
    pub fn op(&self) -> Op {
        // SAFETY: The request is valid and `cmd_flags` is constant while it is started.
        match unsafe { bindings::req_op(self.0.as_ptr()) } {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_FLUSH => Op::Flush,
            bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// Position on the disk in sectors.
    #[inline]
    pub fn sector(&self) -> u64 {
        // SAFETY: The request is valid and its position constant while it is started.
        unsafe { bindings::blk_rq_pos(self.0.as_ptr()) }
    }

    /// Length in bytes; 0 for a flush.
    #[inline]
    pub fn bytes(&self) -> u32 {
        // SAFETY: The request is valid and its length constant while it is started.
        unsafe { bindings::blk_rq_bytes(self.0.as_ptr()) }
    }

    /// Whether the data must be durable before the request is finished.
    #[inline]
    pub fn is_fua(&self) -> bool {
        // SAFETY: The request is valid and `cmd_flags` is constant while it is started.
        unsafe { bindings::blk_rq_is_fua(self.0.as_ptr()) }
    }

    /// Whether zeroes must be allocated rather than punched out.
    #[inline]
    pub fn is_nounmap(&self) -> bool {
        // SAFETY: The request is valid and `cmd_flags` is constant while it is started.
        unsafe { bindings::blk_rq_is_nounmap(self.0.as_ptr()) }
    }

    /// Whether fault injection wants the driver to forget the reply, so that the request times out.
    #[inline]
    pub fn should_fake_timeout(&self) -> bool {
        // SAFETY: The request is valid, and its queue stays for as long as it is in flight.
        unsafe { bindings::blk_should_fake_timeout((*self.0.as_ptr()).q) }
    }

    /// The tag together with the hardware queue that it belongs to; see
    /// [`QueueGuard::request`](super::gen_disk::QueueGuard::request).
    #[inline]
    pub fn unique_tag(&self) -> u32 {
        // SAFETY: The request is valid and keeps its driver tag while it is started.
        unsafe { bindings::blk_mq_unique_tag(self.0.as_ptr()) }
    }

    /// The cookie of the last publication; of this one, if the request is published.
    #[inline]
    pub fn cookie(&self) -> u32 {
        Phase::unpack(self.pdu().phase.load(Acquire)).cookie
    }

    /// What goes over the wire in front of the data, as the owner of the request has written it
    /// last. To be sent it is copied: the pages that requests are in have no references of their
    /// own.
    #[inline]
    pub fn header(&self) -> &T::Header {
        // SAFETY: Only [`OwnedRequest::set_header`] writes it. If the request has an owner, that
        // has no other `StartedRequest` beside it, and is borrowed together with this one.
        unsafe { &*self.pdu().header.get() }
    }

    /// Calls `f` with each physically contiguous segment of the data until it returns `false`. Only
    /// reads and writes have data.
    pub fn for_each_segment(&self, mut f: impl FnMut(bindings::bio_vec) -> bool) {
        if !matches!(self.op(), Op::Read | Op::Write) {
            return;
        }
        // SAFETY: The request is valid, and its list of bios constant while it is started.
        let mut next = unsafe { (*self.0.as_ptr()).bio };
        while let Some(bio) = NonNull::new(next) {
            // SAFETY: The bios of a started request stay allocated, and so do their vectors.
            let (vecs, mut iter) = unsafe {
                next = (*bio.as_ptr()).bi_next;
                ((*bio.as_ptr()).bi_io_vec, (*bio.as_ptr()).bi_iter)
            };
            while iter.bi_size > 0 {
                // SAFETY: `iter` came from the bio of `vecs`, which are there for reads and writes,
                // and has bytes left.
                let segment = unsafe { bindings::mp_bvec_iter_bvec(vecs, iter) };
                if !f(segment) {
                    return;
                }
                // SAFETY: As above; `segment` ends within the current vector.
                unsafe {
                    bindings::bvec_iter_advance_single(vecs, &mut iter, segment.bv_len);
                }
            }
        }
    }
}

/// A request that the driver alone has. Dropping it fails the request.
///
/// # Invariants
///
/// The request was started, is not published, and has no other owner.
pub struct OwnedRequest<T: Operations>(StartedRequest<T>);

impl<T: Operations> OwnedRequest<T> {
    /// Takes over a request from the block layer and starts it.
    ///
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`Request`], and the block layer must have handed it to
    /// the driver, which has not started it.
    #[inline]
    pub(super) unsafe fn start(rq: NonNull<bindings::request>) -> Self {
        // Another time it was started it may have had less.
        // SAFETY: By the caller's promise.
        unsafe { Request::<T>::from_raw(rq.as_ptr()) }.set_timeout(0);
        // SAFETY: As above.
        unsafe { bindings::blk_mq_start_request(rq.as_ptr()) };
        // INVARIANT: Started just above; what the driver does not have published, nobody else has.
        Self(StartedRequest(rq, PhantomData))
    }

    /// Says what goes over the wire in front of the data.
    #[inline]
    pub fn set_header(&mut self, header: T::Header) {
        // SAFETY: By the type invariant the request is ours alone, and `self` is borrowed mutably,
        // so that nobody has a reference to the header.
        unsafe { *self.pdu().header.get() = header };
    }

    /// Finishes the request. Does not sleep.
    #[inline]
    pub fn end(self, status: BlkStatus) {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is started and ours alone, and `self` is gone.
        unsafe { bindings::blk_mq_end_request(this.0 .0.as_ptr(), status.into_raw()) };
    }

    /// Hands the request back to the block layer, to be handed to the driver again at once. Does
    /// not sleep.
    #[inline]
    pub fn requeue(self) {
        self.give_back(true);
    }

    /// Hands the request back to the block layer, to be handed to the driver again after
    /// [`GenDisk::kick_requeued`](super::GenDisk::kick_requeued). Does not sleep.
    #[inline]
    pub fn requeue_later(self) {
        self.give_back(false);
    }

    #[inline]
    fn give_back(self, kick: bool) {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is started and ours alone, and `self` is gone.
        unsafe { bindings::blk_mq_requeue_request(this.0 .0.as_ptr(), kick) };
    }

    /// Publishes the request under `cookie`: from here on it can be found by its tag and claimed.
    /// The cookie should not have been used for the same tag for as long as possible. Does not
    /// sleep.
    #[inline]
    pub fn publish(self, cookie: u32) -> ActiveRequest<T> {
        let this = ManuallyDrop::new(self);
        let rq = StartedRequest(this.0 .0, PhantomData);
        let word = &rq.pdu().phase;
        // Nobody changes the phase of a request that is not published.
        word.store(Phase::published(cookie).pack(), Release);
        // INVARIANT: Live, with the one user that the value stands for.
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
        // SAFETY: By the type invariant the request is started and ours alone.
        unsafe { bindings::blk_mq_end_request(self.0 .0.as_ptr(), BlkStatus::IOERR.into_raw()) };
    }
}

/// A published request that cannot finish while the value lives. Dropping it lets it finish, if
/// its fate is decided, or leaves it waiting for whoever will claim it.
///
/// # Invariants
///
/// The request is live and the value stands for one count of its users.
#[repr(transparent)]
pub struct ActiveRequest<T: Operations>(StartedRequest<T>);

impl<T: Operations> ActiveRequest<T> {
    #[inline]
    pub(super) fn into_raw(self) -> NonNull<bindings::request> {
        ManuallyDrop::new(self).0 .0
    }

    /// # Safety
    ///
    /// `rq` must come from [`Self::into_raw`], once.
    #[inline]
    pub(super) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: The count that `into_raw` left behind is now that of this value.
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
        // SAFETY: By the type invariant the value stands for one user.
        unsafe { self.0.put_user(None) };
    }
}

/// The right to decide what becomes of a published request, and until then to fill its data.
/// Dropping it undecided fails the request.
///
/// # Invariants
///
/// The request is live and claimed, and the value stands for the claim and one user.
pub struct Claim<T: Operations>(StartedRequest<T>);

impl<T: Operations> Claim<T> {
    /// Finishes the request with `status`, as soon as nobody uses it any more. Does not sleep.
    #[inline]
    pub fn end(self, status: BlkStatus) {
        self.decide(Fate::End(status));
    }

    /// Hands the request back to be queued again, as soon as nobody uses it any more. Does not
    /// sleep.
    #[inline]
    pub fn requeue(self) {
        self.decide(Fate::Requeue);
    }

    /// Decides nothing: the request goes on waiting, and can be claimed again. Does not sleep.
    #[inline]
    pub fn release(self) {
        let this = ManuallyDrop::new(self);
        // The value stood for the claim and one user; it is gone. The fate is open, so that the
        // request stays published without a user.
        this.update(|phase| Some(phase.unclaim()));
    }

    #[inline]
    fn decide(self, fate: Fate) {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the value stands for the claim and one user; it is gone.
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
        // SAFETY: By the type invariant the value stands for the claim and one user.
        unsafe { self.0.put_user(Some(Fate::End(BlkStatus::IOERR))) };
    }
}
