// SPDX-License-Identifier: GPL-2.0

//! The sending side of a link: what is queued, who sends it, and how it comes to its end.

use super::{
    send_side::{Broken, Next, Outbox, Sent},
    sender::{Output, Progress, Sender},
    Link, //
};
use crate::{protocol::encode_request, request::Queue, trace};
use kernel::{block::mq::OwnedRequest, net::socket::Wait, prelude::*, sync::Arc};

/// Sends that a task makes for others before it hands them to the worker.
const MAX_ROUNDS: u32 = 8;

/// The lock of the sending side is a spinlock. All of these may be called in any context that may
/// sleep, and do so themselves only where that is said.
impl Link {
    /// Whether requests are taken, for now.
    pub(crate) fn is_open(&self) -> bool {
        self.send_side.lock().is_open()
    }

    /// Whether requests are taken and the server has nothing to do, as far as one can tell.
    pub(crate) fn is_idle(&self) -> bool {
        self.send_side.lock().is_empty() && self.stats().all_replied()
    }

    /// Whether the link is being left: no request is taken, and those that were may still be
    /// answered.
    pub(crate) fn is_draining(&self) -> bool {
        self.send_side.lock().is_draining()
    }

    /// Whether the server was told that nothing follows, or cannot be.
    pub(crate) fn is_disconnected(&self) -> bool {
        self.send_side.lock().is_disconnected()
    }

    /// Whether the socket was shut down.
    pub(crate) fn is_shut(&self) -> bool {
        self.send_side.lock().is_shut()
    }

