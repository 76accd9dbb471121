// SPDX-License-Identifier: GPL-2.0

//! Publication: requests that a sender, a receiver and others use at the same time.
//!
//! A driver that hands its requests to a peer [publishes](OwnedRequest::publish) them. From there
//! on until the request finishes it is in one of three states, each a type or the lack of one:
//!
//! - [`ActiveRequest`]: the request is published under a cookie, and cannot finish while the value
//!   lives.
//! - no value at all: the request is published and waits until a task claims it.
//! - [`Claim`]: the only right to decide the request's result.
//!
//! A published request finishes when its result is decided and no value for it is left, whichever
//! comes last. The reply may therefore overtake the end of the send, and no request can be finished
//! twice.

use super::{
    phase::{
        Fate,
        Phase, //
    },
    Operations,
    OwnedRequest,
    Request,
    StartedRequest, //
};
use crate::{
    bindings,
    block::BlkStatus,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        barrier::{
            smp_mb,
            Read, //
        },
    }, //
};
use core::{
    cell::UnsafeCell,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

/// A driver that publishes its requests.
///
/// # Examples
///
/// ```
/// use kernel::block::{
///     mq::{
///         ActiveRequest,
///         Claim,
///         GenDisk,
///         OwnedRequest,
///         Publish, //
///     },
///     BlkStatus, //
/// };
///
/// fn send<T: Publish>(
///     mut rq: OwnedRequest<T>,
///     header: T::Header,
///     cookie: u32,
///     send: impl FnOnce(&ActiveRequest<T>),
/// ) {
///     rq.set_header(header);
///     // If the reply comes before `send` has returned, the request finishes when it has.
///     send(&rq.publish(cookie));
/// }
///
/// /// The peer may send any tag and any cookie.
/// fn receive<T: Publish>(disk: &GenDisk<T::Disk>, tag: u32, cookie: u32) -> Result {
///     let claim: Option<Claim<T>> = disk
///         .hold_requests()
///         .and_then(|requests| requests.request(tag)?.claim(Some(cookie), |_| true));
///     claim.ok_or(ENOENT)?.end(BlkStatus::OK);
///     Ok(())
/// }
/// ```
pub trait Publish: Operations<RequestData = Publication<Self>> {
    /// What the driver keeps with each request, for any task to use. It should change only while
    /// the request is not published, so that it belongs to one publication.
    type Shared: Send + Sync;

    /// What the owner of a request writes before it publishes the request, such as the message to
    /// be sent.
    type Header: Copy + Send + Sync;
}

/// The private data of a request that can be published.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     Publication,
///     Publish, //
/// };
///
/// /// For `Operations::new_request_data`.
/// fn new_request_data<T: Publish>(header: T::Header) -> Publication<T>
/// where
///     T::Shared: Default,
/// {
///     Publication::new(T::Shared::default(), header)
/// }
/// ```
pub struct Publication<T: Publish> {
    phase: Atomic<u64>,
    shared: T::Shared,
    /// Written by the owner of the request only, and not while the request is published.
    header: UnsafeCell<T::Header>,
}

// SAFETY: The phase is atomic and the shared data is `Sync`. The header is `Send` and `Sync`; it is
// written only by a mutable borrow of the only value for the request, and read by a borrow of such
// a value, so that no thread reads it meanwhile.
unsafe impl<T: Publish> Sync for Publication<T> {}

impl<T: Publish> Publication<T> {
    /// Creates the data of a request that is not published.
    ///
    /// Context: any.
    #[inline]
    pub const fn new(shared: T::Shared, header: T::Header) -> Self {
        Self {
            phase: Atomic::new(Phase::IDLE),
            shared,
            header: UnsafeCell::new(header),
        }
    }
}

impl<T: Publish> Deref for Publication<T> {
    type Target = T::Shared;

    #[inline]
    fn deref(&self) -> &T::Shared {
        &self.shared
    }
}

impl<T: Publish> Request<T> {
    /// Calls `f` with the shared data and returns its result, or [`None`] if the request was not
    /// published during the call, or was published anew.
    ///
    /// Context: that of `f`.
    #[inline]
    pub fn published<R>(&self, f: impl FnOnce(&T::Shared) -> R) -> Option<R> {
        let phase = &self.data().phase;
        let before = Phase::unpack(phase.load(Acquire));
        let ret = f(self.data());
        smp_mb(Read);
        let after = Phase::unpack(phase.load(Acquire));
        (before.live && after.live && before.cookie == after.cookie).then_some(ret)
    }

    /// Returns whether the request is published and an [`ActiveRequest`] or an undecided [`Claim`]
    /// exists: the request waits to be sent, is being sent, or its reply is being received.
    ///
    /// Context: any.
    #[inline]
    pub fn is_in_use(&self) -> bool {
        let phase = Phase::unpack(self.data().phase.load(Acquire));
        phase.live && phase.users > 0
    }

    /// Claims the request, if it is published, under `cookie` if that is [`Some`], if `wanted`
    /// returns true for the shared data, and if it is not claimed. `wanted` may be called more than
    /// once.
    ///
    /// Context: that of `wanted`.
    pub fn claim(
        &self,
        cookie: Option<u32>,
        wanted: impl Fn(&T::Shared) -> bool,
    ) -> Option<Claim<T>> {
        // `wanted` reads the data after the phase was read, and the data changes only while the
        // request is not published: if the phase can be replaced, the data belongs to this
        // publication.
        self.update(|phase| {
            let claimed = phase.claim(cookie)?;
            wanted(self.data()).then_some(claimed)
        })?;
        // INVARIANT: The update has set `claimed` on a live request and counted one more user.
        // SAFETY: A live request is started, and it does not finish before the value is dropped,
        // whose count the update has added.
        Some(Claim(unsafe {
            StartedRequest::from_raw(NonNull::from(self).cast())
        }))
    }

    /// Replaces the phase by what `f` returns for it, and returns the new phase. Does nothing if
    /// `f` returns [`None`]. `f` is called again if the phase has changed meanwhile.
    fn update(&self, f: impl Fn(Phase) -> Option<Phase>) -> Option<Phase> {
        let word = &self.data().phase;
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

impl<T: Publish> StartedRequest<T> {
    /// Returns the cookie of the last publication, which is the present one if the request is
    /// published.
    ///
    /// Context: any.
    #[inline]
    pub fn cookie(&self) -> u32 {
        Phase::unpack(self.data().phase.load(Acquire)).cookie
    }

    /// Returns the header, as [`OwnedRequest::set_header`] has set it last. It must be copied to be
    /// sent: references to the pages that requests are in are not counted.
    ///
    /// Context: any.
    #[inline]
    pub fn header(&self) -> &T::Header {
        // SAFETY: The data is valid while `self` is borrowed. Only `OwnedRequest::set_header`
        // writes the header, by a mutable borrow of the only value for the request, of which `self`
        // is a part then.
        unsafe { &*self.data().header.get() }
    }
}

impl<T: Publish> OwnedRequest<T> {
    /// Sets the header.
    ///
    /// Context: any.
    #[inline]
    pub fn set_header(&mut self, header: T::Header) {
        // SAFETY: By the type invariant there is no other value for the request, and this one is
        // borrowed mutably, so that there is no reference to the header.
        unsafe { *self.data().header.get() = header };
    }

    /// Publishes the request under `cookie`: from here on it can be found by its tag and claimed.
    /// The same tag should get the same cookie again as late as possible.
    ///
    /// Context: any.
    #[inline]
    pub fn publish(self, cookie: u32) -> ActiveRequest<T> {
        // SAFETY: The value that owned the request is not dropped, so that the request is started
        // until its publication ends.
        let rq = unsafe { StartedRequest::<T>::from_raw(self.into_raw()) };
        // A plain store will do: no other task changes the phase of a request that is not
        // published. Release: a task that sees the request published sees the driver's data, too.
        rq.data()
            .phase
            .store(Phase::published(cookie).pack(), Release);
        // INVARIANT: The request is started and live, with one user, for which this value stands.
        ActiveRequest(rq)
    }
}

/// A published request that cannot finish while the value lives. Dropping it lets the request
/// finish if its result is decided, and leaves it published for a claim otherwise.
///
/// Context: any.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     ActiveRequest,
///     Publish, //
/// };
///
/// /// Sends what was not sent before. A reply may come meanwhile: the request does not finish
/// /// before the value is dropped.
/// fn send_on<T: Publish>(
///     rq: ActiveRequest<T>,
///     send: impl FnOnce(u32, &T::Header) -> Result,
/// ) -> Result {
///     send(rq.cookie(), rq.header())
/// }
/// ```
///
/// # Invariants
///
/// The request is live, and the value owns one count of its users.
#[repr(transparent)]
pub struct ActiveRequest<T: Publish>(StartedRequest<T>);

impl<T: Publish> ActiveRequest<T> {
    #[inline]
    pub(super) fn into_raw(self) -> NonNull<bindings::request> {
        ManuallyDrop::new(self).0.as_non_null()
    }

    /// # Safety
    ///
    /// `rq` must come from [`Self::into_raw`], and be passed to this function once only.
    #[inline]
    pub(super) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: The request is live, since `into_raw` has kept the count of a value, which the
        // new value owns.
        // SAFETY: The request is live, hence started, and does not finish before the count is
        // dropped.
        Self(unsafe { StartedRequest::from_raw(rq) })
    }
}

impl<T: Publish> Deref for ActiveRequest<T> {
    type Target = StartedRequest<T>;

    #[inline]
    fn deref(&self) -> &StartedRequest<T> {
        &self.0
    }
}

impl<T: Publish> Drop for ActiveRequest<T> {
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
///
/// # Examples
///
/// ```
/// use kernel::block::{
///     mq::{
///         Claim,
///         Publish, //
///     },
///     BlkStatus, //
/// };
///
/// fn finish<T: Publish>(claim: Claim<T>, result: Result) {
///     match result {
///         Ok(()) => claim.end(BlkStatus::OK),
///         // Another peer may do better.
///         Err(ESHUTDOWN) => claim.requeue(),
///         Err(error) => claim.end(BlkStatus::from_error(error)),
///     }
/// }
/// ```
pub struct Claim<T: Publish>(StartedRequest<T>);

impl<T: Publish> Claim<T> {
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

impl<T: Publish> Deref for Claim<T> {
    type Target = StartedRequest<T>;

    #[inline]
    fn deref(&self) -> &StartedRequest<T> {
        &self.0
    }
}

impl<T: Publish> Drop for Claim<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value owns the claim and one count of the users,
        // neither of which it uses afterwards.
        unsafe { self.0.put_user(Some(Fate::End(BlkStatus::IOERR))) };
    }
}
