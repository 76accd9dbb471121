// SPDX-License-Identifier: GPL-2.0

//! Why links are lost and sessions end.

use kernel::{fmt, prelude::*};

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

/// Why a connection lost its link.
#[derive(Clone, Copy)]
pub(crate) enum LinkError {
    Receive(ReceiveError),
    Send(Error),
    TimedOut,
    /// The server refused a request because it is going away.
    ShuttingDown,
}

impl LinkError {
    /// Why a session ends whose last connection was lost by this.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::TimedOut => Reason::TimedOut,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::Receive(_) | Self::Send(_) => Reason::Lost,
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

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The last connection was lost.
    Lost,
    /// The last connection was lost because the server took too long.
    TimedOut,
    /// The server of the last connection is going away.
    ShuttingDown,
    /// A user asked for it.
    Requested,
    /// The task that runs the session got a signal that it acts on, or has exited.
    Interrupted,
}

impl Reason {
    /// What `NBD_DO_IT` returns.
    pub(crate) fn result(self) -> Result<i32> {
        match self {
            Self::Lost | Self::Requested => Ok(0),
            Self::TimedOut => Err(ETIMEDOUT),
            // Clients that connect again do so after an error only.
            Self::ShuttingDown => Err(EIO),
            Self::Interrupted => Err(EINTR),
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Lost => "all connections were lost",
            Self::TimedOut => "the server took too long",
            Self::ShuttingDown => "the server is shutting down",
            Self::Requested => "disconnected on request",
            Self::Interrupted => "its task got a signal",
        }
    }
}
