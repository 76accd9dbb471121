// SPDX-License-Identifier: GPL-2.0

//! A connection: a place in a session, with a link in it or none until a reconnect brings one.

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

/// How long a link that its server wants to be left may take to come to its end, in milliseconds.
const LEAVE_MS: i64 = 1000;

/// The age of a link, in milliseconds, before which it is not told that its server wants it to be
/// left: a server that says so on every new connection costs one reconnect in that time.
const YOUNG_MS: i64 = 1000;

/// A link that its server wants to be left. It gets no requests.
struct Leaving {
    /// `None` once the link has come to its end.
    link: Option<Arc<Link>>,
    since: Instant<Monotonic>,
    /// When the link was made, if nobody was told yet that it is gone.
    untold: Option<Instant<Monotonic>>,
}

impl Leaving {
    fn is_over(&self) -> bool {
        self.link.is_none() && self.untold.is_none()
    }
}

/// What is due at a connection.
#[derive(Default)]
pub(crate) struct Due {
    /// This link has had its time.
    pub(crate) link: Option<Arc<Link>>,
    /// User space is to be told about the loss of a link.
    pub(crate) notify: bool,
}

/// Whether what has its time of `limit` milliseconds from `since` on has still some left, which makes
/// it the `next` that is due if nothing is earlier.
pub(crate) fn waits(next: &mut Option<i64>, since: Instant<Monotonic>, limit: i64) -> bool {
    let left = limit - since.elapsed().as_millis();
    if left > 0 {
        *next = Some(next.map_or(left, |next| next.min(left)));
    }
    left > 0
}

/// The links of a connection.
struct Links {
    /// The one that gets requests.
    current: Option<Arc<Link>>,
    leaving: Option<Leaving>,
    /// The one that was current when the session began to end.
    last: Option<Arc<Link>>,
}

/// Why a request could not be handed to a connection.
pub(crate) enum PushError {
    /// It takes no requests.
    Closed(OwnedRequest<Queue>),
    /// The request was taken, but the link is broken.
    Broken(Arc<Link>, Broken),
}

/// A connection of a session.
///
/// A request that was pushed before its link was taken away is seen by whoever looks through the
/// started requests afterwards, so that none is forgotten.
#[pin_data]
pub(crate) struct Connection {
    /// Its place in the session, for messages.
    index: u32,
    /// Requests that had to be sent again elsewhere.
    replayed: Atomic<u64>,
    /// Why the last link was lost.
    #[pin]
    last_error: SpinLock<Option<LinkError>>,
    #[pin]
    links: SpinLock<Links>,
}

impl Connection {
    /// Makes a connection with a link. May sleep.
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

    /// The link that gets requests, if there is one.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.links.lock().current.clone()
    }

    /// Whether requests can be pushed, for now.
    pub(crate) fn is_open(&self) -> bool {
        let links = self.links.lock();
        links.current.as_ref().is_some_and(|link| link.is_open())
    }

    /// Whether there is no link, so that a reconnect can bring one.
    pub(crate) fn is_vacant(&self) -> bool {
        self.links.lock().current.is_none()
    }

    /// Whether the connection is open and the server has nothing to do on it, as far as one can
    /// tell.
    pub(crate) fn is_idle(&self) -> bool {
        let links = self.links.lock();
        links.current.as_ref().is_some_and(|link| link.is_idle())
    }

    /// Whether nothing is in flight and the server was told that nothing follows, or there is no
    /// server. May sleep.
    pub(crate) fn is_quiet(&self) -> bool {
        match self.link() {
            Some(link) => link.is_disconnected() && !link.has_requests(),
            None => true,
        }
    }

    pub(crate) fn count_replay(&self) {
        self.replayed.fetch_add(1, Relaxed);
    }

    /// Why the last link was lost, if one was.
    pub(crate) fn last_error(&self) -> Option<LinkError> {
        *self.last_error.lock()
    }

    pub(crate) fn replayed(&self) -> u64 {
        self.replayed.load(Relaxed)
    }

    /// How far the connection is, and its link, for people to read.
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

    /// Puts a link into its place; hands it back if there is one.
    pub(crate) fn open(&self, link: Arc<Link>) -> Result<(), Arc<Link>> {
        let mut links = self.links.lock();
        if links.current.is_some() {
            return Err(link);
        }
        links.current = Some(link);
        Ok(())
    }

    /// Queues a request. With `last`, it is sent at once, with all that were queued before;
    /// otherwise [`Self::flush`] follows.
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
            // Under the lock: whoever takes the link away finds the request published.
            match link.queue(rq, cookie, last) {
                Ok(Some(sender)) => (link.clone(), sender),
                Ok(None) => return Ok(Sent::Requests),
                Err(rq) => return Err(PushError::Closed(rq)),
            }
        };
        link.run(sender, Wait::No)
            .map_err(|broken| PushError::Broken(link, broken))
    }

    /// Sends what is queued, unless somebody does already. May sleep, but never for the peer.
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

    /// Takes `link` away, if it is the one that gets requests, and remembers why it is lost. Whether
    /// it was. Does not sleep.
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

    /// As [`Self::lose`] with a link that its server wants to be left, but the link goes on without
    /// new requests until [`Self::left`], or until its time is over. The caller tells about the loss
    /// now if this says so.
    ///
    /// Returns `None` if it was not the one that gets requests. Hands an earlier one that is being
    /// left back, to be closed by the caller.
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

    /// `link` has come to its end. Does not sleep.
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

    /// Whether a link of this generation is being left.
    pub(crate) fn is_leaving(&self, generation: u64) -> bool {
        match &self.links.lock().leaving {
            Some(Leaving {
                link: Some(link), ..
            }) => link.generation() == generation,
            _ => false,
        }
    }

    /// What is due now; `next` is when something is, in milliseconds. Does not sleep.
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

    /// Closes the connection for good: the caller makes sure that none opens it again. A link that is
    /// being left is closed with it unless it may take its `time`. Returns how many losses were not
    /// told about yet. Does not sleep.
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

    /// Lets go of the link that the session ended with, and gives its socket back. Sleeps for the
    /// socket's lock.
    pub(crate) fn forget(&self) {
        let last = self.links.lock().last.take();
        if let Some(link) = last {
            link.socket().give_back();
        }
    }
}

/// What follows when a link is left.
pub(crate) struct Left {
    /// So many losses are to be told about now.
    pub(crate) notify: u32,
    /// To be closed.
    pub(crate) earlier: Option<Arc<Link>>,
}
