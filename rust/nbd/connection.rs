// SPDX-License-Identifier: GPL-2.0

//! A connection: a place in a session. It has a link, or none until a reconnect brings one. Links
//! that it had before may drain: they get no new requests, and their servers may still answer.

use crate::{
    driver::Cookies,
    error::LinkError,
    link::{
        Broken,
        Link,
        Sent, //
    },
    refusal::MAX_DRAINING,
    request::Queue, //
};
use core::mem;
use kernel::{
    block::mq::OwnedRequest,
    net::socket::Wait,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// How long a link may drain after its server has begun to shut down, in milliseconds.
const DRAIN_MS: i64 = 1000;

/// The link error of a link that is younger than this, in milliseconds, is reported only when the
/// link reaches this age. A server that shuts down every new connection thus causes one reconnect
/// in this time.
const MIN_REPORT_AGE_MS: i64 = 1000;

/// The requests of a connection that its server works on at the same time. `nbdkit` has as many
/// threads for each connection, and `qemu-nbd` takes no more from one.
const MAX_AT_ONCE: u64 = 16;

/// Links that drain, or drained until now.
pub(crate) type DrainingLinks = [Option<Arc<Link>>; MAX_DRAINING];

/// A link that gets no new requests, and whose server may still answer.
struct Draining {
    /// `None` once the link is closed.
    link: Option<Arc<Link>>,
    /// When its last [`DRAIN_MS`] have begun. `None` while requests are in flight on a link that
    /// was replaced, and its server is not shutting down: it may drain until one of them times out.
    since: Option<Instant<Monotonic>>,
    /// When the link was created, if its link error was not reported yet.
    unreported: Option<Instant<Monotonic>>,
}

impl Draining {
    fn has(&self, generation: u64) -> bool {
        let link = self.link.as_ref();
        link.is_some_and(|link| link.generation() == generation)
    }

    fn is_over(&self) -> bool {
        self.link.is_none() && self.unreported.is_none()
    }

    /// Returns when the last [`DRAIN_MS`] have begun. They begin when no request is in flight.
    fn last_part(&mut self) -> Option<Instant<Monotonic>> {
        let link = self.link.as_ref()?;
        if self.since.is_none() && !link.is_draining() {
            self.since = Some(Instant::now());
        }
        self.since
    }
}

/// What is due on a connection.
#[derive(Default)]
pub(crate) struct Due {
    /// The time of these links is over.
    pub(crate) links: DrainingLinks,
    /// The number of link errors that have to be reported.
    pub(crate) notify: u32,
}

/// Whether a time limit of `limit` milliseconds from `since` is still pending. If so, lowers `next`
/// to the milliseconds that are left, unless another limit comes first.
pub(crate) fn waits(next: &mut Option<i64>, since: Instant<Monotonic>, limit: i64) -> bool {
    let left = limit - since.elapsed().as_millis();
    if left > 0 {
        *next = Some(next.map_or(left, |next| next.min(left)));
    }
    left > 0
}

/// The state of a connection for users.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// There is no link.
    Vacant,
    /// The link gets requests.
    Open,
    /// There is no link, and an earlier one may still answer.
    Draining,
    /// The link gets no requests.
    Closing,
}

/// A connection as users see it.
pub(crate) struct ConnectionStatus {
    pub(crate) state: ConnectionState,
    /// The current link.
    pub(crate) link: Option<Arc<Link>>,
    /// Earlier links that drain.
    pub(crate) draining: DrainingLinks,
    /// When the last link was lost, if any was.
    pub(crate) lost: Option<Instant<Monotonic>>,
}

/// The current link of a connection.
enum Current {
    /// It gets requests.
    Link(Arc<Link>),
    /// There is none. A reconnect can bring one.
    Vacant,
    /// There is none. The connection was removed from the session.
    Removed,
}

