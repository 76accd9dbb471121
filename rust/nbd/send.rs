// SPDX-License-Identifier: GPL-2.0

//! The sending side of a link: what is queued, who sends it, and how it comes to its end.

use crate::{
    link::Link,
    protocol::encode_request,
    request::Queue,
    sender::{Progress, Sender},
    trace, //
};
use core::mem;
use kernel::{
    block::mq::{OwnedRequest, RequestList},
    net::socket::Wait,
    prelude::*,
    sync::Arc, //
};

/// Sends that a task makes for others before it hands them to the worker.
const MAX_ROUNDS: u32 = 8;

/// What a call has sent.
#[derive(PartialEq, Eq)]
pub(crate) enum Sent {
    /// Requests, or nothing.
    Requests,
    /// The message that ends the connection, too.
    Disconnect,
}

/// A link that nothing can be sent on any more. What the sender holds stays published for as long
/// as the value lives.
pub(crate) struct Broken {
    pub(crate) error: Error,
    _sender: Sender,
}

/// Where the sender is.
enum SenderState {
    /// Nobody sends.
    Idle(Sender),
    /// The task that took it sends, and looks for more when it is done.
    Busy,
    /// The socket had no room: it waits for the worker.
    Deferred(Sender),
    /// The server has closed its end. What it said before that has not been looked at yet.
    Failed(Broken),
}

/// Whether more requests are taken, and what follows the last one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// No request is taken. The server is told that nothing follows when none is in flight.
    Draining,
    /// No request is taken. The server is told that nothing follows behind those that are queued.
    Closing,
}

/// The sending side of a link: what is queued, and who sends it.
pub(crate) enum SendSide {
    Active(Outbox),
    /// The server was told that nothing follows.
    Disconnected,
    /// Nothing is sent any more. The socket is to be shut down.
    Closed,
    /// The socket is shut down.
    Shut,
}

/// Requests on their way out.
pub(crate) struct Outbox {
    stage: Stage,
    queue: RequestList<Queue>,
    sender: SenderState,
}

impl Outbox {
    fn take_idle(&mut self) -> Option<Sender> {
        match mem::replace(&mut self.sender, SenderState::Busy) {
            SenderState::Idle(sender) => Some(sender),
            other => {
                self.sender = other;
                None
            }
        }
    }
}

impl SendSide {
    /// Takes requests.
    pub(crate) fn new() -> Self {
        Self::Active(Outbox {
            stage: Stage::Open,
            queue: RequestList::new(),
            sender: SenderState::Idle(Sender::new()),
        })
    }
}

/// What a sender does next.
enum Next {
    Send(Sender),
    SendDisconnect(Sender),
    /// Nothing: the sender was given back, or the link is closed.
    Stop,
    /// Nothing: the sender was given back, and a draining link may have no request in flight any
    /// more.
    Drained,
}

/// The sending side. Its lock is a spinlock; all of these may be called in any context that may
/// sleep, and do so themselves only where that is said.
impl Link {
    /// Whether requests are taken, for now.
    pub(crate) fn is_open(&self) -> bool {
        matches!(
            &*self.send_side.lock(),
            SendSide::Active(Outbox {
                stage: Stage::Open,
                ..
            })
        )
    }

    /// Whether requests are taken and the server has nothing to do, as far as one can tell.
    pub(crate) fn is_idle(&self) -> bool {
        match &*self.send_side.lock() {
            SendSide::Active(outbox) => {
                outbox.stage == Stage::Open
                    && outbox.queue.is_empty()
                    && matches!(outbox.sender, SenderState::Idle(_))
                    && self.stats().all_replied()
            }
            _ => false,
        }
    }

