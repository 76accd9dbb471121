// SPDX-License-Identifier: GPL-2.0

//! Submission of requests: which connection a request goes to, and how long the server may take.

use super::{
    connections,
    state::SessionState,
    Session, //
};
use crate::{
    connection::{
        Connection,
        PushError, //
    },
    error::LinkError,
    link::{
        Sent,
        LONG_PAYLOAD, //
    },
    log::Topic,
    protocol::is_supported,
    request::Queue, //
};
use kernel::{
    block::{
        mq::{
            timeout_in_jiffies,
            Op,
            OwnedRequest,
            Request,
            TimerReturn, //
        },
        BlkStatus, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc,
        ArcBorrow, //
    },
    time::Jiffies, //
};

impl Session {
    /// The connections of a hardware queue.
    fn of_queue(&self, hctx: u32) -> impl Iterator<Item = &Arc<Connection>> {
        self.places.of_queue(hctx, self.hw_queues)
    }

    /// Returns the connection for a request, of the `own` ones of its hardware queue. It may have
    /// no open link.
    fn choose(&self, hctx: u32, own: usize, rq: &OwnedRequest<Queue>) -> Option<&Arc<Connection>> {
        // Other replies of the connection wait for a long payload, so that these are distributed.
        let is_long = rq.op() == Op::Read && rq.bytes() as usize > LONG_PAYLOAD;
        // Each further connection in use costs the packets and the wake-ups of another server
        // thread. It gets requests when those before it have as many as their servers work on.
        if own > 1 && !is_long {
            if let Some(one) = self.of_queue(hctx).find(|one| one.has_room()) {
                return Some(one);
            }
        }
        let pick = connections::pick(rq.unique_tag(), own);
        self.of_queue(hctx).nth(pick)
    }

    /// Hands a request to a connection of its hardware queue, or to another one that is open.
    /// Context: may sleep, but never for a peer.
    pub(crate) fn submit(
        self: ArcBorrow<'_, Self>,
        hctx: u32,
        rq: OwnedRequest<Queue>,
        last: bool,
    ) {
        let writes = !matches!(rq.op(), Op::Read | Op::Flush);
        let own = self.of_queue(hctx).count();
        // If a queue has one connection, the push that ends a batch sends the batch.
        let mut sent = false;
        if !is_supported(rq.op()) || (writes && self.flags.read_only()) {
            rq.end(BlkStatus::IOERR);
        } else {
            let pushed = match self.choose(hctx, own, &rq) {
                Some(connection) => self.pushed(connection.push(rq, last && own == 1)),
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

    /// Handles the result of a push or a flush. Returns a request that the connection did not take.
    fn pushed(
        self: ArcBorrow<'_, Self>,
        result: Result<Sent, PushError>,
    ) -> Result<(), OwnedRequest<Queue>> {
        match result {
            Ok(Sent::Requests) => Ok(()),
            Ok(Sent::Disconnect) => {
                Arc::from(self).start_clock();
                Ok(())
            }
            Err(PushError::Closed(rq)) => Err(rq),
            Err(PushError::Broken(link, broken)) => {
                Arc::from(self).send_failed(&link, broken);
                Ok(())
            }
        }
    }

    /// Hands a request to the next open connection, or parks it.
    fn fall_back(self: ArcBorrow<'_, Self>, mut rq: OwnedRequest<Queue>) {
        let turn = self.fallback.fetch_add(1, Relaxed);
        for connection in self.places.in_turn(turn, &|c| c.is_open()) {
            // The end of a batch is announced only to the connections of the own queue.
            match self.pushed(connection.push(rq, true)) {
                Ok(()) => return,
                Err(back) => rq = back,
            }
        }
        let mut inner = self.inner.lock();
        match &mut inner.state {
            // The lock is held, so that the end of the wait requeues this request, too.
            SessionState::Waiting(since) => Arc::from(self).park(since, rq),
            // A connection was opened after the loop above.
            SessionState::Live(_) => rq.requeue(),
            SessionState::Dead
            | SessionState::Disconnecting(..)
            | SessionState::Ending(_)
            | SessionState::Ended(_) => {
                drop(inner);
                rq.end(BlkStatus::IOERR);
            }
        }
    }

    /// Sends what [`Self::submit`] has queued without `last`. Context: may sleep, but never for a
    /// peer.
    pub(crate) fn flush(self: ArcBorrow<'_, Self>, hctx: u32) {
        for connection in self.of_queue(hctx) {
            // A flush never hands back a request.
            let _ = self.pushed(connection.flush());
        }
    }

    /// Handles a request that took longer than the timeout. Context: may sleep.
    pub(crate) fn timed_out(self: &Arc<Self>, rq: &Request<Queue>) -> TimerReturn {
        let Some(generation) = rq.published(|data| data.generation()) else {
            return TimerReturn::ResetTimer;
        };
        let Some(link) = self.connections().find_map(|c| c.link_of(generation)) else {
            return TimerReturn::ResetTimer;
        };
        let timeout = self.timeout.load(Relaxed);
        if timeout == 0 {
            if self.info.may_log(Topic::Connection) {
                dev_warn!(
                    self.disk.device(),
                    "a request waits for the server for a long time; there is no timeout\n"
                );
            }
            return TimerReturn::ResetTimer;
        }
        let limit = timeout_in_jiffies(timeout) as Jiffies;
        let patience = link.patience(rq, limit);
        if patience > 0 {
            return TimerReturn::ResetTimerTo(patience);
        }
        // The request may be half received. The receiver gives it up when the socket is shut down.
        self.link_failed(&link, LinkError::TimedOut);
        TimerReturn::Done
    }
}
