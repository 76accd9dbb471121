// SPDX-License-Identifier: GPL-2.0

//! The state machine of the sending side of a link.
//!
//! All transitions are methods that are called with `Link::send_side` held, and do not sleep. What
//! a method returns is used or dropped after the lock is released.

use super::sender::Sender;
use crate::request::Queue;
use core::mem;
use kernel::{
    block::mq::{
        OwnedRequest,
        RequestList, //
    },
    prelude::*, //
};

/// What a call has sent.
#[derive(PartialEq, Eq)]
pub(crate) enum Sent {
    /// Requests, or nothing.
    Requests,
    /// Also the message that ends the connection.
    Disconnect,
}

/// A sender whose send has failed. Its requests stay published as long as this lives.
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

    /// Returns the error of the send.
    pub(crate) fn error(&self) -> Error {
        self.error
    }
}

/// The state of the sender.
enum SenderState {
    /// No task sends.
    Idle(Sender),
    /// A task has the sender, and looks for more requests when it is done.
    Busy,
    /// The socket had no room. The worker continues.
    Deferred(Sender),
    /// The server has closed its end. The receiver has not read yet what the server sent before.
    Failed(Broken),
}

/// Whether the link takes requests, and when the server is told that no more follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// The link takes no requests. The server is told when none is in flight.
    Draining,
    /// The link takes no requests. The server is told after those that are queued.
    Closing,
}

/// The state of the sending side.
pub(crate) enum SendSide {
    Active(Outbox),
    /// The server was told that no requests follow.
    Disconnected,
    /// Nothing is sent any more. The socket has to be shut down.
    Closed,
    /// The socket is shut down.
    Shut,
}

/// The queued requests and the sender.
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
    /// Nothing. The sender is idle.
    Stop,
    /// Nothing. The sender was left to the worker.
    Deferred,
    /// Nothing. The link is closed, and the caller drops the sender after it has released the lock.
    Closed(Sender),
    /// Nothing. The sender is idle, and the link may have drained.
    Drained,
}

impl SendSide {
    /// Creates a sending side that takes requests.
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

    /// Whether the link takes requests.
    pub(super) fn is_open(&self) -> bool {
        self.stage() == Some(Stage::Open)
    }

    /// Whether the link takes no requests, and those in flight may still be answered.
    pub(super) fn is_draining(&self) -> bool {
        self.stage() == Some(Stage::Draining)
    }

    /// Whether the server was told that no requests follow, or nothing can be sent any more.
    pub(super) fn is_disconnected(&self) -> bool {
        self.stage().is_none()
    }

    /// Whether nothing is sent any more.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed | Self::Shut)
    }

    /// Whether the socket was shut down.
    pub(super) fn is_shut(&self) -> bool {
        matches!(self, Self::Shut)
    }

    /// Returns the name of the state for debugfs.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Active(outbox) if outbox.stage == Stage::Open => "open",
            Self::Active(_) | Self::Disconnected => "closing",
            Self::Closed | Self::Shut => "closed",
        }
    }

    /// Queues a request after it was passed to `prepare`. With `last`, returns the sender if it is
    /// idle. Hands the request back if the link takes none.
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

    /// Takes the sender if it is idle and there is something to send.
    pub(super) fn take_sender(&mut self) -> Option<Sender> {
        match self {
            Self::Active(outbox) if outbox.stage == Stage::Open && outbox.queue.is_empty() => None,
            _ => self.take_idle(),
        }
    }

    /// Takes the sender if it is idle.
    pub(super) fn take_idle(&mut self) -> Option<Sender> {
        match self {
            Self::Active(outbox) => outbox.take_idle(),
            _ => None,
        }
    }

    /// Takes the sender if it was left to the worker.
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

    /// Takes no more requests. Returns the queued ones, which the caller requeues.
    pub(super) fn drain(&mut self) -> RequestList<Queue> {
        match self {
            Self::Active(outbox) if outbox.stage == Stage::Open => {
                outbox.stage = Stage::Draining;
                outbox.queue.take()
            }
            _ => RequestList::new(),
        }
    }

    /// Takes no more requests. The server is told after the queued ones. Returns the sender if it
    /// is idle.
    pub(super) fn start_disconnect(&mut self) -> Option<Sender> {
        match self {
            Self::Active(outbox) => {
                outbox.stage = Stage::Closing;
                outbox.take_idle()
            }
            _ => None,
        }
    }

    /// Keeps the requests of the sender published until [`Self::close`]. Hands `broken` back if the
    /// side is not active.
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

    /// Returns the error of [`Self::fail`], if there was one.
    pub(super) fn error(&self) -> Option<Error> {
        match self {
            Self::Active(Outbox {
                sender: SenderState::Failed(broken),
                ..
            }) => Some(broken.error),
            _ => None,
        }
    }

    /// Decides what `sender` does next. The worker continues unless the caller may `go_on`.
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

    /// Leaves `sender` to the worker. Hands it back if nothing is sent any more.
    pub(super) fn defer(&mut self, sender: Sender) -> Result<(), Sender> {
        match self {
            Self::Active(outbox) => {
                outbox.sender = SenderState::Deferred(sender);
                Ok(())
            }
            _ => Err(sender),
        }
    }

    /// Records that the server was told that no requests follow. Returns what the side held.
    pub(super) fn disconnected(&mut self) -> Option<Outbox> {
        match self {
            Self::Active(_) => self.replace(Self::Disconnected),
            _ => None,
        }
    }

    /// Stops sending. Returns what the side held.
    pub(super) fn close(&mut self) -> Option<Outbox> {
        match self {
            Self::Active(_) | Self::Disconnected => self.replace(Self::Closed),
            Self::Closed | Self::Shut => None,
        }
    }

    /// Records that the socket is shut down, after [`Self::close`].
    pub(super) fn set_shut(&mut self) {
        *self = Self::Shut;
    }

    fn replace(&mut self, new: Self) -> Option<Outbox> {
        match mem::replace(self, new) {
            Self::Active(outbox) => Some(outbox),
            _ => None,
        }
    }
}
