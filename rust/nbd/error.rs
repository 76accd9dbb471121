// SPDX-License-Identifier: GPL-2.0

//! Link errors, and the reasons for the end of a session.

use kernel::{
    fmt,
    prelude::*, //
};

/// Why nothing can be received on a link any more.
#[derive(Clone, Copy)]
pub(crate) enum ReceiveError {
    /// The server closed its end.
    Closed,
    /// The socket failed.
    Socket(Error),
    /// The server sent something that is not a reply.
    NoReply,
    /// The server replied to a request that was not sent on this link, or replied twice.
    Unexpected { tag: u32 },
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the server"),
            Self::Socket(error) => write!(f, "receive failed ({})", error.to_errno()),
            Self::NoReply => f.write_str("the server sent something that is not a reply"),
            Self::Unexpected { tag } => {
                write!(
                    f,
                    "the server sent a reply that nobody waits for (tag {tag:#x})"
                )
            }
        }
    }
}

/// Why a link has failed.
#[derive(Clone, Copy)]
pub(crate) enum LinkError {
    Receive(ReceiveError),
    Send(Error),
    TimedOut,
    /// The server is shutting down and refused a request.
    ShuttingDown,
}

impl LinkError {
    /// Returns the reason for which a session ends if its last link has this error.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::TimedOut => Reason::TimedOut,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::Receive(_) | Self::Send(_) => Reason::LinksFailed,
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Receive(error) => error.fmt(f),
            Self::Send(error) => write!(f, "send failed ({})", error.to_errno()),
            Self::TimedOut => f.write_str("timed out"),
            Self::ShuttingDown => f.write_str("the server is shutting down"),
        }
    }
}

/// Why a session has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The last link has failed.
    LinksFailed,
    /// The last link has failed because the server took too long.
    TimedOut,
    /// The server of the last link is shutting down.
    ShuttingDown,
    /// A user has requested the end.
    Requested,
    /// The task in `NBD_DO_IT` got a signal that kills it or that it has a handler for, or has
    /// exited.
    Interrupted,
}

impl Reason {
    /// Returns the result of `NBD_DO_IT`.
    pub(crate) fn result(self) -> Result<i32> {
        match self {
            Self::LinksFailed | Self::Requested => Ok(0),
            Self::TimedOut => Err(ETIMEDOUT),
            // Clients reconnect only after an error.
            Self::ShuttingDown => Err(EIO),
            Self::Interrupted => Err(EINTR),
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::LinksFailed => "all connections were lost",
            Self::TimedOut => "the server took too long",
            Self::ShuttingDown => "the server is shutting down",
            Self::Requested => "disconnected on request",
            Self::Interrupted => "its task got a signal",
        }
    }
}
