// SPDX-License-Identifier: GPL-2.0

//! Why a request of a user is refused: the errno, and the text for the log and for netlink.

use kernel::{
    fmt,
    prelude::*,
    task::Comm, //
};

/// The largest number of sockets of a device. This many receivers can run at a time, also on a
/// machine with several memory nodes.
pub(crate) const MAX_CONNECTIONS: usize = 256;

/// The number of earlier sockets of a connection whose servers may still answer.
pub(crate) const MAX_DRAINING: usize = 4;

/// Why an operation was refused.
pub(crate) enum Refusal {
    /// Another process, which is alive, is setting the device up.
    Owned {
        pid: i32,
        comm: Comm,
    },
    Starting,
    Running,
    /// A session has ended and the device has other openers from that time.
    PreviousSession {
        others: u32,
    },
    /// There is no socket to start a session with.
    NoSocket,
    TooManySockets,
    NoMemory,
    /// A parameter is out of range.
    BadParameter(Error),
    /// The device is being removed.
    Removing,
    /// No session runs that netlink has started.
    NotConnected,
    /// The session that runs was started by netlink.
    NetlinkSession,
    /// The session is for another backend.
    OtherBackend,
    /// No connection is open.
    Dead,
    /// Requests were in flight for too long.
    InFlight,
    /// There is no connection of this number.
    NoConnection {
        index: u32,
    },
    /// A connection that is added must have this number.
    NextConnection {
        next: u32,
    },
    /// There are [`MAX_CONNECTIONS`] already.
    TooManyConnections,
    /// The server does not support multiple connections.
    OneConnection,
    /// No other connection is open.
    LastConnection,
    /// Too many replaced sockets of this connection have requests in flight.
    Draining {
        index: u32,
    },
    /// A message that changes connections cannot change the block size.
    BlockSize,
    /// The session is ending, and waits for a call of the socket of this connection.
    Ending {
        connection: Option<u32>,
    },
}

impl Refusal {
    pub(crate) fn errno(&self) -> Error {
        match self {
            Self::NoSocket
            | Self::NotConnected
            | Self::NetlinkSession
            | Self::OtherBackend
            | Self::NoConnection { .. }
            | Self::NextConnection { .. }
            | Self::OneConnection
            | Self::BlockSize => EINVAL,
            Self::TooManySockets | Self::TooManyConnections => ENOSPC,
            Self::NoMemory => ENOMEM,
            Self::BadParameter(error) => *error,
            Self::Owned { .. }
            | Self::Starting
            | Self::Running
            | Self::PreviousSession { .. }
            | Self::Removing
            | Self::Dead
            | Self::InFlight
            | Self::LastConnection
            | Self::Draining { .. }
            | Self::Ending { .. } => EBUSY,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owned { pid, comm } => f.write_fmt(fmt!(
                "process {pid} (\"{comm}\") is setting it up; wait for it or end it"
            )),
            Self::Starting => f.write_str("a session is being started; try again"),
            Self::Running => f.write_str("a session is running; disconnect it first"),
            Self::PreviousSession { others: 0 } => {
                f.write_str("the previous session has ended; use NBD_SET_SOCK first")
            }
            Self::PreviousSession { others } => write!(
                f,
                "the previous session ended, but {others} opener(s) remain; close or unmount first"
            ),
            Self::NoSocket => f.write_str("no socket was set; use NBD_SET_SOCK first"),
            Self::TooManySockets => write!(
                f,
                "the device has {MAX_CONNECTIONS} sockets already; start it or clear them"
            ),
            Self::NoMemory => f.write_str("out of memory; try again"),
            Self::BadParameter(_) => {
                f.write_str("a value is out of range; the documentation has the limits")
            }
            Self::Removing => f.write_str("the device is being removed; close it, then connect"),
            Self::NotConnected => f.write_str("no session made by netlink runs; connect first"),
            Self::NetlinkSession => {
                f.write_str("netlink connected the device; use NBD_CMD_RECONFIGURE or disconnect")
            }
            Self::OtherBackend => {
                f.write_str("the backend identifier is not the session's; give that")
            }
            Self::InFlight => f.write_str("requests wait for the server; try again later"),
            Self::Ending { connection: None } => {
                f.write_str("the session is ending, which takes long; try again later")
            }
            Self::Ending {
                connection: Some(index),
            } => write!(
                f,
                "the session is ending, but waits for connection {index}, whose socket another \
                 process keeps locked; end that process"
            ),
            Self::Dead => f.write_str("no connection is open; give sockets first"),
            Self::NoConnection { index } => {
                write!(f, "there is no connection {index}; status lists them")
            }
            Self::NextConnection { next } => {
                write!(f, "the next connection to add is number {next}; give that")
            }
            Self::TooManyConnections => write!(
                f,
                "a device can have {MAX_CONNECTIONS} connections; replace one"
            ),
            Self::OneConnection => {
                f.write_str("the server does not support multiple connections; replace 0")
            }
            Self::LastConnection => f.write_str("no other connection is open; add one first"),
            Self::Draining { index } => write!(
                f,
                "requests wait on {MAX_DRAINING} earlier sockets of connection {index}; try later"
            ),
            Self::BlockSize => {
                f.write_str("sockets with an index are given; change the block size alone")
            }
        }
    }
}
