// SPDX-License-Identifier: GPL-2.0

//! Link errors and reconnects.

use crate::{
    connection::waits,
    error::{
        LinkError,
        Reason, //
    },
    link::{
        Broken,
        Link, //
    },
    log::Topic,
    request::Queue,
    session::{
        state::{
            LinkFailure,
            OnLastFailure,
            Phase,
            SessionState, //
        },
        Origin,
        Session,
        DISCONNECT_MS, //
    }, //
};
use core::cell::Cell;
use kernel::{
    block::mq::OwnedRequest,
    net::socket::Socket,
    prelude::*,
    sync::{
        atomic::Relaxed,
        wait::WaitMode,
        Arc, //
    },
    time::{
        msecs_to_jiffies,
        Instant,
        Jiffies,
        Monotonic, //
    }, //
};

/// The longest single wait of the clock, in milliseconds, since jiffies may have only 32 bits.
const MAX_WAIT_MS: i64 = 60_000;

impl Session {
    /// Handles an error of `link`. If the link was still in use, its requests go to another
    /// connection, or wait for one, or the session ends.
    ///
    /// Context: may sleep, but neither for a peer nor for the socket lock.
    pub(crate) fn link_failed(self: &Arc<Self>, link: &Arc<Link>, error: LinkError) {
        let failure = {
            let mut inner = self.inner.lock();
            let connection = self.connections().find(|one| one.take_failed(link, error));
            // If no connection has this link, it was given up before, or belongs to a previous
            // session. The end of that session has handled everything but what the receiver has
            // released since.
            connection.map(|one| {
                let (failure, end) = inner.state.link_failed(error, self.on_last_failure());
                // A disconnect leaves time to servers that were replaced. The clock ends that time.
                let leaves_time = inner.state.phase() == Phase::Disconnecting && self.drains();
                if let (Some(reason), false) = (end, leaves_time) {
                    self.begin_end(&mut inner, reason);
                }
                (one, failure)
            })
        };
        let outbox = link.close();
        link.shut_down();
        match failure {
            Some((connection, failure)) => {
                self.notify_later();
                if let LinkFailure::Report(left) = failure {
                    self.link_dead(1);
                    self.log_link_error(connection.index(), error, left);
                }
                self.replay(link, || connection.count_replay());
            }
            None => self.drained_link_failed(link, error),
        }
        // The requests in it must stay published until here.
        drop(outbox);
        self.changed.wake_all();
    }

    /// Handles the end of a link that is not current, after it was closed.
    fn drained_link_failed(&self, link: &Link, error: LinkError) {
        let connection = self
            .connections()
            .find(|one| one.is_draining(link.generation()));
        let Some(connection) = connection else {
            self.replay(link, || ());
            return;
        };
        let count = Cell::new(0u32);
        self.replay(link, || {
            connection.count_replay();
            count.set(count.get() + 1);
        });
        connection.finish_drain(link);
        if count.get() > 0 && self.info().may_log(Topic::Connection) {
            dev_info!(
                self.disk().device(),
                "previous socket of connection {} lost: {}; {} request(s) sent again\n",
                connection.index(),
                error,
                count.get()
            );
        }
    }

    /// Takes `link` out of its connection because its server is shutting down. The link gets no new
    /// requests, and the queued ones go elsewhere. Requests in flight may still be answered until
    /// the clock closes the link.
    ///
    /// Context: may sleep, but neither for a peer nor for the socket lock.
    pub(crate) fn start_drain(self: &Arc<Self>, link: &Arc<Link>) {
        let error = LinkError::ShuttingDown;
        let (connection, left, failure) = {
            let mut inner = self.inner.lock();
            // The end of a session tells its servers by itself.
            let SessionState::Live(_) = inner.state else {
                return;
            };
            let left = self
                .connections()
                .find_map(|one| Some((one, one.start_drain(link)?)));
            let Some((connection, left)) = left else {
                let limited = self.connections().any(|one| one.limit_drain(link));
                drop(inner);
                if limited {
                    self.start_clock();
                }
                return;
            };
            // This comes before the session can end, which spares the requests of a link that
            // drains.
            link.watch();
            link.drain(|| connection.count_replay());
            let (failure, end) = inner.state.link_failed(error, self.on_last_failure());
            if let Some(reason) = end {
                self.begin_end(&mut inner, reason);
            }
            (connection, left, failure)
        };
        // This counts the request that the server has refused.
        connection.count_replay();
        self.start_clock();
        self.notify_later();
        self.link_dead(left.notify);
        if let LinkFailure::Report(left) = failure {
            self.log_link_error(connection.index(), error, left);
        }
        if let Some(previous) = left.previous {
            self.link_failed(&previous, error);
        }
    }