    /// How far the link is, for people to read.
    pub(crate) fn describe(&self) -> &'static str {
        self.send_side.lock().describe()
    }

    /// Queues a request. With `last`, the caller gets the sender, if nobody has it, to
    /// [`Self::run`] with. Hands the request back if none is taken. Does not sleep.
    pub(crate) fn queue(
        &self,
        rq: OwnedRequest<Queue>,
        cookie: u32,
        last: bool,
    ) -> Result<Option<Sender>, OwnedRequest<Queue>> {
        let mut header = encode_request(&rq, cookie);
        self.send_side.lock().queue(rq, cookie, last, |rq| {
            rq.data().set_generation(self.generation());
            trace::nbd_send_request(&mut header, || self.info().index(), rq);
            rq.set_header(header);
        })
    }

    /// The sender, if there is something to send and nobody has it, to [`Self::run`] with. Does not
    /// sleep.
    pub(crate) fn take_sender(&self) -> Option<Sender> {
        self.send_side.lock().take_sender()
    }

    /// Takes no more requests, and has those that are queued come again for other links. The server
    /// is told that nothing follows by [`Self::disconnect_if_drained`]. Calls `f` for each that
    /// comes again. Does not sleep.
    pub(crate) fn drain(&self, f: impl Fn()) {
        let queue = self.send_side.lock().drain();
        for rq in queue.iter() {
            if let Some(claim) = rq.claim(None, |_| true) {
                f();
                claim.requeue();
            }
        }
    }

    /// Takes no more requests, and tells the server so after those that are queued. May sleep, but
    /// never for the peer.
    pub(crate) fn disconnect(self: &Arc<Self>) -> Result<Sent, Broken> {
        let sender = self.send_side.lock().start_disconnect();
        match sender {
            Some(sender) => self.run(sender, Wait::No),
            None => Ok(Sent::Requests),
        }
    }

    /// Tells the server that nothing follows, if the link is draining and no request is in flight.
    /// Whoever finishes one calls this. May sleep, but never for the peer.
    pub(crate) fn disconnect_if_drained(self: &Arc<Self>) -> Result<Sent, Broken> {
        if self.has_requests() {
            return Ok(Sent::Requests);
        }
        self.disconnect()
    }

    /// Keeps what the sender holds until the receiver has looked what the server said last. Hands it
    /// back if the link is closed already. Does not sleep.
    pub(crate) fn fail_sending(&self, broken: Broken) -> Result<(), Broken> {
        self.send_side.lock().fail(broken)
    }

    /// Why nothing can be sent any more, if [`Self::fail_sending`] said so. Does not sleep.
    pub(crate) fn send_error(&self) -> Option<Error> {
        self.send_side.lock().error()
    }

    /// Sends nothing any more. Returns what was to be sent, to be dropped by the caller once it has
    /// seen to the requests. The caller has the socket shut down, which ends the receiver. Does not
    /// sleep.
    pub(crate) fn close(&self) -> Option<Outbox> {
        self.send_side.lock().close()
    }

    /// Shuts the socket down, for the work that [`Self::shut_down`] queues. A link that is draining,
    /// and in the middle of no request, tells its server first that nothing follows. Sleeps for the
    /// socket's lock. Only that work calls it.
    pub(crate) fn finish(self: &Arc<Self>) {
        if self.is_shut() {
            return;
        }
        let sender = self.send_side.lock().take_idle();
        if let Some(mut sender) = sender {
            // A server that does not take it learns from the end of the stream.
            let _ = sender.send_disconnect(&self.output(), Wait::No);
        }
        let outbox = self.close();
        self.socket().shutdown();
        self.send_side.lock().shut();
        drop(outbox);
        self.receive_last();
        self.give_back_later();
    }

    /// Goes on sending where a task found no room, for the work that [`Self::send_later`] queues.
    /// May sleep, and waits for the peer, until the link is closed.
    pub(crate) fn run_deferred(self: &Arc<Self>) -> Result<Sent, Broken> {
        let sender = self.send_side.lock().take_deferred();
        match sender {
            Some(sender) => self.run(sender, Wait::Some),
            None => Ok(Sent::Requests),
        }
    }

    fn output(&self) -> Output<'_, impl Fn() -> bool + '_> {
        Output {
            socket: self.socket(),
            stats: self.stats(),
            is_closed: || self.send_side.lock().is_closed(),
        }
    }

    /// Sends with `sender` until there is nothing more to send, the socket has no room, or the link
    /// is closed. May sleep; waits for the peer only as `wait` says.
    pub(crate) fn run(self: &Arc<Self>, sender: Sender, wait: Wait) -> Result<Sent, Broken> {
        let mut rounds = 0;
        let mut next = self.next(sender, wait, rounds);
        loop {
            let (mut sender, done) = match next {
                Next::Send(sender) => (sender, Sent::Requests),
                Next::SendDisconnect(sender) => (sender, Sent::Disconnect),
                Next::Stop | Next::Deferred => return Ok(Sent::Requests),
                Next::Closed(sender) => {
                    drop(sender);
                    return Ok(Sent::Requests);
                }
                Next::Drained => return self.disconnect_if_drained(),
            };
            let result = match done {
                Sent::Requests => sender.send(&self.output(), wait),
                Sent::Disconnect => sender.send_disconnect(&self.output(), wait),
            };
            match (result, done) {
                (Ok(Progress::Done), Sent::Requests) => {}
                (Ok(Progress::Done), Sent::Disconnect) => {
                    let outbox = self.send_side.lock().disconnected();
                    drop(outbox);
                    return Ok(Sent::Disconnect);
                }
                (Ok(Progress::Blocked), _) => {
                    self.defer(sender);
                    return Ok(Sent::Requests);
                }
                (Err(error), _) => return Err(Broken::new(error, sender)),
            }
            rounds += 1;
            next = self.next(sender, wait, rounds);
        }
    }

    /// Finds out what `sender` does next, and gives it back when that is nothing.
    fn next(self: &Arc<Self>, sender: Sender, wait: Wait, rounds: u32) -> Next {
        let mut side = self.send_side.lock();
        let next = side.next(sender, wait != Wait::No || rounds < MAX_ROUNDS);
        if let Next::Deferred = next {
            // Under the lock, so that no work is queued once the link is closed.
            self.send_later();
        }
        next
    }

    /// Leaves `sender` to the worker, who may wait.
    fn defer(self: &Arc<Self>, sender: Sender) {
        let rejected = {
            let mut side = self.send_side.lock();
            let rejected = side.defer(sender).err();
            if rejected.is_none() {
                // Under the lock, so that no work is queued once the link is closed.
                self.send_later();
            }
            rejected
        };
        drop(rejected);
    }
}
