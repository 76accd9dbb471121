// SPDX-License-Identifier: GPL-2.0

//! Sending on a link: the operations on its sending side.

use super::{
    send_side::{
        Broken,
        Next,
        Outbox,
        Sent, //
    },
    sender::{
        Output,
        Progress,
        Sender, //
    },
    Link, //
};
use crate::{
    protocol::encode_request,
    request::Queue,
    trace, //
};
use kernel::{
    block::mq::OwnedRequest,
    net::socket::Wait,
    prelude::*,
    sync::Arc, //
};

/// How often a task sends what others have queued before it leaves that to the worker.
const MAX_ROUNDS: u32 = 8;

/// The lock of the sending side is a spinlock. All methods must be called in a context that may
/// sleep. Those that sleep say so.
impl Link {
    /// Whether the link takes requests now.
    pub(crate) fn is_open(&self) -> bool {
        self.send_side.lock().is_open()
    }

    /// Whether the link drains: it takes no requests, and those in flight may still be answered.
    pub(crate) fn is_draining(&self) -> bool {
        self.send_side.lock().is_draining()
    }

    /// Whether the server was told that no requests follow, or nothing can be sent any more.
    pub(crate) fn is_disconnected(&self) -> bool {
        self.send_side.lock().is_disconnected()
    }

    /// Whether the socket was shut down.
    pub(crate) fn is_shut(&self) -> bool {
        self.send_side.lock().is_shut()
    }

    /// Returns the name of the state for debugfs.
    pub(crate) fn describe(&self) -> &'static str {
        self.send_side.lock().describe()
    }

    /// Queues a request. With `last`, returns the sender if it is idle, and the caller calls
    /// [`Self::run`] with it. Hands the request back if the link takes none. Context: does not
    /// sleep.
    pub(crate) fn queue(
        &self,
        rq: OwnedRequest<Queue>,
        cookie: u32,
        last: bool,
    ) -> Result<Option<Sender>, OwnedRequest<Queue>> {
        let mut header = encode_request(&rq, cookie);
        self.send_side.lock().queue(rq, cookie, last, |rq| {
            let data = rq.data();
            data.set_generation(self.generation());
            data.set_queued_at(match trace::needs_times() {
                true => self.stats().age(),
                false => 0,
            });
            trace::nbd_send_request(&mut header, || self.info().index(), rq);
            rq.set_header(header);
            self.stats().add_queued();
        })
    }

    /// Returns the sender if it is idle and there is something to send. The caller calls
    /// [`Self::run`] with it. Context: does not sleep.
    pub(crate) fn take_sender(&self) -> Option<Sender> {
        self.send_side.lock().take_sender()
    }

    /// Takes no more requests. Requeues those that are queued, and calls `f` for each. The server
    /// is told by [`Self::disconnect_if_drained`] that no requests follow. Context: does not sleep.
    pub(crate) fn drain(&self, f: impl Fn()) {
        let queue = self.send_side.lock().drain();
        for rq in queue.iter() {
            if let Some(claim) = rq.claim(None, |_| true) {
                f();
                self.requeue(claim);
            }
        }
    }

    /// Takes no more requests, and tells the server that none follow after those that are queued.
    /// Context: may sleep, but never for the peer.
    pub(crate) fn disconnect(self: &Arc<Self>) -> Result<Sent, Broken> {
        let sender = self.send_side.lock().start_disconnect();
        match sender {
            Some(sender) => self.run(sender, Wait::No),
            None => Ok(Sent::Requests),
        }
    }

    /// Tells the server that no requests follow, if the link drains and no request is in flight.
    /// Called after a request has finished. Context: may sleep, but never for the peer.
    pub(crate) fn disconnect_if_drained(self: &Arc<Self>) -> Result<Sent, Broken> {
        if self.has_requests() {
            return Ok(Sent::Requests);
        }
        self.disconnect()
    }

    /// Keeps the requests of the sender published until the receiver has read what the server sent
    /// last. Hands `broken` back if nothing can be sent any more. Context: does not sleep.
    pub(crate) fn fail_sending(&self, broken: Broken) -> Result<(), Broken> {
        self.send_side.lock().fail(broken)
    }

    /// Returns the error of [`Self::fail_sending`], if there was one. Context: does not sleep.
    pub(crate) fn send_error(&self) -> Option<Error> {
        self.send_side.lock().error()
    }

    /// Stops sending. Returns what was queued, which the caller drops after it has requeued or
    /// failed the requests. The caller also has the socket shut down, which ends the receiver.
    /// Context: does not sleep.
    pub(crate) fn close(&self) -> Option<Outbox> {
        self.send_side.lock().close()
    }

    /// Shuts the socket down, for the work that [`Self::shut_down`] queues. If the link drains and
    /// the sender is idle, it first tells the server that no requests follow. Context: may sleep
    /// for the socket lock.
    pub(crate) fn finish(self: &Arc<Self>) {
        if self.is_shut() {
            return;
        }
        let sender = self.send_side.lock().take_idle();
        if let Some(mut sender) = sender {
            // A server that does not get the message finds the end of the stream.
            let _ = sender.send_disconnect(&self.output(), Wait::No);
        }
        let outbox = self.close();
        self.socket().shutdown();
        self.send_side.lock().set_shut();
        drop(outbox);
        self.receive_last();
        self.restore_later();
    }

    /// Continues to send, for the work that [`Self::send_later`] queues. Context: may sleep, and
    /// waits for the peer until the link is closed.
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

    /// Sends with `sender` until nothing is queued, the socket has no room, or the link is closed.
    /// Context: may sleep, and waits for the peer as `wait` says.
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

    /// Decides what `sender` does next, and takes it back if that is nothing.
    fn next(self: &Arc<Self>, sender: Sender, wait: Wait, rounds: u32) -> Next {
        let mut side = self.send_side.lock();
        let next = side.next(sender, wait != Wait::No || rounds < MAX_ROUNDS);
        if let Next::Deferred = next {
            // The lock is held, so that no work is queued after the link is closed.
            self.send_later();
        }
        next
    }

    /// Leaves `sender` to the worker, which may wait for the peer.
    fn defer(self: &Arc<Self>, sender: Sender) {
        let rejected = {
            let mut side = self.send_side.lock();
            let rejected = side.defer(sender).err();
            if rejected.is_none() {
                // The lock is held, so that no work is queued after the link is closed.
                self.send_later();
            }
            rejected
        };
        drop(rejected);
    }
}