impl Current {
    /// Makes `link`, which is not in use yet, the link of the connection of this number.
    fn new(link: Arc<Link>, index: u32) -> Self {
        link.set_connection(index);
        Self::Link(link)
    }

    fn link(&self) -> Option<&Arc<Link>> {
        match self {
            Self::Link(link) => Some(link),
            Self::Vacant | Self::Removed => None,
        }
    }

    /// Takes the link out, if there is one.
    fn take(&mut self) -> Option<Arc<Link>> {
        match mem::replace(self, Self::Vacant) {
            Self::Link(link) => Some(link),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// The links of a connection.
struct Links {
    current: Current,
    /// When the last link was lost.
    lost: Option<Instant<Monotonic>>,
    /// At most [`MAX_DRAINING`], for which there is room from the beginning.
    draining: KVec<Draining>,
    /// The link that was current when the session began to end.
    last: Option<Arc<Link>>,
    cookies: Cookies,
}

impl Links {
    fn current(&self) -> Option<&Arc<Link>> {
        self.current.link()
    }

    /// Whether this is the current link.
    fn is_current(&self, link: &Link) -> bool {
        self.current().is_some_and(|current| current.is(link))
    }

    fn has_room(&self) -> bool {
        self.draining.len() < MAX_DRAINING
    }

    /// Removes what is over.
    fn tidy(&mut self) {
        self.draining.retain(|one| !one.is_over());
    }

    /// Returns the links that drain.
    fn draining(&self) -> DrainingLinks {
        let mut links = self.draining.iter().map(|one| one.link.clone());
        core::array::from_fn(|_| links.next().flatten())
    }

    /// Has the current link drain, and leaves `current` in its place; `since` and `unreported` are
    /// those of [`Draining`]. Returns the link. The caller has checked that there is
    /// [room](Self::has_room).
    fn retire(
        &mut self,
        current: Current,
        since: Option<Instant<Monotonic>>,
        unreported: Option<Instant<Monotonic>>,
    ) -> Option<Arc<Link>> {
        let link = match mem::replace(&mut self.current, current) {
            Current::Link(link) => link,
            Current::Vacant | Current::Removed => return None,
        };
        // There is room.
        let _ = self.draining.push_within_capacity(Draining {
            link: Some(link.clone()),
            since,
            unreported,
        });
        Some(link)
    }
}

/// Why a push or a flush has failed.
pub(crate) enum PushError {
    /// The connection has no open link and did not take the request.
    Closed(OwnedRequest<Queue>),
    /// The connection took the request, but a send has failed.
    Broken(Arc<Link>, Broken),
}

/// A connection of a session.
///
/// Requests are published under the lock of the links. After a link was taken out, all of its
/// requests are therefore found among the started requests.
#[pin_data]
pub(crate) struct Connection {
    /// The place in the session.
    index: u32,
    /// The number of requests that were sent again on another connection.
    replayed: Atomic<u64>,
    /// Links for which no `NBD_CMD_LINK_UP` was sent yet.
    pending_up: Atomic<u32>,
    /// The error of the last link that has failed.
    #[pin]
    last_error: SpinLock<Option<LinkError>>,
    #[pin]
    links: SpinLock<Links>,
}

impl Connection {
    /// Creates a connection with a link. Context: may sleep.
    pub(crate) fn new(index: u32, link: Arc<Link>) -> Result<Arc<Self>> {
        Self::with(index, Current::new(link, index))
    }

    /// Creates a connection that is not part of the session before [`Self::replace`]. Context: may
    /// sleep.
    pub(crate) fn new_removed(index: u32) -> Result<Arc<Self>> {
        Self::with(index, Current::Removed)
    }

    fn with(index: u32, current: Current) -> Result<Arc<Self>> {
        let draining = KVec::with_capacity(MAX_DRAINING, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                index,
                replayed: Atomic::new(0),
                pending_up: Atomic::new(0),
                last_error <- new_spinlock!(None),
                links <- new_spinlock!(Links {
                    current,
                    lost: None,
                    draining,
                    last: None,
                    cookies: Cookies::new(),
                }),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Returns the link that gets requests, if there is one.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.links.lock().current().cloned()
    }

    /// Returns the link of this generation, if the connection has it and its server may answer.
    pub(crate) fn link_of(&self, generation: u64) -> Option<Arc<Link>> {
        let links = self.links.lock();
        let draining = links.draining.iter().filter_map(|one| one.link.as_ref());
        Iterator::chain(links.current().into_iter(), draining)
            .find(|link| link.generation() == generation)
            .cloned()
    }

    /// Whether the connection takes requests now.
    pub(crate) fn is_open(&self) -> bool {
        let links = self.links.lock();
        links.current().is_some_and(|link| link.is_open())
    }

    /// Whether there is no link, so that a reconnect can bring one.
    pub(crate) fn is_vacant(&self) -> bool {
        matches!(self.links.lock().current, Current::Vacant)
    }

    /// Whether there is a link that gets requests, or did until the server was told that none
    /// follow.
    pub(crate) fn has_link(&self) -> bool {
        self.links.lock().current().is_some()
    }

    /// Whether the connection was removed from the session.
    pub(crate) fn is_removed(&self) -> bool {
        matches!(self.links.lock().current, Current::Removed)
    }

    /// Whether the current link can be replaced or removed, as not too many drain already.
    pub(crate) fn can_drain(&self) -> bool {
        self.links.lock().has_room()
    }

    /// Whether there is a link, and its server may begin with another request at once. This is a
    /// hint.
    pub(crate) fn has_room(&self) -> bool {
        let links = self.links.lock();
        let unanswered = links.current().map(|link| link.stats().unanswered());
        unanswered.is_some_and(|count| count < MAX_AT_ONCE)
    }

    /// Whether no request is in flight, and the server was told that no requests follow or there is
    /// no link. Context: may sleep.
    pub(crate) fn is_quiet(&self) -> bool {
        let (current, draining) = {
            let links = self.links.lock();
            (links.current().cloned(), links.draining())
        };
        current.as_ref().is_none_or(|link| link.is_disconnected())
            && !Iterator::chain(draining.iter().flatten(), &current).any(|link| link.has_requests())
    }

    pub(crate) fn count_replay(&self) {
        self.replayed.fetch_add(1, Relaxed);
    }

    /// Returns the error of the last link that has failed.
    pub(crate) fn last_error(&self) -> Option<LinkError> {
        *self.last_error.lock()
    }

    pub(crate) fn replayed(&self) -> u64 {
        self.replayed.load(Relaxed)
    }

    /// Returns the name of the state for debugfs, and the link.
    pub(crate) fn describe(&self) -> (&'static str, Option<Arc<Link>>) {
        let links = self.links.lock();
        if let Some(link) = links.current() {
            return (link.describe(), Some(link.clone()));
        }
        match links.draining().into_iter().flatten().next() {
            Some(link) => ("leaving", Some(link)),
            None => ("closed", None),
        }
    }

    /// Returns what users see.
    pub(crate) fn status(&self) -> ConnectionStatus {
        let links = self.links.lock();
        let draining = links.draining();
        let state = match links.current() {
            Some(link) if link.is_open() => ConnectionState::Open,
            Some(_) => ConnectionState::Closing,
            None if draining.iter().any(|one| one.is_some()) => ConnectionState::Draining,
            None => ConnectionState::Vacant,
        };
        ConnectionStatus {
            state,
            link: links.current().cloned(),
            draining,
            lost: links.lost,
        }
    }

    /// Takes the number of new links that the caller has to report. Context: does not sleep.
    pub(crate) fn take_link_up(&self) -> u32 {
        self.pending_up.xchg(0, Relaxed)
    }

    /// Installs a link. Hands it back unless the connection is vacant.
    pub(crate) fn open(&self, link: Arc<Link>) -> Result<(), Arc<Link>> {
        let mut links = self.links.lock();
        if !matches!(links.current, Current::Vacant) {
            return Err(link);
        }
        links.current = Current::new(link, self.index);
        self.pending_up.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Installs a link, also in a connection that was removed. Returns the previous link, which
    /// drains: the caller calls [`Link::drain`]. The caller has asked [`Self::can_drain`], under
    /// `Session::inner`, with which this is called, too.
    pub(crate) fn replace(&self, link: Arc<Link>) -> Option<Arc<Link>> {
        let current = Current::new(link, self.index);
        let previous = self.links.lock().retire(current, None, None);
        self.pending_up.fetch_add(1, Relaxed);
        previous
    }

    /// Removes the connection from the session. Otherwise as [`Self::replace`].
    pub(crate) fn remove(&self) -> Option<Arc<Link>> {
        self.links.lock().retire(Current::Removed, None, None)
    }

    /// Queues a request. With `last`, everything that is queued is sent at once. Without it, the
    /// caller has to call [`Self::flush`] later.
    ///
    /// Context: may sleep, but never for the peer.
    pub(crate) fn push(&self, rq: OwnedRequest<Queue>, last: bool) -> Result<Sent, PushError> {
        let (link, sender) = {
            let mut links = self.links.lock();
            let Links {
                current, cookies, ..
            } = &mut *links;
            let Some(link) = current.link() else {
                return Err(PushError::Closed(rq));
            };
            let cookie = cookies.take(link.info());
            // The lock is held, so that a task that takes the link out finds the request published.
            match link.queue(rq, cookie, last) {
                Ok(Some(sender)) => (link.clone(), sender),
                Ok(None) => return Ok(Sent::Requests),
                Err(rq) => return Err(PushError::Closed(rq)),
            }
        };
        link.run(sender, Wait::No)
            .map_err(|broken| PushError::Broken(link, broken))
    }

    /// Sends what is queued, unless another task does so already. Context: may sleep, but never for
    /// the peer.
    pub(crate) fn flush(&self) -> Result<Sent, PushError> {
        let (link, sender) = {
            let links = self.links.lock();
            let Some(link) = links.current() else {
                return Ok(Sent::Requests);
            };
            match link.take_sender() {
                Some(sender) => (link.clone(), sender),
                None => return Ok(Sent::Requests),
            }
        };
        link.run(sender, Wait::No)
            .map_err(|broken| PushError::Broken(link, broken))
    }

    /// Takes `link` out if it is current, and records why it has failed. Returns whether it was
    /// current. Context: does not sleep.
    pub(crate) fn take_failed(&self, link: &Link, error: LinkError) -> bool {
        let taken = {
            let mut links = self.links.lock();
            if links.is_current(link) {
                links.lost = Some(Instant::now());
                links.current.take()
            } else {
                None
            }
        };
        if taken.is_some() {
            *self.last_error.lock() = Some(error);
        }
        taken.is_some()
    }

    /// As [`Self::take_failed`], but the link drains until [`Self::finish_drain`] is called or its
    /// time is over. The caller reports the link errors that are due.
    ///
    /// Returns `None` if the link is not current. Otherwise hands back an earlier link that drains
    /// if there are too many, which the caller closes.
    pub(crate) fn start_drain(&self, link: &Link) -> Option<DrainStart> {
        let left = {
            let mut links = self.links.lock();
            if !links.is_current(link) {
                return None;
            }
            let now = Instant::now();
            links.lost = Some(now);
            let age = link.created().elapsed().as_millis();
            let young = (age < MIN_REPORT_AGE_MS).then(|| link.created());
            let previous = if links.has_room() {
                None
            } else {
                links.draining.remove(0).ok()
            };
            let _link = links.retire(Current::Vacant, Some(now), young);
            let unreported = previous.as_ref().is_some_and(|e| e.unreported.is_some());
            DrainStart {
                notify: u32::from(young.is_none()) + u32::from(unreported),
                previous: previous.and_then(|previous| previous.link),
            }
        };
        *self.last_error.lock() = Some(LinkError::ShuttingDown);
        Some(left)
    }

    /// Limits the time of a link that drains because it was replaced or removed, as its server is
    /// shutting down. Returns whether the connection has it. Context: does not sleep.
    pub(crate) fn limit_drain(&self, link: &Link) -> bool {
        let mut links = self.links.lock();
        let mut draining = links.draining.iter_mut();
        let one = draining.find(|one| one.has(link.generation()));
        one.map(|one| one.since.get_or_insert_with(Instant::now))
            .is_some()
    }

    /// Records that `link` has finished draining. Context: does not sleep.
    pub(crate) fn finish_drain(&self, link: &Link) {
        let _link = {
            let mut links = self.links.lock();
            let mut draining = links.draining.iter_mut();
            let one = draining.find(|one| one.has(link.generation()));
            let gone = one.and_then(|one| one.link.take());
            links.tidy();
            gone
        };
    }

    /// Whether the link of this generation is draining.
    pub(crate) fn is_draining(&self, generation: u64) -> bool {
        let links = self.links.lock();
        links.draining.iter().any(|one| one.has(generation))
    }

    /// Whether any earlier link has requests in flight.
    pub(crate) fn drains(&self) -> bool {
        let links = self.links.lock();
        let mut draining = links.draining.iter().filter_map(|one| one.link.as_ref());
        draining.any(|link| link.is_draining())
    }

    /// Returns what is due. Lowers `next` to the milliseconds until something is. Context: does not
    /// sleep.
    pub(crate) fn due(&self, next: &mut Option<i64>) -> Due {
        let mut due = Due::default();
        let mut links = self.links.lock();
        for (one, link) in links.draining.iter_mut().zip(&mut due.links) {
            if let Some(since) = one.last_part() {
                if !waits(next, since, DRAIN_MS) {
                    *link = one.link.take();
                }
            }
            if let Some(created) = one.unreported {
                if !waits(next, created, MIN_REPORT_AGE_MS) {
                    one.unreported = None;
                    due.notify += 1;
                }
            }
        }
        links.tidy();
        due
    }

    /// Closes the connection. The caller ensures that it is not opened again. Links that drain are
    /// closed, too, except for those in their last part if they may use that `time`. Returns how
    /// many link errors were not reported yet. Context: does not sleep.
    pub(crate) fn close(&self, time: bool) -> u32 {
        let (current, draining, unreported) = {
            let mut links = self.links.lock();
            let current = links.current.take();
            links.last = current.clone();
            let mut draining = DrainingLinks::default();
            let mut unreported = 0;
            for (one, link) in links.draining.iter_mut().zip(&mut draining) {
                unreported += u32::from(one.unreported.take().is_some());
                if !time || one.since.is_none() {
                    *link = one.link.take();
                }
            }
            links.tidy();
            (current, draining, unreported)
        };
        for link in Iterator::chain(draining.into_iter(), [current]).flatten() {
            drop(link.close());
            link.shut_down();
        }
        unreported
    }

    /// Whether the end of the session waits for a call of the last link's socket.
    pub(crate) fn is_blocked(&self) -> bool {
        let links = self.links.lock();
        links.last.as_ref().is_some_and(|link| !link.is_shut())
    }

    /// Drops the last link, and restores the settings of its socket. Context: may sleep for the
    /// socket lock.
    pub(crate) fn release_last(&self) {
        let last = self.links.lock().last.take();
        if let Some(link) = last {
            link.socket().give_back();
        }
    }
}

/// What the caller of [`Connection::start_drain`] has to do.
pub(crate) struct DrainStart {
    /// The number of link errors to report.
    pub(crate) notify: u32,
    /// A link to close.
    pub(crate) previous: Option<Arc<Link>>,
}
