// SPDX-License-Identifier: GPL-2.0

//! How far a session is, and why it comes to its end.

use kernel::{
    fmt,
    prelude::*,
    time::{Instant, Monotonic}, //
};

/// Why a connection cannot be read any further.
#[derive(Clone, Copy)]
pub(crate) enum ReceiveError {
    /// The server closed it.
    Closed,
    /// The socket failed.
    Socket(Error),
    /// The server sent what is no reply.
    NoReply,
    /// The server replied to what was not asked on this connection, or twice.
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

/// Why a connection was lost.
#[derive(Clone, Copy)]
pub(crate) enum Loss {
    Receive(ReceiveError),
    Send(Error),
    TimedOut,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Receive(error) => error.fmt(f),
            Self::Send(error) => write!(f, "send failed ({})", error.to_errno()),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The last connection was lost.
    Lost,
    /// The last connection was lost because the server took too long.
    TimedOut,
    /// A user asked for it.
    Requested,
    /// The task that runs the session got a signal.
    Interrupted,
}

impl Reason {
    /// What `NBD_DO_IT` returns.
    pub(crate) fn result(self) -> Result<i32> {
        match self {
            Self::Lost | Self::Requested => Ok(0),
            Self::TimedOut => Err(ETIMEDOUT),
            Self::Interrupted => Err(EINTR),
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Lost => "all connections were lost",
            Self::TimedOut => "the server took too long",
            Self::Requested => "disconnected on request",
            Self::Interrupted => "its task got a signal",
        }
    }
}

/// Where a session is in its life.
pub(crate) enum Life {
    /// So many connections are open: at least one.
    Live(u32),
    /// None is open. Requests wait for a new one, for as long as the parameters say after the first
    /// came, which was then, if one has.
    Waiting(Option<Instant<Monotonic>>),
    /// None is open, and requests fail; a reconnect may bring one.
    Dead,
    /// So many connections are open, and the servers were told to close them.
    Goodbye(u32),
    /// The end is being made.
    Ending(Reason),
    /// All connections are closed, all requests finished.
    Ended(Reason),
}
