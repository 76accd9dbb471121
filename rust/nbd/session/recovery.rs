// SPDX-License-Identifier: GPL-2.0

//! What happens when connections of a session are lost, and when new ones come.

use crate::{
    connection::waits,
    error::{LinkError, Reason},
    link::{Broken, Link},
    log::Topic,
    request::Queue,
    session::{
        life::{LastLost, Lost, SessionState},
        Origin, Session, DISCONNECT_MS,
    }, //
};
use kernel::{
    block::mq::OwnedRequest,
    net::socket::Socket,
    prelude::*,
    sync::{atomic::Relaxed, wait::WaitMode, Arc},
    time::{msecs_to_jiffies, Instant, Jiffies, Monotonic}, //
};

/// The longest single wait of the clock, in milliseconds: jiffies may be as short as 32 bits.
const MAX_WAIT_MS: i64 = 60_000;

impl Session {
    /// `link` is broken, if it was not given up already: its requests go to another connection, or
    /// wait for one, or the session ends.
    ///
    /// Context: may sleep, but neither for a peer nor for the lock of a socket.
    pub(crate) fn link_failed(self: &Arc<Self>, link: &Arc<Link>, error: LinkError) {
        let lost = {
            let mut life = self.life.lock();
            let connection = self.connections().iter().find(|one| one.lose(link, error));
            // Otherwise it was given up already, or belongs to an earlier session, whose end has seen
            // to everything but what its receiver has let go since.
            connection.map(|one| {
                let (lost, end) = life.state.lose(error, self.last_lost());
                if let Some(reason) = end {
                    self.begin_end(&mut life, reason);
                }
                (one, lost)
            })
        };
        let outbox = link.close();
        link.shut_down();
        match lost {
            Some((connection, lost)) => {
                if let Lost::Left(left) = lost {
                    self.link_dead(1);
                    self.log_loss(connection.index(), error, left);
                }
                self.replay(link, || connection.count_replay());
            }
            None => {
                self.replay(link, || ());
                for connection in self.connections() {
                    connection.left(link);
                }
            }
        }
        // What it holds was published until here.
        drop(outbox);
        self.changed.wake_all();
    }

    /// The server of `link` is shutting down, so that the link is to be left: it gets no more
    /// requests, and those that are queued on it go elsewhere. What is in flight may be answered
    /// still, for as long as the clock allows.
    ///
    /// Context: may sleep, but neither for a peer nor for the lock of a socket.
    pub(crate) fn leave(self: &Arc<Self>, link: &Arc<Link>) {
        let error = LinkError::ShuttingDown;
        let (connection, left, lost) = {
            let mut life = self.life.lock();
            // A session that ends tells its servers by itself.
            let SessionState::Live(_) = life.state else {
                return;
            };
            let left = self
                .connections()
                .iter()
                .find_map(|one| Some((one, one.leave(link)?)));
            let Some((connection, left)) = left else {
                return;
            };
            // Before the session can end, so that the requests on it are those of a link that is
            // being left.
            link.watch();
            link.drain(|| connection.count_replay());
            let (lost, end) = life.state.lose(error, self.last_lost());
            if let Some(reason) = end {
                self.begin_end(&mut life, reason);
            }
            (connection, left, lost)
        };
        // For the request that was refused.
        connection.count_replay();
        self.start_clock();
        self.link_dead(left.notify);
        if let Lost::Left(left) = lost {
            self.log_loss(connection.index(), error, left);
        }
        if let Some(earlier) = left.earlier {
            self.link_failed(&earlier, error);
        }
    }

    /// Nothing can be sent on `link` any more. May sleep, as [`Self::link_failed`].
    pub(crate) fn send_failed(self: &Arc<Self>, link: &Arc<Link>, broken: Broken) {
        let broken = match broken.error() {
            // The server may have answered, or have said that it shuts down, before it closed its end.
            EPIPE | ECONNRESET => match link.fail_sending(broken) {
                Ok(()) => return link.receive_later(),
                Err(broken) => broken,
            },
            _ => broken,
        };
        self.link_failed(link, LinkError::Send(broken.error()));
        // What the sender holds was published until here.
        drop(broken);
    }

    /// A request of a link that is watched has finished. May sleep, but not for a peer.
    pub(crate) fn request_finished(self: &Arc<Self>, link: &Arc<Link>) {
        if link.is_draining() {
            if let Err(broken) = link.disconnect_if_drained() {
                self.send_failed(link, broken);
            }
        }
        self.changed.wake_all();
    }

    /// How many losses are to be told about, which the caller does. Does not sleep.
    pub(crate) fn take_link_dead(&self) -> u32 {
        self.pending_link_dead.xchg(0, Relaxed)
    }