    /// Handles an error of a send. Context: may sleep, but neither for a peer nor for the socket
    /// lock.
    pub(crate) fn send_failed(self: &Arc<Self>, link: &Arc<Link>, broken: Broken) {
        let broken = match broken.error() {
            // The server may have sent replies, or `NBD_ESHUTDOWN`, before it closed its end.
            EPIPE | ECONNRESET => match link.fail_sending(broken) {
                Ok(()) => return link.receive_later(),
                Err(broken) => broken,
            },
            _ => broken,
        };
        self.link_failed(link, LinkError::Send(broken.error()));
        // The requests of the sender must stay published until here.
        drop(broken);
    }

    /// Handles the end of a request of a watched link. Context: may sleep, but never for a peer.
    pub(crate) fn request_finished(self: &Arc<Self>, link: &Arc<Link>) {
        if link.is_draining() {
            let result = link.disconnect_if_drained();
            if !link.is_draining() {
                // The server has a limited time to close its end.
                self.start_clock();
            }
            if let Err(broken) = result {
                self.send_failed(link, broken);
            }
        }
        self.changed.wake_all();
    }

    /// Takes the number of link errors that the caller has to report. Context: does not sleep.
    pub(crate) fn take_link_dead(&self) -> u32 {
        self.pending_link_dead.xchg(0, Relaxed)
    }

    fn log_link_error(&self, connection: u32, error: LinkError, left: u32) {
        if self.info().may_log(Topic::Connection) {
            dev_info!(
                self.disk().device(),
                "connection {} lost: {}; {} of {} left\n",
                connection,
                error,
                left,
                self.count_connections().1
            );
        }
    }

    /// Has `count` link errors reported to the multicast group. Context: does not sleep.
    pub(crate) fn link_dead(self: &Arc<Self>, count: u32) {
        if count > 0 {
            self.pending_link_dead.fetch_add(count, Relaxed);
            self.notify_later();
        }
    }

    /// Has users told of link errors, new links and changes of the state. Context: does not sleep.
    pub(super) fn notify_later(self: &Arc<Self>) {
        // If the work is queued already, it reports these, too.
        let _ = self
            .info()
            .driver()
            .event_wq()
            .enqueue::<Arc<Self>, 2>(self.clone());
    }

    /// Requeues the requests of a closed link, and calls `f` for each.
    fn replay(&self, link: &Link, f: impl Fn()) {
        self.disk().for_each_started(|rq| {
            if let Some(claim) = rq.claim(None, |data| link.has(data)) {
                f();
                link.requeue(claim);
            }
        });
    }

    /// Returns what happens when the last link fails.
    fn on_last_failure(&self) -> OnLastFailure {
        match self.origin {
            Origin::Ioctl { .. } => OnLastFailure::End,
            Origin::Netlink { .. } if self.dead_conn_timeout.load(Relaxed) > 0 => {
                OnLastFailure::Wait
            }
            Origin::Netlink { .. } => OnLastFailure::Fail,
        }
    }

    /// Whether the link of this generation is draining.
    pub(crate) fn is_draining(&self, generation: u64) -> bool {
        self.connections().any(|one| one.is_draining(generation))
    }

    /// Whether any earlier link has requests in flight.
    fn drains(&self) -> bool {
        self.connections().any(|one| one.drains())
    }

