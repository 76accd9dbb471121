// SPDX-License-Identifier: GPL-2.0

//! How far the sending side of a link is: what is queued, who sends it, and what follows. Each
//! transition is a method, called with the lock of the side held; what it takes out is for the caller
//! to use or to drop without the lock. None of them sleeps.

use super::sender::Sender;
use crate::request::Queue;
use core::mem;
use kernel::{
    block::mq::{OwnedRequest, RequestList},
    prelude::*, //
};

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
    error: Error,
    _sender: Sender,
}

impl Broken {
    pub(super) fn new(error: Error, sender: Sender) -> Self {
        Self {
            error,
            _sender: sender,
        }
    }

    /// Why nothing can be sent any more.
    pub(crate) fn error(&self) -> Error {
        self.error
    }
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

/// What a sender does next.
pub(super) enum Next {
    Send(Sender),
    SendDisconnect(Sender),
    /// Nothing: the sender was given back.
    Stop,
    /// Nothing: the sender is left to the worker.
    Deferred,
    /// Nothing: the link is closed. The sender is to be dropped without the lock.
    Closed(Sender),
    /// Nothing: the sender was given back, and a draining link may have no request in flight any
    /// more.
    Drained,
}

impl SendSide {
    /// Takes requests.
    pub(super) fn new() -> Self {
        Self::Active(Outbox {
            stage: Stage::Open,
            queue: RequestList::new(),
            sender: SenderState::Idle(Sender::new()),
        })
    }

    fn stage(&self) -> Option<Stage> {
        match self {
            Self::Active(outbox) => Some(outbox.stage),
            Self::Disconnected | Self::Closed | Self::Shut => None,
        }
    }

    /// Whether requests are taken.
    pub(super) fn is_open(&self) -> bool {
        self.stage() == Some(Stage::Open)
    }

    /// Whether requests are taken and none is on its way out.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Active(outbox) => {
                outbox.stage == Stage::Open
                    && outbox.queue.is_empty()
                    && matches!(outbox.sender, SenderState::Idle(_))
            }
            _ => false,
        }
    }

    /// Whether no request is taken, and those that were may still be answered.
    pub(super) fn is_draining(&self) -> bool {
        self.stage() == Some(Stage::Draining)
    }

    /// Whether the server was told that nothing follows, or cannot be.
    pub(super) fn is_disconnected(&self) -> bool {
        self.stage().is_none()
    }

    /// Whether nothing is to be sent any more.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed | Self::Shut)
    }

    /// Whether the socket was shut down.
    pub(super) fn is_shut(&self) -> bool {
        matches!(self, Self::Shut)
    }

    /// How far the side is, for people to read.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Active(outbox) if outbox.stage == Stage::Open => "open",
            Self::Active(_) | Self::Disconnected => "closing",
            Self::Closed | Self::Shut => "closed",
        }
    }

    /// Queues a request once `prepare` has seen it. With `last`, the caller gets the sender if nobody
    /// has it. Hands the request back if none is taken.
    pub(super) fn queue(
        &mut self,
        mut rq: OwnedRequest<Queue>,
        cookie: u32,
        last: bool,
        prepare: impl FnOnce(&mut OwnedRequest<Queue>),
    ) -> Result<Option<Sender>, OwnedRequest<Queue>> {
        match self {
            Self::Active(outbox) if outbox.stage == Stage::Open => {
                prepare(&mut rq);
                outbox.queue.push_back(rq.publish(cookie));
                Ok(if last { outbox.take_idle() } else { None })
            }
            _ => Err(rq),
        }
    }

    /// The sender, if there is something to send and nobody has it.
    pub(super) fn take_sender(&mut self) -> Option<Sender> {
        match self {
            Self::Active(outbox) if outbox.stage == Stage::Open && outbox.queue.is_empty() => None,
            _ => self.take_idle(),
        }
    }

    /// The sender, if nobody has it.
    pub(super) fn take_idle(&mut self) -> Option<Sender> {
        match self {
            Self::Active(outbox) => outbox.take_idle(),
            _ => None,
        }
    }

    /// The sender, if it waits for the worker.
    pub(super) fn take_deferred(&mut self) -> Option<Sender> {
        let Self::Active(outbox) = self else {
            return None;
        };
        match mem::replace(&mut outbox.sender, SenderState::Busy) {
            SenderState::Deferred(sender) => Some(sender),
            other => {
                outbox.sender = other;
                None
            }
        }
    }

    /// Takes no more requests. Returns those that are queued, for other links.
    pub(super) fn drain(&mut self) -> RequestList<Queue> {
        match self {
            Self::Active(outbox) if outbox.stage == Stage::Open => {
                outbox.stage = Stage::Draining;
                outbox.queue.take()
            }
            _ => RequestList::new(),
        }
    }

    /// Takes no more requests; the server is told so after those that are queued. Returns the sender,
    /// if nobody has it.
    pub(super) fn start_disconnect(&mut self) -> Option<Sender> {
        match self {
            Self::Active(outbox) => {
                outbox.stage = Stage::Closing;
                outbox.take_idle()
            }
            _ => None,
        }
    }

    /// Keeps what the sender holds until [`Self::close`]. Hands it back if that was.
    pub(super) fn fail(&mut self, broken: Broken) -> Result<(), Broken> {
        match self {
            Self::Active(outbox) => {
                outbox.stage = Stage::Closing;
                outbox.sender = SenderState::Failed(broken);
                Ok(())
            }
            _ => Err(broken),
        }
    }

    /// Why nothing can be sent any more, if [`Self::fail`] said so.
    pub(super) fn error(&self) -> Option<Error> {
        match self {
            Self::Active(Outbox {
                sender: SenderState::Failed(broken),
                ..
            }) => Some(broken.error),
            _ => None,
        }
    }

    /// What `sender` does next. If it may not `go_on`, the worker does that.
    pub(super) fn next(&mut self, mut sender: Sender, go_on: bool) -> Next {
        let Self::Active(outbox) = self else {
            return Next::Closed(sender);
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
        if !go_on {
            outbox.sender = SenderState::Deferred(sender);
            return Next::Deferred;
        }
        Next::Send(sender)
    }

    /// Leaves `sender` to the worker. Hands it back if nothing is to be sent any more.
    pub(super) fn defer(&mut self, sender: Sender) -> Result<(), Sender> {
        match self {
            Self::Active(outbox) => {
                outbox.sender = SenderState::Deferred(sender);
                Ok(())
            }
            _ => Err(sender),
        }
    }

    /// The server was told that nothing follows. Returns what the side held.
    pub(super) fn disconnected(&mut self) -> Option<Outbox> {
        match self {
            Self::Active(_) => self.replace(Self::Disconnected),
            _ => None,
        }
    }

    /// Sends nothing any more. Returns what was to be sent.
    pub(super) fn close(&mut self) -> Option<Outbox> {
        match self {
            Self::Active(_) | Self::Disconnected => self.replace(Self::Closed),
            Self::Closed | Self::Shut => None,
        }
    }

    /// The socket is shut down, after [`Self::close`].
    pub(super) fn shut(&mut self) {
        *self = Self::Shut;
    }

    fn replace(&mut self, new: Self) -> Option<Outbox> {
        match mem::replace(self, new) {
            Self::Active(outbox) => Some(outbox),
            _ => None,
        }
    }
}
