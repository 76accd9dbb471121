// SPDX-License-Identifier: GPL-2.0

//! The configuration state machine of a device.
//!
//! Each state carries what exists in it and nothing else. A transition replaces the state whole,
//! and returns what it leaves behind, which the caller drops outside of the lock of the
//! configuration. A refused event changes nothing. The types of owner, socket and session are
//! parameters, so that the machine can be tested alone.
//!
//! All transitions are called with [`Device::config`](crate::device::Device) locked.

use crate::{
    params::Params,
    refusal::{
        Refusal,
        MAX_CONNECTIONS, //
    }, //
};
use core::mem;
use kernel::{
    fmt,
    net::socket::Socket,
    prelude::*,
    sync::aref::ARef,
    task::{
        Comm,
        Pid,
        Task, //
    }, //
};

/// The owner of a setup.
pub(crate) trait Identity {
    fn is(&self, other: &Self) -> bool;
    fn is_alive(&self) -> bool;
    fn pid(&self) -> Pid;
    fn comm(&self) -> Comm;
}

/// A socket of a setup.
pub(crate) trait Endpoint {
    /// Shows the peer the end of the stream. Context: may sleep.
    fn shutdown(&self);
}

/// The process of the task, whichever of its threads this is.
impl Identity for ARef<Task> {
    fn is(&self, other: &Self) -> bool {
        self.same_thread_group(other)
    }

    fn is_alive(&self) -> bool {
        self.thread_group_live()
    }

    fn pid(&self) -> Pid {
        self.tgid()
    }

    fn comm(&self) -> Comm {
        Task::comm(self)
    }
}

impl Endpoint for Socket {
    fn shutdown(&self) {
        Socket::shutdown(self);
    }
}

/// A device that is being set up. It always has an owner and at least one socket. Dropping it shows
/// the peers the end of their streams, and may sleep.
pub(crate) struct Setup<O, S: Endpoint> {
    params: Params,
    owner: O,
    sockets: KVec<S>,
}

impl<O, S: Endpoint> Setup<O, S> {
    /// Fails if there is no memory, and hands the socket back.
    pub(crate) fn new(params: Params, owner: O, socket: S) -> Result<Self, (Refusal, S)> {
        let mut setup = Self {
            params,
            owner,
            sockets: KVec::new(),
        };
        setup.add(socket)?;
        Ok(setup)
    }

    /// Fails if there are too many sockets, and leaves them open.
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

    /// Fails if there is no memory or no room for another socket, and hands the socket back.
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

    /// Takes out the socket that was added first.
    pub(crate) fn pop_socket(&mut self) -> Option<S> {
        self.sockets.remove(0).ok()
    }

    /// Drops the setup, but leaves the sockets open.
    pub(crate) fn release(mut self) {
        self.sockets.clear();
    }

    pub(crate) fn socket_count(&self) -> usize {
        self.sockets.len()
    }
}

