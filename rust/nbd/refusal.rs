// SPDX-License-Identifier: GPL-2.0

//! Why a request of a user is refused: the errno, and the text for the log and for netlink.

use kernel::{fmt, prelude::*, task::Comm};

/// The largest number of sockets of a device. This many receivers can run at a time, also on a
/// machine with several memory nodes.
pub(crate) const MAX_CONNECTIONS: usize = 256;

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
    /// The session is ending, and waits for a call of the socket of this connection.
    Ending {
        connection: Option<u32>,
    },
}

impl Refusal {
    pub(crate) fn errno(&self) -> Error {
        match self {
            Self::NoSocket | Self::NotConnected | Self::NetlinkSession | Self::OtherBackend => {
                EINVAL
            }
            Self::TooManySockets => ENOSPC,
            Self::NoMemory => ENOMEM,
            Self::BadParameter(error) => *error,
            Self::Owned { .. }
            | Self::Starting
            | Self::Running
            | Self::PreviousSession { .. }
            | Self::Removing
            | Self::Dead
            | Self::InFlight
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
        }
    }
}
