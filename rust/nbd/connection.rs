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
const LEAVE_MS: i64 = 1000;

/// The link error of a link that is younger than this, in milliseconds, is reported only when the
/// link reaches this age. A server that shuts down every new connection thus causes one reconnect
/// in this time.
const YOUNG_MS: i64 = 1000;

/// A link whose server is shutting down. It gets no new requests.
struct Leaving {
    /// `None` once the link is closed.
    link: Option<Arc<Link>>,
    since: Instant<Monotonic>,
    /// When the link was created, if its link error was not reported yet.
    untold: Option<Instant<Monotonic>>,
}

impl Leaving {
    fn is_over(&self) -> bool {
        self.link.is_none() && self.untold.is_none()
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
/// to the milliseconds that are left, unless another limit comes earlier.
pub(crate) fn waits(next: &mut Option<i64>, since: Instant<Monotonic>, limit: i64) -> bool {
    let left = limit - since.elapsed().as_millis();
    if left > 0 {
        *next = Some(next.map_or(left, |next| next.min(left)));
    }
    left > 0
}

/// The links of a connection.
struct Links {
    /// The link that gets requests.
    current: Option<Arc<Link>>,
    leaving: Option<Leaving>,
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
                last_error <- new_spinlock!(None),
                links <- new_spinlock!(Links {
                    current: Some(link),
                    leaving: None,
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
        match &links.leaving {
            Some(Leaving {
                link: Some(link), ..
            }) => ("leaving", Some(link.clone())),
            _ => ("closed", None),
        }
    }

    /// Installs a link. Hands it back if there is one already.
    pub(crate) fn open(&self, link: Arc<Link>) -> Result<(), Arc<Link>> {
        let mut links = self.links.lock();
        if links.current.is_some() {
            return Err(link);
        }
        links.current = Some(link);
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
    pub(crate) fn lose(&self, link: &Link, error: LinkError) -> bool {
        let taken = {
            let mut links = self.links.lock();
            match &links.current {
                Some(current) if current.is(link) => links.current.take(),
                _ => None,
            }
        };
        if taken.is_some() {
            *self.last_error.lock() = Some(error);
        }
        taken.is_some()
    }

    /// As [`Self::lose`], but the link drains until [`Self::left`] is called or its time is over.
    /// The caller reports the link errors that are due.
    ///
    /// Returns `None` if the link is not current. Otherwise hands back an earlier link that drains,
    /// which the caller closes.
    pub(crate) fn leave(&self, link: &Link) -> Option<Left> {
        let left = {
            let mut links = self.links.lock();
            match &links.current {
                Some(current) if current.is(link) => {}
                _ => return None,
            }
            let link = links.current.take();
            let made = link.as_ref().map(|link| link.made());
            let young = made.filter(|made| made.elapsed().as_millis() < YOUNG_MS);
            let earlier = links.leaving.replace(Leaving {
                link,
                since: Instant::now(),
                untold: young,
            });
            let untold = earlier.as_ref().is_some_and(|e| e.untold.is_some());
            Left {
                notify: u32::from(young.is_none()) + u32::from(untold),
                earlier: earlier.and_then(|earlier| earlier.link),
            }
        };
        *self.last_error.lock() = Some(LinkError::ShuttingDown);
        Some(left)
    }

    /// Records that `link` has finished draining. Context: does not sleep.
    pub(crate) fn left(&self, link: &Link) {
        let _link = {
            let mut links = self.links.lock();
            let leaving = links.leaving.as_mut();
            let gone = leaving.and_then(|leaving| match &leaving.link {
                Some(one) if one.is(link) => leaving.link.take(),
                _ => None,
            });
            if links.leaving.as_ref().is_some_and(Leaving::is_over) {
                links.leaving = None;
            }
            gone
        };
    }

    /// Whether the link of this generation is draining.
    pub(crate) fn is_leaving(&self, generation: u64) -> bool {
        match &self.links.lock().leaving {
            Some(Leaving {
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
        let Some(leaving) = &mut links.leaving else {
            return due;
        };
        if leaving.link.is_some() && !waits(next, leaving.since, LEAVE_MS) {
            due.link = leaving.link.take();
        }
        if let Some(made) = leaving.untold {
            if !waits(next, made, YOUNG_MS) {
                leaving.untold = None;
                due.notify = true;
            }
        }
        if leaving.is_over() {
            links.leaving = None;
        }
        due
    }

    /// Closes the connection. The caller ensures that it is not opened again. A link that drains is
    /// closed, too, unless it may use its `time`. Returns how many link errors were not reported
    /// yet. Context: does not sleep.
    pub(crate) fn shut(&self, time: bool) -> u32 {
        let (current, leaving, untold) = {
            let mut links = self.links.lock();
            let current = links.current.take();
            links.last = current.clone();
            let mut leaving = None;
            let mut untold = 0;
            if let Some(one) = &mut links.leaving {
                untold = u32::from(one.untold.take().is_some());
                if !time {
                    leaving = one.link.take();
                }
            }
            if links.leaving.as_ref().is_some_and(Leaving::is_over) {
                links.leaving = None;
            }
            (current, leaving, untold)
        };
        for link in [current, leaving].into_iter().flatten() {
            drop(link.close());
            link.shut_down();
        }
        untold
    }

    /// Whether the end of the session waits for a call of the last link's socket.
    pub(crate) fn is_stuck(&self) -> bool {
        let links = self.links.lock();
        links.last.as_ref().is_some_and(|link| !link.is_shut())
    }

    /// Drops the last link, and restores the settings of its socket. Context: may sleep for the
    /// socket lock.
    pub(crate) fn forget(&self) {
        let last = self.links.lock().last.take();
        if let Some(link) = last {
            link.socket().give_back();
        }
    }
}

/// What the caller of [`Connection::leave`] has to do.
pub(crate) struct Left {
    /// The number of link errors to report.
    pub(crate) notify: u32,
    /// A link to close.
    pub(crate) earlier: Option<Arc<Link>>,
}
