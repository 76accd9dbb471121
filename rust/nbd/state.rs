// SPDX-License-Identifier: GPL-2.0

//! The configuration state machine of a device.
//!
//! Each state carries what exists in it and nothing else; a transition replaces the state whole,
//! and what it leaves behind is handed to the caller, to be dropped outside the device's lock. A
//! refused event changes nothing. The types of owner, socket and session are parameters, so that
//! the machine can be tested by itself.

use crate::{
    params::Params,
    refusal::{Refusal, MAX_CONNECTIONS}, //
};
use core::mem;
use kernel::{
    fmt,
    net::socket::Socket,
    prelude::*,
    task::{Comm, Pid, Process}, //
};

/// Who sets a device up.
pub(crate) trait Identity {
    fn is(&self, other: &Self) -> bool;
    fn is_alive(&self) -> bool;
    fn pid(&self) -> Pid;
    fn comm(&self) -> Comm;
}

/// What can be told that it is not wanted any more.
pub(crate) trait Endpoint {
    /// Has the peer see the end of the stream.
    fn shutdown(&self);
}

impl Identity for Process {
    fn is(&self, other: &Self) -> bool {
        Process::is(self, other)
    }

    fn is_alive(&self) -> bool {
        Process::is_alive(self)
    }

    fn pid(&self) -> Pid {
        Process::pid(self)
    }

    fn comm(&self) -> Comm {
        Process::comm(self)
    }
}

impl Endpoint for Socket {
    fn shutdown(&self) {
        Socket::shutdown(self);
    }
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
    pub(crate) fn new(params: Params, owner: O, socket: S) -> Result<Self, (Refusal, S)> {
        let mut setup = Self {
            params,
            owner,
            sockets: KVec::new(),
        };
        setup.add(socket)?;
        Ok(setup)
    }

    /// Leaves the sockets open for whoever has them if they are too many.
    pub(crate) fn with_sockets(
        params: Params,
        owner: O,
        sockets: KVec<S>,
    ) -> Result<Self, Refusal> {
        if sockets.len() > MAX_CONNECTIONS {
            return Err(Refusal::TooManySockets);
        }
        Ok(Self {
            params,
            owner,
            sockets,
        })
    }

