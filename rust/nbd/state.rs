// SPDX-License-Identifier: GPL-2.0

//! The configuration state machine of a device.
//!
//! Each state carries what exists in it and nothing else; a transition replaces the state whole,
//! and what it leaves behind is handed to the caller, to be dropped outside the device's lock. A
//! refused event changes nothing. The types of owner, socket and session are parameters, so that
//! the machine can be tested by itself.

use crate::params::Params;
use core::mem;
use kernel::{
    fmt,
    prelude::*,
    str::BStr, //
};

/// The sockets that a device can have: as many as receivers can surely run at a time, on a machine
/// with several memory nodes.
const MAX_CONNECTIONS: usize = 256;

/// Who sets a device up.
pub(crate) trait Identity {
    fn is(&self, other: &Self) -> bool;
    fn is_alive(&self) -> bool;
    fn pid(&self) -> i32;
    fn comm(&self) -> [u8; 16];
}

/// What can be told that it is not wanted any more.
pub(crate) trait Endpoint {
    /// Has the peer see the end of the stream.
    fn shutdown(&self);
}

/// A device being set up. There is no owner without a socket, and no socket without an owner.
/// Dropping it has the peers see the end of their streams.
pub(crate) struct Setup<O, S: Endpoint> {
    params: Params,
    owner: O,
    sockets: KVec<S>,
}

impl<O, S: Endpoint> Setup<O, S> {
    /// Hands the socket back if there is no memory.
    fn new(params: Params, owner: O, socket: S) -> Result<Self, (Refusal, S)> {
        let mut setup = Self {
            params,
            owner,
            sockets: KVec::new(),
        };
        setup.add(socket)?;
        Ok(setup)
    }

    /// Hands the socket back if there is no memory, or no room for another.
    fn add(&mut self, socket: S) -> Result<(), (Refusal, S)> {
        if self.sockets.len() >= MAX_CONNECTIONS {
            return Err((Refusal::TooManySockets, socket));
        }
        if self.sockets.reserve(1, GFP_KERNEL).is_err() {
            return Err((Refusal::NoMemory, socket));
        }
        self.sockets
            .push_within_capacity(socket)
            .map_err(|e| (Refusal::NoMemory, e.0))
    }

    pub(crate) fn params(&self) -> Params {
        self.params
    }

    /// Takes out the socket added last, to make a connection of it.
    pub(crate) fn pop_socket(&mut self) -> Option<S> {
        self.sockets.pop()
    }

    pub(crate) fn socket_count(&self) -> usize {
        self.sockets.len()
    }
}

impl<O, S: Endpoint> Drop for Setup<O, S> {
    fn drop(&mut self) {
        self.sockets.iter().for_each(S::shutdown);
    }
}

/// The state of a device; `R` is a running session.
pub(crate) enum State<O, S: Endpoint, R> {
    /// Nothing but parameters.
    Idle(Params),
    /// Sockets are being added.
    Setup(Setup<O, S>),
    /// The setup is with the task that starts the session.
    Starting,
    /// A session serves requests.
    Running { params: Params, session: R },
    /// A session has ended; openers of that time remain.
    Stopped(Params),
}

/// Why an operation was refused.
pub(crate) enum Refusal {
    /// Another process, which is alive, sets the device up.
    Owned {
        pid: i32,
        comm: [u8; 16],
    },
    Starting,
    Running,
    /// A session has ended and others who had the device open then have not closed it.
    PreviousSession {
        others: u32,
    },
    /// There is no socket to start with.
    NoSocket,
    TooManySockets,
    NoMemory,
    /// A parameter has a value that the device cannot have.
    BadParameter(Error),
}