    fn log_loss(&self, connection: u32, error: LinkError, left: u32) {
        if self.info().may_log(Topic::Connection) {
            dev_info!(
                self.disk().device(),
                "connection {} lost: {}; {} of {} left\n",
                connection,
                error,
                left,
                self.connections().len()
            );
        }
    }

    /// Has those who listen told that so many links are lost. Does not sleep.
    pub(crate) fn link_dead(self: &Arc<Self>, count: u32) {
        if count > 0 {
            self.pending_link_dead.fetch_add(count, Relaxed);
            // If it is queued already, it will find this, too.
            let _ = self
                .info()
                .driver()
                .event_wq()
                .enqueue::<Arc<Self>, 2>(self.clone());
        }
    }

    /// Has the requests of a closed link come again, and calls `f` for each.
    fn replay(&self, link: &Link, f: impl Fn()) {
        self.disk().for_each_started(|rq| {
            if let Some(claim) = rq.claim(None, |data| data.generation() == link.generation()) {
                f();
                claim.requeue();
            }
        });
    }

    /// What is done when the last connection is lost.
    fn last_lost(&self) -> LastLost {
        match self.origin {
            Origin::Ioctl { .. } => LastLost::End,
            Origin::Netlink { .. } if self.dead_conn_timeout.load(Relaxed) > 0 => LastLost::Wait,
            Origin::Netlink { .. } => LastLost::Fail,
        }
    }

    /// Whether a link of this generation is being left.
    pub(crate) fn is_leaving(&self, generation: u64) -> bool {
        self.connections()
            .iter()
            .any(|one| one.is_leaving(generation))
    }

    /// Gives sockets to connections that have none. Returns how many were used; the others are
    /// dropped.
    ///
    /// Fails with `ENODEV` if the session ends, and with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub(crate) fn reconnect(self: &Arc<Self>, sockets: KVec<Socket>) -> Result<u32> {
        let mut used = 0;
        for socket in sockets {
            if !self.connections().iter().any(|one| one.is_vacant()) {
                break;
            }
            let mut link = Link::new(self.disk(), self.info(), self.workqueues(), socket)?;
            let opened = {
                let mut life = self.life.lock();
                if !life.state.takes_links() {
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
                    life.state.reconnect();
                    // Whoever ends the session waits for the receivers that were started under the
                    // lock.
                    link.launch();
                }
                opened
            };
            let Some(connection) = opened else {
                break;
            };
            used += 1;
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

    /// Has a request wait for a connection, of which there is none `since` then. It comes again after
    /// that. The caller holds the lock of the session's life. Does not sleep.
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

    /// Whether requests have a connection.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.life.lock().state, SessionState::Live(_))
    }

    /// Has [`Self::tick`] called while anything has its time. Does not sleep.
    pub(crate) fn start_clock(self: &Arc<Self>) {
        // If it is queued already, it will find this, too.
        let _ = self
            .workqueues()
            .receivers()
            .enqueue::<Arc<Self>, 1>(self.clone());
        self.changed.wake_all();
    }

    /// Does what is due, until nothing has its time any more. May sleep.
    pub(crate) fn run_clock(self: &Arc<Self>) {
        // A look that finds something due looks again at once.
        self.changed.wait_while(WaitMode::Idle, || self.tick());
    }

    /// Does what is due now: ends the wait for a connection, ends a session whose servers were told
    /// so, closes links that were left, tells about losses. Returns in how many jiffies something is
    /// due next, if anything is. May sleep, but neither for a peer nor for the lock of a socket.
    fn tick(self: &Arc<Self>) -> Option<Jiffies> {
        let mut next = None;
        let gave_up = {
            let mut life = self.life.lock();
            match life.state {
                SessionState::Waiting(Some(since)) => {
                    let limit = i64::from(self.dead_conn_timeout.load(Relaxed)) * 1000;
                    !waits(&mut next, since, limit) && life.state.give_up()
                }
                SessionState::Disconnecting(_, since) => {
                    if !waits(&mut next, since, DISCONNECT_MS.into()) {
                        self.begin_end(&mut life, Reason::Requested);
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
            self.disk().kick_requeued();
        }
        for connection in self.connections() {
            let due = connection.due(&mut next);
            self.link_dead(due.notify.into());
            // Its server hears that nothing follows before its receiver finds the end of the stream.
            if let Some(link) = due.link {
                link.shut_down();
            }
        }
        let next = u32::try_from(next?.min(MAX_WAIT_MS)).unwrap_or(u32::MAX);
        Some(msecs_to_jiffies(next).max(1))
    }
}