    /// Whether the link is being left: no request is taken, and those that were may still be
    /// answered.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(
            &*self.send_side.lock(),
            SendSide::Active(Outbox {
                stage: Stage::Draining,
                ..
            })
        )
    }

    /// Whether the server was told that nothing follows, or cannot be.
    pub(crate) fn is_disconnected(&self) -> bool {
        !matches!(&*self.send_side.lock(), SendSide::Active(_))
    }

    /// Whether nothing is to be sent any more.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(&*self.send_side.lock(), SendSide::Closed | SendSide::Shut)
    }

    /// Whether the socket was shut down.
    pub(crate) fn is_shut(&self) -> bool {
        matches!(&*self.send_side.lock(), SendSide::Shut)
    }

    /// How far the link is, for people to read.
    pub(crate) fn describe(&self) -> &'static str {
        match &*self.send_side.lock() {
            SendSide::Active(Outbox {
                stage: Stage::Open, ..
            }) => "open",
            SendSide::Active(_) | SendSide::Disconnected => "closing",
            SendSide::Closed | SendSide::Shut => "closed",
        }
    }

    /// Queues a request. With `last`, the caller gets the sender, if nobody has it, to
    /// [`Self::run`] with. Hands the request back if none is taken. Does not sleep.
    pub(crate) fn queue(
        &self,
        mut rq: OwnedRequest<Queue>,
        cookie: u32,
        last: bool,
    ) -> Result<Option<Sender>, OwnedRequest<Queue>> {
        let mut header = encode_request(&rq, cookie);
        match &mut *self.send_side.lock() {
            SendSide::Active(outbox) if outbox.stage == Stage::Open => {
                rq.data().set_generation(self.generation());
                trace::nbd_send_request(&mut header, || self.info().index(), &rq);
                rq.set_header(header);
                outbox.queue.push_back(rq.publish(cookie));
                Ok(if last { outbox.take_idle() } else { None })
            }
            _ => Err(rq),
        }
    }

    /// The sender, if there is something to send and nobody has it, to [`Self::run`] with. Does not
    /// sleep.
    pub(crate) fn take_sender(&self) -> Option<Sender> {
        match &mut *self.send_side.lock() {
            SendSide::Active(outbox) if outbox.stage == Stage::Open && outbox.queue.is_empty() => {
                None
            }
            SendSide::Active(outbox) => outbox.take_idle(),
            _ => None,
        }
    }

    /// Takes no more requests, and has those that are queued come again for other links. The server
    /// is told that nothing follows by [`Self::disconnect_if_drained`]. Calls `f` for each that
    /// comes again. Does not sleep.
    pub(crate) fn drain(&self, f: impl Fn()) {
        let queue = match &mut *self.send_side.lock() {
            SendSide::Active(outbox) if outbox.stage == Stage::Open => {
                outbox.stage = Stage::Draining;
                outbox.queue.take()
            }
            _ => return,
        };
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
        let sender = match &mut *self.send_side.lock() {
            SendSide::Active(outbox) => {
                outbox.stage = Stage::Closing;
                outbox.take_idle()
            }
            _ => None,
        };
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
        match &mut *self.send_side.lock() {
            SendSide::Active(outbox) => {
                outbox.stage = Stage::Closing;
                outbox.sender = SenderState::Failed(broken);
                Ok(())
            }
            _ => Err(broken),
        }
    }

    /// Why nothing can be sent any more, if [`Self::fail_sending`] said so. Does not sleep.
    pub(crate) fn send_error(&self) -> Option<Error> {
        match &*self.send_side.lock() {
            SendSide::Active(Outbox {
                sender: SenderState::Failed(broken),
                ..
            }) => Some(broken.error),
            _ => None,
        }
    }

    /// Sends nothing any more. Returns what was to be sent, to be dropped by the caller once it has
    /// seen to the requests. The caller has the socket shut down, which ends the receiver. Does not
    /// sleep.
    pub(crate) fn close(&self) -> Option<Outbox> {
        let mut side = self.send_side.lock();
        match &*side {
            SendSide::Active(_) | SendSide::Disconnected => {}
            SendSide::Closed | SendSide::Shut => return None,
        }
        match mem::replace(&mut *side, SendSide::Closed) {
            SendSide::Active(outbox) => Some(outbox),
            _ => None,
        }
    }

    /// Shuts the socket down, for the work that [`Self::shut_down`] queues. A link that is draining,
    /// and in the middle of no request, tells its server first that nothing follows. Sleeps for the
    /// socket's lock. Only that work calls it.
    pub(crate) fn finish(self: &Arc<Self>) {
        if self.is_shut() {
            return;
        }
        let sender = match &mut *self.send_side.lock() {
            SendSide::Active(outbox) => outbox.take_idle(),
            _ => None,
        };
        if let Some(mut sender) = sender {
            // A server that does not take it learns from the end of the stream.
            let _ = sender.send_disconnect(self, Wait::No);
        }
        let outbox = self.close();
        self.socket().shutdown();
        *self.send_side.lock() = SendSide::Shut;
        drop(outbox);
        self.receive_last();
        self.give_back_later();
    }

    /// Goes on sending where a task found no room, for the work that [`Self::send_later`] queues.
    /// May sleep, and waits for the peer, until the link is closed.
    pub(crate) fn run_deferred(self: &Arc<Self>) -> Result<Sent, Broken> {
        let sender = match &mut *self.send_side.lock() {
            SendSide::Active(outbox) => match mem::replace(&mut outbox.sender, SenderState::Busy) {
                SenderState::Deferred(sender) => Some(sender),
                other => {
                    outbox.sender = other;
                    None
                }
            },
            _ => None,
        };
        match sender {
            Some(sender) => self.run(sender, Wait::Some),
            None => Ok(Sent::Requests),
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
                Next::Stop => return Ok(Sent::Requests),
                Next::Drained => return self.disconnect_if_drained(),
            };
            let result = match done {
                Sent::Requests => sender.send(self, wait),
                Sent::Disconnect => sender.send_disconnect(self, wait),
            };
            match (result, done) {
                (Ok(Progress::Done), Sent::Requests) => {}
                (Ok(Progress::Done), Sent::Disconnect) => {
                    self.disconnected();
                    return Ok(Sent::Disconnect);
                }
                (Ok(Progress::Blocked), _) => {
                    self.defer(sender);
                    return Ok(Sent::Requests);
                }
                (Err(error), _) => {
                    return Err(Broken {
                        error,
                        _sender: sender,
                    });
                }
            }
            rounds += 1;
            next = self.next(sender, wait, rounds);
        }
    }

    /// Finds out what `sender` does next, and gives it back when that is nothing.
    fn next(self: &Arc<Self>, mut sender: Sender, wait: Wait, rounds: u32) -> Next {
        let mut side = self.send_side.lock();
        let SendSide::Active(outbox) = &mut *side else {
            drop(side);
            drop(sender);
            return Next::Stop;
        };
        if sender.is_empty() {
            if outbox.queue.is_empty() {
                if outbox.stage == Stage::Closing {
                    return Next::SendDisconnect(sender);
                }
                outbox.sender = SenderState::Idle(sender);
                return match outbox.stage {
                    Stage::Draining => Next::Drained,
                    Stage::Open | Stage::Closing => Next::Stop,
                };
            }
            sender.load(outbox.queue.take());
        }
        if wait == Wait::No && rounds >= MAX_ROUNDS {
            outbox.sender = SenderState::Deferred(sender);
            self.send_later();
            return Next::Stop;
        }
        Next::Send(sender)
    }

    /// Leaves `sender` to the worker, who may wait.
    fn defer(self: &Arc<Self>, sender: Sender) {
        let mut side = self.send_side.lock();
        match &mut *side {
            SendSide::Active(outbox) => {
                outbox.sender = SenderState::Deferred(sender);
                // Under the lock, so that no work is queued once the link is closed.
                self.send_later();
            }
            _ => {
                drop(side);
                drop(sender);
            }
        }
    }

    /// The server was told that nothing follows.
    fn disconnected(&self) {
        let outbox = {
            let mut side = self.send_side.lock();
            match &*side {
                SendSide::Active(_) => Some(mem::replace(&mut *side, SendSide::Disconnected)),
                _ => None,
            }
        };
        drop(outbox);
    }
}
