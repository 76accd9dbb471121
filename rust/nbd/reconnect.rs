// SPDX-License-Identifier: GPL-2.0

//! What happens when connections of a session are lost, and when new ones come.

use crate::{
    connection::Channel,
    kernel::{block::mq::OwnedRequest, net::socket::Socket},
    life::{Life, Loss, Reason},
    link::Link,
    messages::Topic,
    queue::Queue,
    session::{Origin, Session}, //
};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc},
    time::{msecs_to_jiffies, Delta, Instant, Monotonic},
    workqueue::WorkItem, //
};

/// The longest single wait for a connection, in milliseconds.
const MAX_WAIT_MS: u32 = 60_000;

impl Session {
    /// Closes `link`, if it is open: its requests go to another connection, or wait for one, or the
    /// session ends. Sleeps only for the socket's lock.
    pub(crate) fn lost(self: &Arc<Self>, link: &Link, loss: Loss) {
        let device = self.disk.data();
        let (connection, _channel, lost) = {
            let mut life = self.life.lock();
            let closed = self
                .connections
                .iter()
                .find_map(|connection| Some((connection, connection.close(link)?)));
            // Otherwise it was closed already, or belongs to an earlier session, whose end has seen
            // to everything but what its receiver has let go since.
            let Some((connection, channel)) = closed else {
                drop(life);
                return self.replay(link, || ());
            };
            // What is left, unless the session ends as somebody wants.
            let lost = match *life {
                Life::Live(open) => {
                    let left = open.saturating_sub(1);
                    match left {
                        0 => self.none_left(&mut life, &loss),
                        _ => *life = Life::Live(left),
                    }
                    self.deaths.fetch_add(1, Relaxed);
                    // If it is queued already, it will find this one, too.
                    let _ = device.workers().enqueue::<Arc<Self>, 2>(self.clone());
                    Some(left)
                }
                Life::Goodbye(open) => {
                    let left = open.saturating_sub(1);
                    match left {
                        0 => self.end(&mut life, Reason::Requested),
                        _ => *life = Life::Goodbye(left),
                    }
                    None
                }
                Life::Waiting(_) | Life::Dead | Life::Ending(_) | Life::Ended(_) => None,
            };
            connection.record(loss);
            (connection, channel, lost)
        };
        link.socket().shutdown();
        match lost {
            Some(left) if device.may_log(Topic::Connection) => dev_info!(
                self.disk.device(),
                "connection {} lost: {}; {} of {} left\n",
                connection.index(),
                loss,
                left,
                self.connections.len()
            ),
            _ => {}
        }
        self.replay(link, || connection.count_replay());
    }

    /// Has the requests of a closed link come again, and calls `f` for each.
    fn replay(&self, link: &Link, f: impl Fn()) {
        self.disk.for_each_started(|rq| {
            if let Some(claim) = rq.claim(None, |data| data.is_on(link)) {
                f();
                claim.requeue();
            }
        });
    }

    /// The last connection was lost.
    fn none_left(self: &Arc<Self>, life: &mut Life, loss: &Loss) {
        match self.origin {
            Origin::Ioctl => {
                let reason = match loss {
                    Loss::TimedOut => Reason::TimedOut,
                    Loss::Receive(_) | Loss::Send(_) => Reason::Lost,
                };
                self.end(life, reason);
            }
            Origin::Netlink { .. } if self.dead_conn_timeout.load(Relaxed) > 0 => {
                *life = Life::Waiting(None);
            }
            Origin::Netlink { .. } => *life = Life::Dead,
        }
    }

    /// Gives sockets to connections that are closed. Returns how many were used; the others are
    /// dropped. Sleeps.
    ///
    /// Fails with `ENODEV` if the session ends, and with `ENOMEM`.
    pub(crate) fn reconnect(self: &Arc<Self>, sockets: KVec<Socket>) -> Result<u32> {
        let mut used = 0;
        for socket in sockets {
            if !self.connections.iter().any(|c| c.link().is_none()) {
                break;
            }
            let mut channel = Channel::new(Link::new(&self.disk, socket)?);
            let link = channel.link().clone();
            let opened = {
                let mut life = self.life.lock();
                let open = match &*life {
                    Life::Live(open) => *open,
                    Life::Waiting(_) | Life::Dead => 0,
                    Life::Goodbye(_) | Life::Ending(_) | Life::Ended(_) => return Err(ENODEV),
                };
                let mut opened = None;
                for connection in &self.connections {
                    match connection.open(channel) {
                        Ok(()) => {
                            opened = Some(connection);
                            break;
                        }
                        Err(back) => channel = back,
                    }
                }
                if opened.is_some() {
                    *life = Life::Live(open + 1);
                    // Whoever ends the session waits for the receivers that were started under the
                    // lock.
                    link.launch(&self.workers.receivers);
                }
                opened
            };
            let Some(connection) = opened else {
                break;
            };
            used += 1;
            self.changed.notify_all();
            self.disk.kick_requeued();
            if self.disk.data().may_log(Topic::Connection) {
                dev_info!(
                    self.disk.device(),
                    "connection {} has a new socket\n",
                    connection.index()
                );
            }
        }
        Ok(used)
    }

    /// Has a request wait for a connection, of which there is none `since` then. It comes again after
    /// that.
    pub(crate) fn park(
        self: &Arc<Self>,
        since: &mut Option<Instant<Monotonic>>,
        rq: OwnedRequest<Queue>,
    ) {
        if since.is_none() {
            *since = Some(Instant::now());
            // If it is queued already, it will see that the session waits again.
            let _ = self.workers.receivers.enqueue::<Arc<Self>, 1>(self.clone());
        }
        rq.requeue_later();
    }

    /// Whether requests have a connection.
    pub(crate) fn is_live(&self) -> bool {
        matches!(&*self.life.lock(), Life::Live(_))
    }
}

impl WorkItem<1> for Session {
    type Pointer = Arc<Self>;

    /// Waits until a connection is opened, the session ends, or it has waited for long enough.
    fn run(this: Arc<Self>) {
        let mut life = this.life.lock();
        while let Life::Waiting(Some(since)) = &*life {
            let limit = Delta::from_secs(this.dead_conn_timeout.load(Relaxed).into());
            let left = limit.as_millis() - since.elapsed().as_millis();
            if left <= 0 {
                *life = Life::Dead;
                drop(life);
                if this.disk.data().may_log(Topic::Connection) {
                    dev_warn!(
                        this.disk.device(),
                        "no new connection in time: requests fail until there is one\n"
                    );
                }
                this.disk.kick_requeued();
                return;
            }
            // In parts, since jiffies may be as short as 32 bits.
            let left = u32::try_from(left).unwrap_or(u32::MAX).min(MAX_WAIT_MS);
            // Workers get no signals; and whatever woke it, it looks again.
            let _ = this
                .changed
                .wait_interruptible_timeout(&mut life, msecs_to_jiffies(left));
        }
    }
}

impl WorkItem<2> for Session {
    type Pointer = Arc<Self>;

    /// Tells who listens which device has lost a connection, once for each.
    fn run(this: Arc<Self>) {
        for _ in 0..this.deaths.xchg(0, Relaxed) {
            crate::netlink::tell_link_dead(this.disk.data().index());
        }
    }
}
