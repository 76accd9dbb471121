// SPDX-License-Identifier: GPL-2.0

//! Requests and the hands they are in.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{gen_disk::GenDisk, Operations};
use crate::kernel::{bindings as helpers, block::BlkStatus};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    sync::atomic::{Acquire, Atomic, Full, Release},
    sync::barrier::{smp_mb, Read},
    types::Opaque, //
};

/// What becomes of a published request once nobody uses it any more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Not decided: the request goes on waiting.
    Open,
    /// Back to the block layer's queue, to be handed to the driver again.
    Requeue,
    /// Finished with this status.
    End(BlkStatus),
}

/// The state of a request, packed into one atomic word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Phase {
    /// Published: may be claimed.
    live: bool,
    /// A [`Claim`] exists or has decided.
    claimed: bool,
    fate: Fate,
    /// [`ActiveRequest`]s and undecided [`Claim`]s.
    users: u8,
    /// The number of the publication, so that a reply to an earlier one is known as such.
    cookie: u32,
}

impl Phase {
    const IDLE: u64 = 0;

    fn pack(self) -> u64 {
        let (kind, status) = match self.fate {
            Fate::Open => (0u64, 0u8),
            Fate::Requeue => (1, 0),
            Fate::End(status) => (2, status.into_raw()),
        };
        u64::from(self.live)
            | u64::from(self.claimed) << 1
            | kind << 2
            | u64::from(self.users) << 8
            | u64::from(status) << 16
            | u64::from(self.cookie) << 32
    }

    fn unpack(word: u64) -> Self {
        Self {
            live: word & 1 != 0,
            claimed: word & 2 != 0,
            fate: match (word >> 2) & 3 {
                0 => Fate::Open,
                1 => Fate::Requeue,
                _ => Fate::End(BlkStatus::from_raw((word >> 16) as u8)),
            },
            users: (word >> 8) as u8,
            cookie: (word >> 32) as u32,
        }
    }

    /// Published under `cookie`, with one user.
    fn published(cookie: u32) -> Self {
        Self {
            live: true,
            claimed: false,
            fate: Fate::Open,
            users: 1,
            cookie,
        }
    }

    /// Claimed, with one more user, if it can be, and has this cookie if one is given.
    fn claim(self, cookie: Option<u32>) -> Option<Self> {
        let named = cookie.is_none_or(|cookie| cookie == self.cookie);
        if !self.live || self.claimed || !named {
            return None;
        }
        Some(Self {
            claimed: true,
            users: self.users.checked_add(1)?,
            ..self
        })
    }

    /// Not claimed any more, and one user less.
    fn unclaim(self) -> Self {
        Self {
            claimed: false,
            users: self.users.saturating_sub(1),
            ..self
        }
    }

    /// One user less, which has decided on `fate` if there is one. Published no more if that was
    /// the last thing to wait for.
    fn put_user(mut self, fate: Option<Fate>) -> Self {
        self.users = self.users.saturating_sub(1);
        if let Some(fate) = fate {
            self.fate = fate;
        }
        if self.users == 0 && self.fate != Fate::Open {
            self.live = false;
        }
        self
    }
}

/// What the driver keeps behind each `struct request`.
pub(super) struct Pdu<T: Operations> {
    phase: Atomic<u64>,
    data: T::RequestData,
}