impl Refusal {
    pub(crate) fn errno(&self) -> Error {
        match self {
            Self::NoSocket => EINVAL,
            Self::TooManySockets => ENOSPC,
            Self::NoMemory => ENOMEM,
            Self::BadParameter(error) => *error,
            Self::Owned { .. } | Self::Starting | Self::Running | Self::PreviousSession { .. } => {
                EBUSY
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owned { pid, comm } => {
                let comm = comm.split(|byte| *byte == 0).next().unwrap_or(&[]);
                write!(
                    f,
                    "process {} ({:?}) is setting the device up; wait for it or end it",
                    pid,
                    BStr::from_bytes(comm)
                )
            }
            Self::Starting => f.write_str("a session is being started; try again"),
            Self::Running => f.write_str("a session is running; disconnect it first"),
            Self::PreviousSession { others } => write!(
                f,
                "the previous session ended, but {others} opener(s) of that time still hold the \
                 device; close or unmount it there first"
            ),
            Self::NoSocket => f.write_str("no socket was set; use NBD_SET_SOCK first"),
            Self::TooManySockets => write!(
                f,
                "the device has {MAX_CONNECTIONS} sockets already; start it or clear them"
            ),
            Self::NoMemory => f.write_str("out of memory; try again"),
            Self::BadParameter(_) => {
                f.write_str("the value is out of range; the documentation has the limits")
            }
        }
    }
}

impl<O: Identity, S: Endpoint, R: Clone> State<O, S, R> {
    /// Adds a socket for `caller`, with `openers` having the device open. Returns a stale setup
    /// that this replaced, or why it was refused, with the socket.
    pub(crate) fn add_socket(
        &mut self,
        caller: O,
        openers: u32,
        socket: S,
    ) -> Result<Option<Setup<O, S>>, (Refusal, S)> {
        let params = match self {
            Self::Setup(setup) if setup.owner.is(&caller) => {
                return setup.add(socket).map(|()| None);
            }
            Self::Setup(setup) if setup.owner.is_alive() => {
                let (pid, comm) = (setup.owner.pid(), setup.owner.comm());
                return Err((Refusal::Owned { pid, comm }, socket));
            }
            Self::Starting => return Err((Refusal::Starting, socket)),
            Self::Running { .. } => return Err((Refusal::Running, socket)),
            Self::Stopped(_) => {
                let others = openers.saturating_sub(1);
                return Err((Refusal::PreviousSession { others }, socket));
            }
            Self::Setup(stale) => stale.params,
            Self::Idle(params) => *params,
        };
        let setup = Setup::new(params, caller, socket)?;
        Ok(match mem::replace(self, Self::Setup(setup)) {
            Self::Setup(stale) => Some(stale),
            _ => None,
        })
    }

    /// Takes a device whose only opener is left from an ended session out of use, to be cleaned;
    /// [`Self::idle`] must follow.
    pub(crate) fn retire(&mut self, openers: u32) -> Option<Params> {
        match self {
            Self::Stopped(params) if openers <= 1 => {
                let params = *params;
                *self = Self::Starting;
                Some(params)
            }
            _ => None,
        }
    }

    /// Changes the parameters by `f`. Returns the session that they hold for, if one runs.
    pub(crate) fn update(
        &mut self,
        f: impl FnOnce(Params) -> Result<Params>,
    ) -> Result<Option<R>, Refusal> {
        let params = match self {
            Self::Idle(params) | Self::Stopped(params) | Self::Running { params, .. } => params,
            Self::Setup(setup) => &mut setup.params,
            Self::Starting => return Err(Refusal::Starting),
        };
        *params = f(*params).map_err(Refusal::BadParameter)?;
        self.session()
    }

    /// The parameters of the running session.
    pub(crate) fn running_params(&self) -> Option<Params> {
        match self {
            Self::Running { params, .. } => Some(*params),
            _ => None,
        }
    }

    /// Takes the setup out to start a session with it.
    pub(crate) fn start(&mut self) -> Result<Setup<O, S>, Refusal> {
        match mem::replace(self, Self::Starting) {
            Self::Setup(setup) => Ok(setup),
            other => {
                let refusal = match &other {
                    Self::Idle(_) | Self::Setup(_) => Refusal::NoSocket,
                    Self::Starting => Refusal::Starting,
                    Self::Running { .. } | Self::Stopped(_) => Refusal::Running,
                };
                *self = other;
                Err(refusal)
            }
        }
    }

    /// The session that [`Self::start`] was for is there.
    pub(crate) fn started(&mut self, params: Params, session: R) {
        *self = Self::Running { params, session };
    }

    /// The session that [`Self::start`] was for could not be made, or the device that
    /// [`Self::retire`] took is clean.
    pub(crate) fn idle(&mut self, params: Params) {
        *self = Self::Idle(params);
    }

    /// The running session has ended. Returns it.
    pub(crate) fn stopped(&mut self) -> Option<R> {
        let Self::Running { params, .. } = self else {
            return None;
        };
        let stopped = Self::Stopped(*params);
        match mem::replace(self, stopped) {
            Self::Running { session, .. } => Some(session),
            _ => None,
        }
    }

    /// The running session, if there is one.
    pub(crate) fn session(&self) -> Result<Option<R>, Refusal> {
        match self {
            Self::Running { session, .. } => Ok(Some(session.clone())),
            Self::Starting => Err(Refusal::Starting),
            _ => Ok(None),
        }
    }

    /// Drops the sockets of a setup, keeping the parameters. Returns the setup.
    pub(crate) fn clear(&mut self) -> Option<Setup<O, S>> {
        let Self::Setup(setup) = self else {
            return None;
        };
        let idle = Self::Idle(setup.params);
        match mem::replace(self, idle) {
            Self::Setup(setup) => Some(setup),
            _ => None,
        }
    }

    /// The last opener is gone: back to the beginning, unless a session runs or starts. Returns
    /// what there was.
    pub(crate) fn last_closed(&mut self) -> Option<Self> {
        match self {
            Self::Idle(_) | Self::Setup(_) | Self::Stopped(_) => {
                Some(mem::replace(self, Self::Idle(Params::default())))
            }
            Self::Starting | Self::Running { .. } => None,
        }
    }
}