    /// Opens connections that have no link with the sockets. Returns how many sockets were used.
    /// The others are dropped.
    ///
    /// Fails with `ENODEV` if the session is ending, and with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub(crate) fn reconnect(self: &Arc<Self>, sockets: KVec<Socket>) -> Result<u32> {
        let mut used = 0;
        for socket in sockets {
            if !self.connections().any(|one| one.is_vacant()) {
                break;
            }
            let mut link = Link::new(self.disk(), self.info(), self.workqueues(), socket)?;
            let opened = {
                let mut inner = self.inner.lock();
                if !inner.state.takes_links() {
                    return Err(ENODEV);
                }
                let mut opened = None;
                for connection in self.connections() {
                    match connection.open(link.clone()) {
                        Ok(()) => {
                            opened = Some(connection);
                            break;
                        }
                        Err(back) => link = back,
                    }
                }
                if opened.is_some() {
                    inner.state.reconnect();
                    // The end waits for receivers that were started under this lock.
                    link.launch();
                }
                opened
            };
            let Some(connection) = opened else {
                break;
            };
            used += 1;
            self.notify_later();
            self.changed.wake_all();
            self.disk().kick_requeued();
            if self.info().may_log(Topic::Connection) {
                dev_info!(
                    self.disk().device(),
                    "connection {} has a new socket\n",
                    connection.index()
                );
            }
        }
        Ok(used)
    }

    /// Parks a request until a connection is open. `since` is the time at which the first parked
    /// request arrived. Context: under `Session::inner`; does not sleep.
    pub(crate) fn park(
        self: &Arc<Self>,
        since: &mut Option<Instant<Monotonic>>,
        rq: OwnedRequest<Queue>,
    ) {
        if since.is_none() {
            *since = Some(Instant::now());
            self.start_clock();
        }
        rq.requeue_later();
    }

    /// Whether any connection is open.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.inner.lock().state, SessionState::Live(_))
    }

    /// Queues the work that calls [`Self::tick`]. Context: does not sleep.
    pub(crate) fn start_clock(self: &Arc<Self>) {
        // If the work is queued or runs already, it finds the new time limit.
        let _ = self
            .workqueues()
            .receivers()
            .enqueue::<Arc<Self>, 1>(self.clone());
        self.changed.wake_all();
    }

    /// Handles time limits until none is pending. Context: may sleep.
    pub(crate) fn run_clock(self: &Arc<Self>) {
        // After something was due, the next tick follows at once.
        self.changed.wait_while(WaitMode::Idle, || self.tick());
    }

    /// Does what is due: ends the wait for a connection, ends a session that was told to
    /// disconnect, closes draining links, and reports link errors. Returns the time until the next
    /// limit, in jiffies, if there is one.
    ///
    /// Context: may sleep, but neither for a peer nor for the socket lock.
    fn tick(self: &Arc<Self>) -> Option<Jiffies> {
        let mut next = None;
        let gave_up = {
            let mut inner = self.inner.lock();
            match inner.state {
                SessionState::Waiting(Some(since)) => {
                    let limit = i64::from(self.dead_conn_timeout.load(Relaxed)) * 1000;
                    !waits(&mut next, since, limit) && inner.state.give_up()
                }
                SessionState::Disconnecting(_, since) => {
                    if !waits(&mut next, since, DISCONNECT_MS.into()) {
                        self.begin_end(&mut inner, Reason::Requested);
                    }
                    false
                }
                _ => false,
            }
        };
        if gave_up {
            if self.info().may_log(Topic::Connection) {
                dev_warn!(
                    self.disk().device(),
                    "no new connection in time: requests fail until there is one\n"
                );
            }
            self.notify_later();
            self.disk().kick_requeued();
        }
        for connection in self.connections() {
            let due = connection.due(&mut next);
            self.link_dead(due.notify);
            // This also sends `NBD_CMD_DISC`, before the receiver finds the end of the stream.
            for link in due.links.into_iter().flatten() {
                link.shut_down();
            }
        }
        let next = u32::try_from(next?.min(MAX_WAIT_MS)).unwrap_or(u32::MAX);
        Some(msecs_to_jiffies(next).max(1))
    }
}
