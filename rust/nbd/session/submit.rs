// SPDX-License-Identifier: GPL-2.0

//! The way of requests through a session: which connection each goes to, and how long it may take.

use super::{connections, life::SessionState, Session};
use crate::{
    connection::{Connection, PushError},
    error::LinkError,
    link::Sent,
    log::Topic,
    protocol::is_supported,
    request::Queue, //
};
use kernel::{
    block::{
        mq::{timeout_in_jiffies, Op, OwnedRequest, Request, TimeoutAction},
        BlkStatus,
    },
    prelude::*,
    sync::{atomic::Relaxed, Arc, ArcBorrow},
    time::Jiffies, //
};

impl Session {
    /// The connections of a hardware queue.
    fn of_queue(&self, hctx: u32) -> impl Iterator<Item = &Arc<Connection>> {
        connections::of_queue(&self.connections, hctx, self.hw_queues)
    }

    /// Hands a request to a connection: one of its hardware queue, or another that is open.
    pub(crate) fn submit(
        self: ArcBorrow<'_, Self>,
        hctx: u32,
        rq: OwnedRequest<Queue>,
        last: bool,
    ) {
        let writes = !matches!(rq.op(), Op::Read | Op::Flush);
        let own = self.of_queue(hctx).count();
        // A queue with one connection has its batch sent by the push that ends it.
        let mut sent = false;
        if !is_supported(rq.op()) || (writes && self.flags.read_only()) {
            rq.end(BlkStatus::IOERR);
        } else {
            let mut connections = self.of_queue(hctx);
            let pick = connections::pick(rq.unique_tag(), own);
            // Requests that come one at a time stay where the server and the receiver are warm.
            let chosen = match connections.next() {
                Some(first) if pick == 0 || first.is_idle() => Some(first),
                _ => connections.nth(pick.saturating_sub(1)),
            };
            let pushed = match chosen {
                Some(connection) => {
                    let cookie = self.info.new_cookie();
                    self.pushed(connection.push(rq, cookie, last && own == 1))
                }
                None => Err(rq),
            };
            match pushed {
                Ok(()) => sent = own == 1,
                Err(rq) => self.fall_back(rq),
            }
        }
        if last && !sent {
            self.flush(hctx);
        }
    }

    /// Sees to what a connection said of a push or a flush; hands a request back that it did not
    /// take.
    fn pushed(
        self: ArcBorrow<'_, Self>,
        result: Result<Sent, PushError>,
    ) -> Result<(), OwnedRequest<Queue>> {
        match result {
            Ok(Sent::Requests) => Ok(()),
            Ok(Sent::Disconnect) => {
                self.changed.wake_all();
                Ok(())
            }
            Err(PushError::Closed(rq)) => Err(rq),
            Err(PushError::Broken(link, broken)) => {
                Arc::from(self).send_failed(&link, broken);
                Ok(())
            }
        }
    }

    /// Hands a request to a connection that is open, each in turn, or has it wait for one.
    fn fall_back(self: ArcBorrow<'_, Self>, mut rq: OwnedRequest<Queue>) {
        let turn = self.fallback.fetch_add(1, Relaxed);
        for connection in connections::in_turn(&self.connections, turn, |c| c.is_open()) {
            // Nobody announces the end of a batch to a connection that is not the queue's own.
            match self.pushed(connection.push(rq, self.info.new_cookie(), true)) {
                Ok(()) => return,
                Err(back) => rq = back,
            }
        }
        let mut life = self.life.lock();
        match &mut life.state {
            // Under the lock: whoever ends the wait has the request come again afterwards.
            SessionState::Waiting(since) => Arc::from(self).park(since, rq),
            // A connection was opened just now.
            SessionState::Live(_) => rq.requeue(),
            SessionState::Dead
            | SessionState::Disconnecting(..)
            | SessionState::Ending(_)
            | SessionState::Ended(_) => {
                drop(life);
                rq.end(BlkStatus::IOERR);
            }
        }
    }

    /// Sends what [`Self::submit`] queued without `last`.
    pub(crate) fn flush(self: ArcBorrow<'_, Self>, hctx: u32) {
        for connection in self.of_queue(hctx) {
            // A flush has no request that it could hand back.
            let _ = self.pushed(connection.flush());
        }
    }

    /// A request took longer than the timeout.
    pub(crate) fn timed_out(self: &Arc<Self>, rq: &Request<Queue>) -> TimeoutAction {
        let Some(generation) = rq.published(|data| data.generation()) else {
            return TimeoutAction::Rearm;
        };
        let links = self.connections.iter().filter_map(|c| c.link());
        let Some(link) = { links }.find(|link| link.generation() == generation) else {
            return TimeoutAction::Rearm;
        };
        let timeout = self.timeout.load(Relaxed);
        if timeout == 0 {
            if self.info.may_log(Topic::Connection) {
                dev_warn!(
                    self.disk.device(),
                    "a request waits for the server for a long time; there is no timeout\n"
                );
            }
            return TimeoutAction::Rearm;
        }
        // It is the server's time that is limited: it begins when the request is sent. What waits
        // for its turn, or is on its way, does so for as long as the link moves.
        let taken = if rq.is_in_use() {
            link.stats().idle_for()
        } else {
            rq.data().sent_for()
        };
        let limit = timeout_in_jiffies(timeout) as Jiffies;
        if taken < limit {
            return TimeoutAction::RearmFor(limit - taken);
        }
        // It may be half received: the receiver gives it up when the socket is shut down.
        self.link_failed(&link, LinkError::TimedOut);
        TimeoutAction::Done
    }
}