    /// Hands the socket back if there is no memory, or no room for another.
    pub(crate) fn add(&mut self, socket: S) -> Result<(), (Refusal, S)> {
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

    /// Takes out the socket that was added first, to make a connection of it.
    pub(crate) fn pop_socket(&mut self) -> Option<S> {
        self.sockets.remove(0).ok()
    }

    /// Drops the setup, but leaves the sockets open for whoever has them.
    pub(crate) fn forget(mut self) {
        self.sockets.clear();
    }

    pub(crate) fn socket_count(&self) -> usize {
        self.sockets.len()
    }
}

impl<O: Identity, S: Endpoint> Setup<O, S> {
    /// Why nobody else can have the device.
    fn owned(&self) -> Refusal {
        Refusal::Owned {
            pid: self.owner.pid(),
            comm: self.owner.comm(),
        }
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
    /// The device is with a task that starts a session or cleans it. Unless a session is started, it
    /// gets these parameters back.
    Starting(Params),
    /// A session serves requests.
    Running { params: Params, session: R },
    /// A session has ended; openers of that time remain.
    Stopped(Params),
    /// The device is being removed: it is used no more.
    Leaving,
}

/// What [`State::claim`] took for a session.
pub(crate) struct Claimed<O, S: Endpoint> {
    pub(crate) setup: Setup<O, S>,
    /// A setup whose owner has exited.
    pub(crate) stale: Option<Setup<O, S>>,
}

/// What is to be done when the last opener has closed the device.
pub(crate) enum LastClose<O, S: Endpoint, R> {
    Nothing,
    /// Drop this.
    Drop(Setup<O, S>),
    /// Clean the device, which is [`State::Starting`] until then.
    Clean,
    /// End this session.
    Disconnect(R),
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
                return Err((setup.owned(), socket));
            }
            Self::Starting(_) => return Err((Refusal::Starting, socket)),
            Self::Running { .. } => return Err((Refusal::Running, socket)),
            Self::Stopped(params) if params.client().destroy_on_disconnect() => {
                return Err((Refusal::Leaving, socket));
            }
            Self::Stopped(_) => {
                let others = openers.saturating_sub(1);
                return Err((Refusal::PreviousSession { others }, socket));
            }
            Self::Leaving => return Err((Refusal::Leaving, socket)),
            Self::Setup(stale) => stale.params,
            Self::Idle(params) => *params,
        };
        let setup = Setup::new(params, caller, socket)?;
        Ok(match mem::replace(self, Self::Setup(setup)) {
            Self::Setup(stale) => Some(stale),
            _ => None,
        })
    }

    /// Takes a device that is left from an ended session, with at most `limit` openers, out of use
    /// to be cleaned. Whether it was taken.
    pub(crate) fn retire(&mut self, openers: u32, limit: u32) -> bool {
        match self {
            Self::Stopped(params) if openers <= limit => {
                // One that is to be removed does not come back for those who have it open.
                if openers > 0 && params.client().destroy_on_disconnect() {
                    return false;
                }
                // Who opens it from now on finds nothing of the session.
                *self = Self::Starting(match openers {
                    0 => params.forgotten(),
                    _ => *params,
                });
                true
            }
            _ => false,
        }
    }

    /// The device that was [`Self::Starting`] is clean, and no session was started. Returns whether it
    /// is to be removed. Does nothing in another state.
    pub(crate) fn retired(&mut self, openers: u32) -> bool {
        let Self::Starting(params) = *self else {
            return false;
        };
        let leaves = params.client().destroy_on_disconnect();
        *self = match openers {
            0 if leaves => Self::Leaving,
            0 => Self::Idle(Params::default()),
            // Somebody has opened it meanwhile.
            _ if leaves => Self::Stopped(params),
            _ => Self::Idle(params),
        };
        matches!(self, Self::Leaving)
    }

    /// Takes an idle device to start a session of `setup` with it. If that fails, a device that was
    /// made for the session is to be removed if the session would have had it removed.
    pub(crate) fn claim(
        &mut self,
        setup: Setup<O, S>,
        openers: u32,
        made: bool,
    ) -> Result<Claimed<O, S>, (Refusal, Setup<O, S>)> {
        let before = match self {
            Self::Idle(params) => *params,
            Self::Setup(stale) if !stale.owner.is_alive() => stale.params,
            Self::Setup(other) => {
                return Err((other.owned(), setup));
            }
            Self::Starting(_) => return Err((Refusal::Starting, setup)),
            Self::Running { .. } => return Err((Refusal::Running, setup)),
            Self::Stopped(_) => {
                return Err((Refusal::PreviousSession { others: openers }, setup));
            }
            Self::Leaving => return Err((Refusal::Leaving, setup)),
        };
        let restore = match made {
            true => setup.params.forgotten(),
            false => before,
        };
        let stale = match mem::replace(self, Self::Starting(restore)) {
            Self::Setup(stale) => Some(stale),
            _ => None,
        };
        Ok(Claimed { setup, stale })
    }

    /// As [`Self::claim`], but leaves a setup alone, whoever has made it: a client may have sent its
    /// owner away and be about to start it.
    pub(crate) fn claim_idle(
        &mut self,
        setup: Setup<O, S>,
        openers: u32,
        made: bool,
    ) -> Result<Claimed<O, S>, (Refusal, Setup<O, S>)> {
        match self {
            Self::Setup(other) => Err((other.owned(), setup)),
            _ => self.claim(setup, openers, made),
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
            Self::Starting(_) => return Err(Refusal::Starting),
            Self::Leaving => return Err(Refusal::Leaving),
        };
        *params = f(*params).map_err(Refusal::BadParameter)?;
        self.session()
    }

    /// The running session and its parameters.
    pub(crate) fn running(&self) -> Option<(R, Params)> {
        match self {
            Self::Running { params, session } => Some((session.clone(), *params)),
            _ => None,
        }
    }

    /// Takes the setup out to start a session with it, with `openers` having the device open.
    pub(crate) fn claim_setup(&mut self, openers: u32) -> Result<Setup<O, S>, Refusal> {
        let refusal = match self {
            Self::Setup(setup) => {
                let starting = Self::Starting(setup.params);
                return match mem::replace(self, starting) {
                    Self::Setup(setup) => Ok(setup),
                    _ => Err(Refusal::NoSocket),
                };
            }
            Self::Idle(_) => Refusal::NoSocket,
            Self::Starting(_) => Refusal::Starting,
            Self::Running { .. } => Refusal::Running,
            Self::Stopped(_) => Refusal::PreviousSession {
                others: openers.saturating_sub(1),
            },
            Self::Leaving => Refusal::Leaving,
        };
        Err(refusal)
    }

    /// The session that the device was [`Self::Starting`] for is there. Hands it back in another
    /// state.
    pub(crate) fn started(&mut self, params: Params, session: R) -> Result<(), R> {
        match self {
            Self::Starting(_) => {
                *self = Self::Running { params, session };
                Ok(())
            }
            _ => Err(session),
        }
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
            Self::Starting(_) => Err(Refusal::Starting),
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

    /// The last opener is gone: back to the beginning, unless a session runs or starts.
    pub(crate) fn last_closed(&mut self) -> LastClose<O, S, R> {
        let fresh = Self::Idle(Params::default());
        match self {
            Self::Idle(_) => *self = fresh,
            Self::Setup(_) => {
                if let Self::Setup(setup) = mem::replace(self, fresh) {
                    return LastClose::Drop(setup);
                }
            }
            Self::Stopped(params) => {
                *self = Self::Starting(params.forgotten());
                return LastClose::Clean;
            }
            Self::Running { params, session } if params.client().disconnect_on_close() => {
                return LastClose::Disconnect(session.clone());
            }
            Self::Running { .. } | Self::Starting(_) | Self::Leaving => {}
        }
        LastClose::Nothing
    }

    /// Whether the device is with somebody who will not have it for long.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self, Self::Starting(_))
    }

    /// Whether the device is left from an ended session: cleaned, or held by others.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Self::Starting(_) | Self::Stopped(_))
    }

    /// Whether a session has ended and others still have the device open.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped(_))
    }

    /// Whether the device is being removed.
    pub(crate) fn is_leaving(&self) -> bool {
        matches!(self, Self::Leaving)
    }

    /// Whether nothing is configured.
    pub(crate) fn is_unused(&self) -> bool {
        matches!(self, Self::Idle(_) | Self::Leaving)
    }

    /// The parameters; the defaults while they are with whoever starts or removes the device.
    pub(crate) fn params(&self) -> Params {
        match self {
            Self::Idle(params) | Self::Stopped(params) | Self::Running { params, .. } => *params,
            Self::Setup(setup) => setup.params,
            Self::Starting(_) | Self::Leaving => Params::default(),
        }
    }

    /// Writes the state for people to read.
    pub(crate) fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(_) => f.write_str("idle"),
            Self::Setup(setup) => f.write_fmt(fmt!(
                "setup of {} socket(s) by process {} ({}), which {}",
                setup.sockets.len(),
                setup.owner.pid(),
                setup.owner.comm(),
                if setup.owner.is_alive() {
                    "is alive"
                } else {
                    "has exited"
                }
            )),
            Self::Starting(_) => f.write_str("starting"),
            Self::Running { .. } => f.write_str("running"),
            Self::Stopped(_) => f.write_str("stopped, waits until all openers are gone"),
            Self::Leaving => f.write_str("being removed"),
        }
    }
}

#[cfg(CONFIG_KUNIT)]
mod tests;