impl<T: Operations> Pdu<T> {
    pub(super) fn new() -> Self {
        Self {
            phase: Atomic::new(Phase::IDLE),
            data: T::new_request_data(),
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
pub(crate) struct Request<T: Operations>(Opaque<bindings::request>, PhantomData<T>);

// SAFETY: A shared reference only gives access to the private data, which is `Sync`.
unsafe impl<T: Operations> Sync for Request<T> {}

impl<T: Operations> Request<T> {
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`Request`] for `'a`.
    pub(super) unsafe fn from_raw<'a>(rq: *mut bindings::request) -> &'a Self {
        // SAFETY: The type is transparent and the caller promises the rest.
        unsafe { &*rq.cast() }
    }

    pub(in crate::kernel) fn as_raw(&self) -> *mut bindings::request {
        self.0.get()
    }

    fn pdu(&self) -> &Pdu<T> {
        // SAFETY: By the type invariant the private data of the request is a live `Pdu<T>`.
        unsafe { &*bindings::blk_mq_rq_to_pdu(self.as_raw()).cast() }
    }

    /// The driver's own data of this request. It outlives the request's I/O: what it says of an
    /// earlier one is stale until the driver writes it anew.
    pub(crate) fn data(&self) -> &T::RequestData {
        &self.pdu().data
    }

    /// What `f` says of the driver's data, if the request is published now; the data is then that
    /// of this publication.
    pub(crate) fn published<R>(&self, f: impl FnOnce(&T::RequestData) -> R) -> Option<R> {
        let phase = &self.pdu().phase;
        let before = Phase::unpack(phase.load(Acquire));
        let ret = f(self.data());
        smp_mb(Read);
        let after = Phase::unpack(phase.load(Acquire));
        (before.live && after.live && before.cookie == after.cookie).then_some(ret)
    }

    /// Whether the request is published and used by somebody: it waits to be sent, is being sent, or
    /// its reply is being received.
    pub(crate) fn is_in_use(&self) -> bool {
        let phase = Phase::unpack(self.pdu().phase.load(Acquire));
        phase.live && phase.users > 0
    }

    /// Claims the request if it is published, under `cookie` if one is given, `wanted` is true of
    /// the driver's data, and nobody else has claimed it. Does not sleep.
    pub(crate) fn claim(
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
pub(crate) enum Op {
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
pub(crate) struct StartedRequest<T: Operations>(NonNull<bindings::request>, PhantomData<T>);

// SAFETY: A started request may be used from any thread; what a shared reference gives access to
// is either constant while the request is started, or `Sync`.
unsafe impl<T: Operations> Send for StartedRequest<T> {}
// SAFETY: As above.
unsafe impl<T: Operations> Sync for StartedRequest<T> {}

impl<T: Operations> Deref for StartedRequest<T> {
    type Target = Request<T>;

    fn deref(&self) -> &Request<T> {
        // SAFETY: By the type invariant the request stays in the driver's hands, hence allocated.
        unsafe { Request::from_raw(self.0.as_ptr()) }
    }
}

impl<T: Operations> StartedRequest<T> {
    /// The disk that the request is for.
    pub(crate) fn disk(&self) -> &GenDisk<T::Disk> {
        // SAFETY: The request is valid, and was made by the queue of a disk of `T`, which stays for
        // as long as a request is in flight.
        unsafe { GenDisk::from_raw((*(*self.0.as_ptr()).q).disk) }
    }

    /// The operation asked for.
    pub(crate) fn op(&self) -> Op {
        // SAFETY: The request is valid and `cmd_flags` is constant while it is started.
        match unsafe { helpers::req_op(self.0.as_ptr()) } {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_FLUSH => Op::Flush,
            bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// Position on the disk in sectors.
    pub(crate) fn sector(&self) -> u64 {
        // SAFETY: The request is valid and its position constant while it is started.
        unsafe { helpers::blk_rq_pos(self.0.as_ptr()) }
    }

    /// Length in bytes; 0 for a flush.
    pub(crate) fn bytes(&self) -> u32 {
        // SAFETY: The request is valid and its length constant while it is started.
        unsafe { helpers::blk_rq_bytes(self.0.as_ptr()) }
    }

    /// Whether the data must be durable before the request is finished.
    pub(crate) fn is_fua(&self) -> bool {
        // SAFETY: The request is valid and `cmd_flags` is constant while it is started.
        unsafe { helpers::blk_rq_is_fua(self.0.as_ptr()) }
    }

    /// Whether zeroes must be allocated rather than punched out.
    pub(crate) fn is_nounmap(&self) -> bool {
        // SAFETY: The request is valid and `cmd_flags` is constant while it is started.
        unsafe { helpers::blk_rq_is_nounmap(self.0.as_ptr()) }
    }

    /// Whether fault injection wants the driver to forget the reply, so that the request times out.
    pub(crate) fn should_fake_timeout(&self) -> bool {
        // SAFETY: The request is valid, and its queue stays for as long as it is in flight.
        unsafe { helpers::blk_should_fake_timeout((*self.0.as_ptr()).q) }
    }

    /// The tag together with the hardware queue that it belongs to; see
    /// [`QueueGuard::request`](super::gen_disk::QueueGuard::request).
    pub(crate) fn unique_tag(&self) -> u32 {
        // SAFETY: The request is valid and keeps its driver tag while it is started.
        unsafe { bindings::blk_mq_unique_tag(self.0.as_ptr()) }
    }

    /// The cookie of the last publication; of this one, if the request is published.
    pub(crate) fn cookie(&self) -> u32 {
        Phase::unpack(self.pdu().phase.load(Acquire)).cookie
    }

    /// Calls `f` with each physically contiguous segment of the data until it returns `false`.
    pub(crate) fn for_each_segment(&self, mut f: impl FnMut(bindings::bio_vec) -> bool) {
        // SAFETY: The request is valid, and its list of bios constant while it is started.
        let mut next = unsafe { (*self.0.as_ptr()).bio };
        while let Some(bio) = NonNull::new(next) {
            // SAFETY: The bios of a started request stay allocated, and so do their vectors.
            let (vecs, mut iter) = unsafe {
                next = (*bio.as_ptr()).bi_next;
                ((*bio.as_ptr()).bi_io_vec, (*bio.as_ptr()).bi_iter)
            };
            while iter.bi_size > 0 {
                // SAFETY: `iter` came from the bio of `vecs` and has bytes left.
                let segment = unsafe { helpers::mp_bvec_iter_bvec(vecs, iter) };
                if !f(segment) {
                    return;
                }
                // SAFETY: As above; `segment` ends within the current vector.
                unsafe {
                    helpers::bvec_iter_advance_single(vecs, &mut iter, segment.bv_len);
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
pub(crate) struct OwnedRequest<T: Operations>(StartedRequest<T>);

impl<T: Operations> OwnedRequest<T> {
    /// Takes over a request from the block layer and starts it.
    ///
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`Request`], and the block layer must have handed it to
    /// the driver, which has not started it.
    pub(super) unsafe fn start(rq: NonNull<bindings::request>) -> Self {
        // SAFETY: By the caller's promise.
        unsafe { bindings::blk_mq_start_request(rq.as_ptr()) };
        // INVARIANT: Started just above; what the driver does not have published, nobody else has.
        Self(StartedRequest(rq, PhantomData))
    }

    /// Finishes the request. Does not sleep.
    pub(crate) fn end(self, status: BlkStatus) {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is started and ours alone, and `self` is gone.
        unsafe { bindings::blk_mq_end_request(this.0 .0.as_ptr(), status.into_raw()) };
    }

    /// Hands the request back to the block layer, to be handed to the driver again at once. Does
    /// not sleep.
    pub(crate) fn requeue(self) {
        self.give_back(true);
    }

    /// Hands the request back to the block layer, to be handed to the driver again after
    /// [`GenDisk::kick_requeued`](super::GenDisk::kick_requeued). Does not sleep.
    pub(crate) fn requeue_later(self) {
        self.give_back(false);
    }

    fn give_back(self, kick: bool) {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is started and ours alone, and `self` is gone.
        unsafe { bindings::blk_mq_requeue_request(this.0 .0.as_ptr(), kick) };
    }

    /// Publishes the request under `cookie`: from here on it can be found by its tag and claimed.
    /// The cookie should not have been used for the same tag for as long as possible. Does not
    /// sleep.
    pub(crate) fn publish(self, cookie: u32) -> ActiveRequest<T> {
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

    fn deref(&self) -> &StartedRequest<T> {
        &self.0
    }
}

impl<T: Operations> Drop for OwnedRequest<T> {
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
pub(crate) struct ActiveRequest<T: Operations>(StartedRequest<T>);

impl<T: Operations> ActiveRequest<T> {
    pub(super) fn into_raw(self) -> NonNull<bindings::request> {
        ManuallyDrop::new(self).0 .0
    }

    /// # Safety
    ///
    /// `rq` must come from [`Self::into_raw`], once.
    pub(super) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: The count that `into_raw` left behind is now that of this value.
        Self(StartedRequest(rq, PhantomData))
    }
}

impl<T: Operations> Deref for ActiveRequest<T> {
    type Target = StartedRequest<T>;

    fn deref(&self) -> &StartedRequest<T> {
        &self.0
    }
}

impl<T: Operations> Drop for ActiveRequest<T> {
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
pub(crate) struct Claim<T: Operations>(StartedRequest<T>);

impl<T: Operations> Claim<T> {
    /// Finishes the request with `status`, as soon as nobody uses it any more. Does not sleep.
    pub(crate) fn end(self, status: BlkStatus) {
        self.decide(Fate::End(status));
    }

    /// Hands the request back to be queued again, as soon as nobody uses it any more. Does not
    /// sleep.
    pub(crate) fn requeue(self) {
        self.decide(Fate::Requeue);
    }

    /// Decides nothing: the request goes on waiting, and can be claimed again. Does not sleep.
    pub(crate) fn release(self) {
        let this = ManuallyDrop::new(self);
        // The value stood for the claim and one user; it is gone. The fate is open, so that the
        // request stays published without a user.
        this.update(|phase| Some(phase.unclaim()));
    }

    fn decide(self, fate: Fate) {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the value stands for the claim and one user; it is gone.
        unsafe { this.0.put_user(Some(fate)) };
    }
}

impl<T: Operations> Deref for Claim<T> {
    type Target = StartedRequest<T>;

    fn deref(&self) -> &StartedRequest<T> {
        &self.0
    }
}

impl<T: Operations> Drop for Claim<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value stands for the claim and one user.
        unsafe { self.0.put_user(Some(Fate::End(BlkStatus::IOERR))) };
    }
}

#[kernel::macros::kunit_tests(nbd_request)]
mod tests {
    use super::*;

    const COOKIES: [u32; 6] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xdead_beef, u32::MAX];

    /// Lets one user go, and counts in `ends` that the request is the caller's to finish.
    fn put(phase: &mut Phase, fate: Option<Fate>, ends: &mut u32) {
        let next = phase.put_user(fate);
        *ends += u32::from(phase.live && !next.live);
        *phase = Phase::unpack(next.pack());
    }

    #[test]
    fn every_phase_survives_packing() {
        for flags in 0..4 {
            for kind in 0..=257 {
                for users in [0, 1, 2, 127, 128, 255] {
                    for cookie in COOKIES {
                        let phase = Phase {
                            live: flags & 1 != 0,
                            claimed: flags & 2 != 0,
                            fate: match kind {
                                256 => Fate::Open,
                                257 => Fate::Requeue,
                                status => Fate::End(BlkStatus::from_raw(status as u8)),
                            },
                            users,
                            cookie,
                        };
                        assert!(Phase::unpack(phase.pack()) == phase);
                    }
                }
            }
        }
    }

    #[test]
    fn idle_is_in_nobodys_hands() {
        let phase = Phase::unpack(Phase::IDLE);
        assert!(!phase.live && !phase.claimed && phase.fate == Fate::Open && phase.users == 0);
        assert!(phase.claim(None).is_none());
        assert!(phase.claim(Some(0)).is_none());
    }

    #[test]
    fn published_is_alive_with_one_user() {
        for cookie in COOKIES {
            let phase = Phase::unpack(Phase::published(cookie).pack());
            assert!(phase.live && !phase.claimed && phase.fate == Fate::Open);
            assert_eq!((phase.users, phase.cookie), (1, cookie));
        }
    }

    #[test]
    fn claimed_once_and_by_its_cookie_only() {
        for cookie in COOKIES {
            let phase = Phase::published(cookie);
            for other in COOKIES {
                assert_eq!(phase.claim(Some(other)).is_some(), other == cookie);
            }
            for given in [None, Some(cookie)] {
                let Some(claimed) = phase.claim(given) else {
                    assert!(given.is_none() && given.is_some());
                    continue;
                };
                assert!(claimed.live && claimed.claimed && claimed.fate == Fate::Open);
                assert_eq!((claimed.users, claimed.cookie), (2, cookie));
                assert!(claimed.claim(None).is_none());
                assert!(claimed.claim(Some(cookie)).is_none());
            }
        }
    }

    #[test]
    fn users_do_not_overflow() {
        let mut phase = Phase::published(1);
        phase.users = u8::MAX;
        assert!(phase.claim(None).is_none());
        phase.users = 0;
        assert_eq!(phase.put_user(None).users, 0);
    }

    #[test]
    fn undecided_goes_on_waiting() {
        let mut ends = 0;
        let mut phase = Phase::published(7);
        put(&mut phase, None, &mut ends);
        assert!(phase.live && ends == 0);
        // A reply can still claim it.
        assert!(phase.claim(Some(7)).is_some());
    }

    #[test]
    fn released_can_be_claimed_again() {
        for sender_first in [false, true] {
            let mut ends = 0;
            let mut phase = Phase::published(7);
            if sender_first {
                put(&mut phase, None, &mut ends);
            }
            if let Some(claimed) = phase.claim(Some(7)) {
                phase = claimed.unclaim();
            }
            assert!(phase.live && !phase.claimed && phase.fate == Fate::Open);
            assert_eq!(phase.users, u8::from(!sender_first));
            if !sender_first {
                put(&mut phase, None, &mut ends);
            }
            assert!(phase.claim(Some(6)).is_none());
            if let Some(claimed) = phase.claim(Some(7)) {
                phase = claimed;
            }
            put(&mut phase, Some(Fate::Requeue), &mut ends);
            assert!(ends == 1 && !phase.live);
        }
    }

    #[test]
    fn finished_once_in_every_order() {
        let fates = [
            Fate::Requeue,
            Fate::End(BlkStatus::OK),
            Fate::End(BlkStatus::IOERR),
        ];
        for fate in fates {
            // The sender lets go before the claim, between, or after the decision.
            for sender in 0..3 {
                let mut ends = 0;
                let mut phase = Phase::published(3);
                if sender == 0 {
                    put(&mut phase, None, &mut ends);
                }
                assert!(ends == 0 && phase.live);
                if let Some(claimed) = phase.claim(Some(3)) {
                    phase = claimed;
                }
                assert!(phase.claimed);
                if sender == 1 {
                    put(&mut phase, None, &mut ends);
                    assert!(ends == 0 && phase.live);
                }
                put(&mut phase, Some(fate), &mut ends);
                assert_eq!(ends, u32::from(sender < 2));
                // Decided, but not published any more or claimed: nobody decides again.
                assert!(phase.claim(None).is_none());
                if sender == 2 {
                    put(&mut phase, None, &mut ends);
                }
                assert_eq!(ends, 1);
                assert!(!phase.live && phase.users == 0 && phase.fate == fate);
                assert!(phase.claim(None).is_none());
            }
        }
    }

    #[test]
    fn published_anew_knows_nothing_of_before() {
        let mut ends = 0;
        let mut phase = Phase::published(3);
        put(&mut phase, None, &mut ends);
        if let Some(claimed) = phase.claim(None) {
            phase = claimed;
        }
        put(&mut phase, Some(Fate::Requeue), &mut ends);
        assert_eq!(ends, 1);
        let phase = Phase::published(4);
        assert!(phase.claim(Some(3)).is_none());
        assert!(phase.claim(Some(4)).is_some());
    }
}
