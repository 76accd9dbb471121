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
    fn new(params: Params, owner: O, socket: S) -> Result<Self, S> {
        let mut setup = Self {
            params,
            owner,
            sockets: KVec::new(),
        };
        setup.add(socket)?;
        Ok(setup)
    }

    /// Hands the socket back if there is no memory.
    fn add(&mut self, socket: S) -> Result<(), S> {
        if self.sockets.reserve(1, GFP_KERNEL).is_err() {
            return Err(socket);
        }
        self.sockets.push_within_capacity(socket).map_err(|e| e.0)
    }

    pub(crate) fn params(&self) -> Params {
        self.params
    }

    /// Takes the sockets out to make connections of them.
    pub(crate) fn into_sockets(mut self) -> KVec<S> {
        mem::take(&mut self.sockets)
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
    NoMemory,
    /// A parameter has a value that the device cannot have.
    BadParameter(Error),
}

impl Refusal {
    pub(crate) fn errno(&self) -> Error {
        match self {
            Self::NoSocket => EINVAL,
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
            Self::NoMemory => f.write_str("out of memory; try again"),
            Self::BadParameter(_) => {
                f.write_str("the value is out of range; the documentation has the limits")
            }
        }
    }
}

/// What became of a parameter.
pub(crate) enum Updated<R> {
    /// It is kept for the next session.
    Kept,
    /// It holds for this session from now on.
    Running {
        old: Params,
        new: Params,
        session: R,
    },
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
                return match setup.add(socket) {
                    Ok(()) => Ok(None),
                    Err(socket) => Err((Refusal::NoMemory, socket)),
                };
            }
            Self::Setup(setup) if setup.owner.is_alive() => {
                let (pid, comm) = (setup.owner.pid(), setup.owner.comm());
                return Err((Refusal::Owned { pid, comm }, socket));
            }
            Self::Starting => return Err((Refusal::Starting, socket)),
            Self::Running { .. } => return Err((Refusal::Running, socket)),
            Self::Stopped(_) if openers > 1 => {
                let others = openers - 1;
                return Err((Refusal::PreviousSession { others }, socket));
            }
            Self::Setup(stale) => stale.params,
            Self::Idle(params) | Self::Stopped(params) => *params,
        };
        match Setup::new(params, caller, socket) {
            Ok(setup) => Ok(match mem::replace(self, Self::Setup(setup)) {
                Self::Setup(stale) => Some(stale),
                _ => None,
            }),
            Err(socket) => Err((Refusal::NoMemory, socket)),
        }
    }

    /// Changes the parameters by `f`.
    pub(crate) fn update(
        &mut self,
        f: impl FnOnce(Params) -> Result<Params>,
    ) -> Result<Updated<R>, Refusal> {
        let params = match self {
            Self::Idle(params) | Self::Stopped(params) | Self::Running { params, .. } => params,
            Self::Setup(setup) => &mut setup.params,
            Self::Starting => return Err(Refusal::Starting),
        };
        let old = *params;
        let new = f(old).map_err(Refusal::BadParameter)?;
        *params = new;
        Ok(match self {
            Self::Running { session, .. } => Updated::Running {
                old,
                new,
                session: session.clone(),
            },
            _ => Updated::Kept,
        })
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

    /// The session that [`Self::start`] was for could not be made.
    pub(crate) fn start_failed(&mut self, params: Params) {
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

    /// The running session.
    pub(crate) fn session(&self) -> Option<R> {
        match self {
            Self::Running { session, .. } => Some(session.clone()),
            _ => None,
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