impl<O: Identity, S: Endpoint> Setup<O, S> {
    /// Returns the refusal for other processes.
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

/// The state of a device. `R` is a reference to a running session.
pub(crate) enum State<O, S: Endpoint, R> {
    /// Only parameters exist.
    Idle(Params),
    /// Sockets are being added.
    Setup(Setup<O, S>),
    /// One task has taken the device out of use, to start a session or to clean the device. Unless
    /// a session is started, the device gets these parameters back.
    Starting(Params),
    /// A session serves requests.
    Running { params: Params, session: R },
    /// The session has ended, and the device has openers from that time.
    Stopped(Params),
    /// The device is being removed. There is no other state after this one.
    Removing,
}

/// The result of [`State::claim`].
pub(crate) struct Claimed<O, S: Endpoint> {
    pub(crate) setup: Setup<O, S>,
    /// A setup whose owner has exited.
    pub(crate) stale: Option<Setup<O, S>>,
}

/// What the caller does after the last opener has closed the device.
pub(crate) enum LastClose<O, S: Endpoint, R> {
    Nothing,
    /// Drop this setup.
    Drop(Setup<O, S>),
    /// Clean the device, which is [`State::Starting`] until then.
    Clean,
    /// Disconnect this session.
    Disconnect(R),
}

impl<O: Identity, S: Endpoint, R: Clone> State<O, S, R> {
    /// Adds a socket for `caller`. `openers` is the number of openers of the device. Returns a
    /// stale setup that this replaces. On failure returns the refusal and the socket.
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
                return Err((Refusal::Removing, socket));
            }
            Self::Stopped(_) => {
                let others = openers.saturating_sub(1);
                return Err((Refusal::PreviousSession { others }, socket));
            }
            Self::Removing => return Err((Refusal::Removing, socket)),
            Self::Setup(stale) => stale.params,
            Self::Idle(params) => *params,
        };
        let setup = Setup::new(params, caller, socket)?;
        Ok(match mem::replace(self, Self::Setup(setup)) {
            Self::Setup(stale) => Some(stale),
            _ => None,
        })
    }

    /// Takes a device out of use to be cleaned, if its session has ended and it has at most `limit`
    /// openers. Returns whether it was taken.
    pub(crate) fn start_clean(&mut self, openers: u32, limit: u32) -> bool {
        match self {
            Self::Stopped(params) if openers <= limit => {
                // A device that will be removed is not created idle for its openers.
                if openers > 0 && params.client().destroy_on_disconnect() {
                    return false;
                }
                // An opener that comes after this finds nothing of the session.
                *self = Self::Starting(match openers {
                    0 => params.after_last_close(),
                    _ => *params,
                });
                true
            }
            _ => false,
        }
    }

    /// Leaves [`Self::Starting`] after the device was cleaned and no session was started. Returns
    /// whether the device has to be removed. Does nothing in another state.
    pub(crate) fn finish_clean(&mut self, openers: u32) -> bool {
        let Self::Starting(params) = *self else {
            return false;
        };
        let leaves = params.client().destroy_on_disconnect();
        *self = match openers {
            0 if leaves => Self::Removing,
            0 => Self::Idle(Params::default()),
            // The device was opened meanwhile.
            _ if leaves => Self::Stopped(params),
            _ => Self::Idle(params),
        };
        matches!(self, Self::Removing)
    }

    /// Takes an idle device out of use to start a session of `setup`, also one whose setup has an
    /// owner that has exited. If the device was `created` for this session and the session cannot
    /// be started, the device is removed if the setup asks for that.
    pub(crate) fn claim(
        &mut self,
        setup: Setup<O, S>,
        openers: u32,
        created: bool,
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
            Self::Removing => return Err((Refusal::Removing, setup)),
        };
        let restore = match created {
            true => setup.params.after_last_close(),
            false => before,
        };
        let stale = match mem::replace(self, Self::Starting(restore)) {
            Self::Setup(stale) => Some(stale),
            _ => None,
        };
        Ok(Claimed { setup, stale })
    }

    /// As [`Self::claim`], but never replaces a setup. A client may have sent the owner away and be
    /// about to start it.
    pub(crate) fn claim_idle(
        &mut self,
        setup: Setup<O, S>,
        openers: u32,
        created: bool,
    ) -> Result<Claimed<O, S>, (Refusal, Setup<O, S>)> {
        match self {
            Self::Setup(other) => Err((other.owned(), setup)),
            _ => self.claim(setup, openers, created),
        }
    }

    /// Changes the parameters by `f`. Returns the running session, which the caller has to update.
    pub(crate) fn update(
        &mut self,
        f: impl FnOnce(Params) -> Result<Params>,
    ) -> Result<Option<R>, Refusal> {
        let params = match self {
            Self::Idle(params) | Self::Stopped(params) | Self::Running { params, .. } => params,
            Self::Setup(setup) => &mut setup.params,
            Self::Starting(_) => return Err(Refusal::Starting),
            Self::Removing => return Err(Refusal::Removing),
        };
        *params = f(*params).map_err(Refusal::BadParameter)?;
        self.session()
    }

    /// Returns the running session and its parameters.
    pub(crate) fn running(&self) -> Option<(R, Params)> {
        match self {
            Self::Running { params, session } => Some((session.clone(), *params)),
            _ => None,
        }
    }

    /// Takes the setup out to start a session of it. `openers` is the number of openers of the
    /// device.
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
            Self::Removing => Refusal::Removing,
        };
        Err(refusal)
    }

    /// Leaves [`Self::Starting`] for a running session. Hands the session back in another state.
    pub(crate) fn started(&mut self, params: Params, session: R) -> Result<(), R> {
        match self {
            Self::Starting(_) => {
                *self = Self::Running { params, session };
                Ok(())
            }
            _ => Err(session),
        }
    }

    /// Records that the running session has ended, and returns it.
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

    /// Returns the running session, if there is one. Fails while one is starting.
    pub(crate) fn session(&self) -> Result<Option<R>, Refusal> {
        match self {
            Self::Running { session, .. } => Ok(Some(session.clone())),
            Self::Starting(_) => Err(Refusal::Starting),
            _ => Ok(None),
        }
    }

    /// Takes the setup out, so that its sockets can be dropped. The parameters stay.
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

    /// Handles the close of the last opener. Without a session, the parameters are reset.
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
                *self = Self::Starting(params.after_last_close());
                return LastClose::Clean;
            }
            Self::Running { params, session } if params.client().disconnect_on_close() => {
                return LastClose::Disconnect(session.clone());
            }
            Self::Running { .. } | Self::Starting(_) | Self::Removing => {}
        }
        LastClose::Nothing
    }

    /// Whether one task has taken the device out of use.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self, Self::Starting(_))
    }

    /// Whether the device is still in use after a session: by the task that cleans it, or by
    /// openers.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Self::Starting(_) | Self::Stopped(_))
    }

    /// Whether a session has ended and the device has openers from that time.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped(_))
    }

    /// Whether the device is being removed.
    pub(crate) fn is_removing(&self) -> bool {
        matches!(self, Self::Removing)
    }

    /// Whether there is nothing that debugfs could show.
    pub(crate) fn is_unused(&self) -> bool {
        matches!(self, Self::Idle(_) | Self::Removing)
    }

    /// Returns the parameters, or the defaults while a device is starting or being removed.
    pub(crate) fn params(&self) -> Params {
        match self {
            Self::Idle(params) | Self::Stopped(params) | Self::Running { params, .. } => *params,
            Self::Setup(setup) => setup.params,
            Self::Starting(_) | Self::Removing => Params::default(),
        }
    }

    /// Prints the state for debugfs.
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
            Self::Removing => f.write_str("being removed"),
        }
    }
}

#[cfg(CONFIG_KUNIT)]
mod tests;
