// SPDX-License-Identifier: GPL-2.0

//! Transitions of the configuration that users request by ioctl or netlink.

use crate::{
    changes::Changes,
    device::{
        Device,
        Setup, //
    },
    log::Topic,
    params::Params,
    refusal::Refusal,
    request::Disk, //
};
use kernel::{
    mm::NoIo,
    net::socket::Socket,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

impl Device {
    /// Adds a socket of the current process. Context: may sleep.
    pub(crate) fn set_socket(&self, disk: &Disk, fd: u32) -> Result {
        let socket = Socket::from_fd(fd).inspect_err(|error| {
            if self.info().may_log(Topic::Refusal) {
                dev_err!(
                    disk.device(),
                    "NBD_SET_SOCK refused: descriptor {} is no TCP or AF_UNIX stream socket ({})\n",
                    fd,
                    error.to_errno()
                );
            }
        })?;
        // An opener of a partition has data of the ended session in its cache, and counts as an
        // opener already. The caller may be this opener; it is then not treated as the only one.
        let partitions = disk.open_partitions();
        if partitions == 0 {
            self.start_clean(disk, 1);
        }
        let added = {
            // Netlink messages about other devices take this lock, too.
            let _noio = NoIo::enter();
            let mut config = self.config.lock();
            let openers = config.openers.max(partitions.saturating_add(1));
            config
                .state
                .add_socket(ARef::from(&**current!()), openers, socket)
        };
        match added {
            Ok(stale) => {
                Self::drop_stale(disk, stale);
                self.update_debug(disk);
                Ok(())
            }
            Err((refusal, _socket)) => Err(self.info().refuse(disk, "NBD_SET_SOCK", &refusal)),
        }
    }

    /// Drops a setup whose owner has exited, if there is one, and logs this.
    pub(crate) fn drop_stale(disk: &Disk, stale: Option<Setup>) {
        if let Some(stale) = stale {
            dev_info!(
                disk.device(),
                "dropped a setup of {} socket(s) whose owner has exited\n",
                stale.socket_count()
            );
        }
    }

    /// Changes the parameters for an ioctl. Context: may sleep.
    pub(crate) fn update(
        &self,
        disk: &Disk,
        what: &str,
        f: impl FnOnce(Params) -> Result<Params>,
    ) -> Result {
        let updated = {
            let mut config = self.config.lock();
            match config.state.session() {
                Ok(Some(session)) if session.is_netlink() => Err(Refusal::NetlinkSession),
                _ => config.state.update(f),
            }
        };
        match updated {
            Ok(None) => Ok(()),
            Ok(Some(session)) => Self::refreshed(session.refresh(self))
                .map_err(|refusal| self.info().refuse(disk, what, &refusal)),
            Err(refusal) => Err(self.info().refuse(disk, what, &refusal)),
        }
    }

    /// Whether the device is open. Context: may sleep.
    pub(crate) fn is_open(&self) -> bool {
        self.config.lock().openers > 0
    }

    /// Changes the running session. Context: may sleep; a change of the block size waits until no
    /// request is in flight.
    pub(crate) fn reconfigure(
        &self,
        disk: &Disk,
        backend: Option<&[u8]>,
        mut changes: Changes,
    ) -> Result<(), Refusal> {
        self.wait_if_starting();
        let (session, params) = self
            .config
            .lock()
            .state
            .running()
            .ok_or(Refusal::NotConnected)?;
        if !session.is_netlink() {
            return Err(Refusal::NotConnected);
        }
        if let Some(known) = session.backend() {
            if backend != Some(known) {
                return Err(Refusal::OtherBackend);
            }
        }
        let new = changes.apply(params).map_err(Refusal::BadParameter)?;
        let connections = core::mem::take(&mut changes.connections);
        if !connections.is_empty() {
            // That can fail when the connections are changed already.
            if new.block_size() != params.block_size() {
                return Err(Refusal::BlockSize);
            }
            session.change_connections(connections)?;
        }
        // New sockets come first, since requests in flight may need them.
        let sockets = core::mem::take(&mut changes.sockets);
        let given = sockets.len();
        if given > 0 {
            let used = session.reconnect(sockets).map_err(|error| match error {
                ENOMEM => Refusal::NoMemory,
                _ => Refusal::NotConnected,
            })?;
            if (used as usize) < given && self.info().may_log(Topic::Refusal) {
                dev_info!(
                    disk.device(),
                    "{} of {} new sockets were not needed\n",
                    given - used as usize,
                    given
                );
            }
        }
        // A change of the block size waits for all requests.
        if new.block_size() != params.block_size() && !session.is_live() {
            return Err(Refusal::Dead);
        }
        {
            let mut config = self.config.lock();
            match config.state.running() {
                Some((running, _)) if Arc::ptr_eq(&running, &session) => {
                    config.state.update(|params| changes.apply(params))?
                }
                _ => return Err(Refusal::NotConnected),
            };
        }
        Self::refreshed(session.refresh(self))
    }

    fn refreshed(result: Result) -> Result<(), Refusal> {
        result.map_err(|error| match error {
            EBUSY => Refusal::InFlight,
            error => Refusal::BadParameter(error),
        })
    }

    /// Ends the session, if there is one, and waits until openers that close the device soon have
    /// closed it, so that it is free. Context: may sleep, for four seconds at most.
    pub(crate) fn disconnect(&self) -> Result<(), Refusal> {
        self.wait_if_starting();
        let session = self.config.lock().state.session()?;
        if let Some(session) = session {
            session.disconnect_and_wait()?;
        }
        self.wait_if_held();
        Ok(())
    }

    /// Drops the sockets of a setup. Their peers see the end of the stream. Context: may sleep.
    pub(crate) fn clear_setup(&self, disk: &Disk) {
        let setup = self.config.lock().state.clear();
        drop(setup);
        self.state_changed.wake_all();
        self.update_debug(disk);
    }
}
