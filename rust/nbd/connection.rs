// SPDX-License-Identifier: GPL-2.0

//! A connection: a place in a session. It has a link, or none until a reconnect brings one.

use crate::{
    error::LinkError,
    link::{Broken, Link, Sent},
    request::Queue, //
};
use kernel::{
    block::mq::OwnedRequest,
    net::socket::Wait,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, SpinLock,
    },
    time::{Instant, Monotonic}, //
};

/// How long a link may drain after its server has begun to shut down, in milliseconds.
const DRAIN_MS: i64 = 1000;

/// The link error of a link that is younger than this, in milliseconds, is reported only when the
/// link reaches this age. A server that shuts down every new connection thus causes one reconnect
/// in this time.
const MIN_REPORT_AGE_MS: i64 = 1000;

/// A link whose server is shutting down. It gets no new requests.
struct Draining {
    /// `None` once the link is closed.
    link: Option<Arc<Link>>,
    since: Instant<Monotonic>,
    /// When the link was created, if its link error was not reported yet.
    unreported: Option<Instant<Monotonic>>,
}

impl Draining {
    fn is_over(&self) -> bool {
        self.link.is_none() && self.unreported.is_none()
    }
}

/// What is due on a connection.
#[derive(Default)]
pub(crate) struct Due {
    /// The time of this link is over.
    pub(crate) link: Option<Arc<Link>>,
    /// A link error has to be reported.
    pub(crate) notify: bool,
}

/// Whether a time limit of `limit` milliseconds from `since` is still pending. If so, lowers `next`
/// to the milliseconds that are left, unless another limit comes previous.
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
    /// An earlier link that drains.
    pub(crate) draining: Option<Arc<Link>>,
    /// When the last link was lost, if any was.
    pub(crate) lost: Option<Instant<Monotonic>>,
}

/// The links of a connection.
struct Links {
    /// The link that gets requests.
    current: Option<Arc<Link>>,
    /// When the last link was lost.
    lost: Option<Instant<Monotonic>>,
    draining: Option<Draining>,
    /// The link that was current when the session began to end.
    last: Option<Arc<Link>>,
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
        Arc::pin_init(
            pin_init!(Self {
                index,
                replayed: Atomic::new(0),
                pending_up: Atomic::new(0),
                last_error <- new_spinlock!(None),
                links <- new_spinlock!(Links {
                    current: Some(link),
                    lost: None,
                    draining: None,
                    last: None,
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
        self.links.lock().current.clone()
    }

    /// Whether the connection takes requests now.
    pub(crate) fn is_open(&self) -> bool {
        let links = self.links.lock();
        links.current.as_ref().is_some_and(|link| link.is_open())
    }

    /// Whether there is no link, so that a reconnect can bring one.
    pub(crate) fn is_vacant(&self) -> bool {
        self.links.lock().current.is_none()
    }

    /// Whether the connection is open and the server has answered everything. This is a hint.
    pub(crate) fn is_idle(&self) -> bool {
        let links = self.links.lock();
        links.current.as_ref().is_some_and(|link| link.is_idle())
    }

    /// Whether no request is in flight and the server was told that no requests follow, or there is
    /// no link. Context: may sleep.
    pub(crate) fn is_quiet(&self) -> bool {
        match self.link() {
            Some(link) => link.is_disconnected() && !link.has_requests(),
            None => true,
        }
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
        if let Some(link) = &links.current {
            return (link.describe(), Some(link.clone()));
        }
        match &links.draining {
            Some(Draining {
                link: Some(link), ..
            }) => ("leaving", Some(link.clone())),
            _ => ("closed", None),
        }
    }

    /// Returns what users see.
    pub(crate) fn status(&self) -> ConnectionStatus {
        let links = self.links.lock();
        let draining = links.draining.as_ref().and_then(|one| one.link.clone());
        let state = match (&links.current, &draining) {
            (Some(link), _) if link.is_open() => ConnectionState::Open,
            (Some(_), _) => ConnectionState::Closing,
            (None, Some(_)) => ConnectionState::Draining,
            (None, None) => ConnectionState::Vacant,
        };
        ConnectionStatus {
            state,
            link: links.current.clone(),
            draining,
            lost: links.lost,
        }
    }

    /// Takes the number of new links that the caller has to report. Context: does not sleep.
    pub(crate) fn take_link_up(&self) -> u32 {
        self.pending_up.xchg(0, Relaxed)
    }

    /// Installs a link. Hands it back if there is one already.
    pub(crate) fn open(&self, link: Arc<Link>) -> Result<(), Arc<Link>> {
        let mut links = self.links.lock();
        if links.current.is_some() {
            return Err(link);
        }
        links.current = Some(link);
        self.pending_up.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Queues a request. With `last`, everything that is queued is sent at once. Without it, the
    /// caller has to call [`Self::flush`] later.
    ///
    /// Context: may sleep, but never for the peer.
    pub(crate) fn push(
        &self,
        rq: OwnedRequest<Queue>,
        cookie: u32,
        last: bool,
    ) -> Result<Sent, PushError> {
        let (link, sender) = {
            let links = self.links.lock();
            let Some(link) = &links.current else {
                return Err(PushError::Closed(rq));
            };
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
            let Some(link) = &links.current else {
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
            match &links.current {
                Some(current) if current.is(link) => {
                    links.lost = Some(Instant::now());
                    links.current.take()
                }
                _ => None,
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
    /// Returns `None` if the link is not current. Otherwise hands back an earlier link that drains,
    /// which the caller closes.
    pub(crate) fn start_drain(&self, link: &Link) -> Option<DrainStart> {
        let left = {
            let mut links = self.links.lock();
            match &links.current {
                Some(current) if current.is(link) => {}
                _ => return None,
            }
            let link = links.current.take();
            links.lost = Some(Instant::now());
            let created = link.as_ref().map(|link| link.created());
            let young = created.filter(|created| created.elapsed().as_millis() < MIN_REPORT_AGE_MS);
            let previous = links.draining.replace(Draining {
                link,
                since: Instant::now(),
                unreported: young,
            });
            let unreported = previous.as_ref().is_some_and(|e| e.unreported.is_some());
            DrainStart {
                notify: u32::from(young.is_none()) + u32::from(unreported),
                previous: previous.and_then(|previous| previous.link),
            }
        };
        *self.last_error.lock() = Some(LinkError::ShuttingDown);
        Some(left)
    }

    /// Records that `link` has finished draining. Context: does not sleep.
    pub(crate) fn finish_drain(&self, link: &Link) {
        let _link = {
            let mut links = self.links.lock();
            let draining = links.draining.as_mut();
            let gone = draining.and_then(|draining| match &draining.link {
                Some(one) if one.is(link) => draining.link.take(),
                _ => None,
            });
            if links.draining.as_ref().is_some_and(Draining::is_over) {
                links.draining = None;
            }
            gone
        };
    }

    /// Whether the link of this generation is draining.
    pub(crate) fn is_draining(&self, generation: u64) -> bool {
        match &self.links.lock().draining {
            Some(Draining {
                link: Some(link), ..
            }) => link.generation() == generation,
            _ => false,
        }
    }

    /// Returns what is due. Lowers `next` to the milliseconds until something is. Context: does not
    /// sleep.
    pub(crate) fn due(&self, next: &mut Option<i64>) -> Due {
        let mut due = Due::default();
        let mut links = self.links.lock();
        let Some(draining) = &mut links.draining else {
            return due;
        };
        if draining.link.is_some() && !waits(next, draining.since, DRAIN_MS) {
            due.link = draining.link.take();
        }
        if let Some(created) = draining.unreported {
            if !waits(next, created, MIN_REPORT_AGE_MS) {
                draining.unreported = None;
                due.notify = true;
            }
        }
        if draining.is_over() {
            links.draining = None;
        }
        due
    }

    /// Closes the connection. The caller ensures that it is not opened again. A link that drains is
    /// closed, too, unless it may use its `time`. Returns how many link errors were not reported
    /// yet. Context: does not sleep.
    pub(crate) fn close(&self, time: bool) -> u32 {
        let (current, draining, unreported) = {
            let mut links = self.links.lock();
            let current = links.current.take();
            links.last = current.clone();
            let mut draining = None;
            let mut unreported = 0;
            if let Some(one) = &mut links.draining {
                unreported = u32::from(one.unreported.take().is_some());
                if !time {
                    draining = one.link.take();
                }
            }
            if links.draining.as_ref().is_some_and(Draining::is_over) {
                links.draining = None;
            }
            (current, draining, unreported)
        };
        for link in [current, draining].into_iter().flatten() {
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
