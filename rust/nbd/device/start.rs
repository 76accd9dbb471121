// SPDX-License-Identifier: GPL-2.0

//! Taking a device out of use, to start a session with it or to clean it.

use super::{ClaimedDevice, Device, Setup, StartGuard, PATIENCE_MS};
use crate::{
    log::Topic,
    refusal::Refusal,
    request::Disk,
    session::{Origin, Session},
    state::Claimed, //
};
use kernel::{
    net::socket::Socket,
    prelude::*,
    sync::{
        aref::ARef,
        wait::{WaitMode, Waited},
        Arc,
    },
    task::{Process, Thread},
    time::{jiffies, jiffies_since, msecs_to_jiffies},
    types::ScopeGuard, //
};

impl StartGuard {
    /// For a device whose state has just become [`Starting`](crate::state::State::Starting).
    pub(super) fn new(disk: &Disk) -> Self {
        Self(ScopeGuard::new_with_data(disk.into(), |disk| {
            disk.data().finish(&disk)
        }))
    }

    /// Makes a session of a setup, and starts it. On failure the setup is dropped. Sleeps.
    pub(crate) fn start(self, setup: Setup, origin: Origin) -> Result<Arc<Session>> {
        let disk: &Disk = &self.0;
        let device = &*disk.data();
        let params = setup.params();
        let started = Session::new(disk, device.info(), setup, origin).and_then(|session| {
            // Nobody can end the session before its files are complete.
            *device.session.lock() = Some(session.clone());
            let set = disk.set_queue_data(session.clone());
            set.map_err(|_| EBUSY)
                .and_then(|()| session.publish())
                .inspect_err(|_| session.stop_whole())?;
            Ok(session)
        });
        let started = started.and_then(|session| {
            let running = session.clone();
            let begun = session.begin(|| {
                let rejected = device.config.lock().state.started(params, running);
                drop(rejected);
            });
            // An end that began before its files were there has left them.
            begun.inspect_err(|_| {
                session.stop_whole();
                session.withdraw();
            })?;
            Ok(session)
        });
        match started {
            Ok(session) => {
                device.settled.wake_all();
                session.launch(device);
                device.show_debug(disk);
                self.0.dismiss();
                Ok(session)
            }
            Err(error) => {
                let disk: ARef<Disk> = disk.into();
                // The device is idle before this says so.
                drop(self);
                if disk.data().info().may_log(Topic::Refusal) {
                    dev_err!(
                        disk.device(),
                        "no session was started ({}), the setup was dropped; set it up again\n",
                        error.to_errno()
                    );
                }
                Err(error)
            }
        }
    }
}

impl Device {
    /// Takes the device for a session of `setup`, if it is idle; hands the setup back otherwise. If
    /// it was `made` for that session, it goes with it. Does not sleep for long.
    pub(crate) fn claim_idle(
        &self,
        disk: &Disk,
        setup: Setup,
        made: bool,
    ) -> Result<ClaimedDevice, (Refusal, Setup)> {
        let claimed = {
            let mut config = self.config.lock();
            let openers = config.openers;
            config.state.claim_idle(setup, openers, made)?
        };
        Ok(Self::claimed(disk, claimed))
    }

    /// As [`Self::claim_idle`], but takes the place of a setup whose owner has exited, and waits for a
    /// short while for those who hold the device still, though its session has ended.
    pub(crate) fn claim_patiently(
        &self,
        disk: &Disk,
        mut setup: Setup,
        made: bool,
    ) -> Result<ClaimedDevice, (Refusal, Setup)> {
        let start = jiffies();
        loop {
            let claimed = {
                let mut config = self.config.lock();
                let openers = config.openers;
                config.state.claim(setup, openers, made)
            };
            let refusal;
            (refusal, setup) = match claimed {
                Ok(claimed) => return Ok(Self::claimed(disk, claimed)),
                Err(refused) => refused,
            };
            if !matches!(refusal, Refusal::Starting | Refusal::PreviousSession { .. }) {
                return Err((refusal, setup));
            }
            let left = msecs_to_jiffies(PATIENCE_MS).saturating_sub(jiffies_since(start));
            let waited = self.settled.wait_until(WaitMode::Killable, left, || {
                !self.config.lock().state.is_held()
            });
            if waited != Waited::Done {
                return Err((refusal, setup));
            }
        }
    }

    fn claimed(disk: &Disk, claimed: Claimed<Process, Socket>) -> ClaimedDevice {
        let guard = StartGuard::new(disk);
        Self::drop_stale(disk, claimed.stale);
        (guard, claimed.setup)
    }

    /// Makes a session of the setup that ioctls have made, starts it and waits until it has ended.
    /// Fails with `ERESTARTNOHAND` when the thread has to see to a signal that it does not act on;
    /// when it comes back with this, it goes on waiting. May sleep.
    pub(crate) fn run(&self, disk: &Disk) -> Result<i32> {
        match self.come_back() {
            Some(Ok(session)) => session.attend(),
            Some(Err(reason)) => reason.result(),
            None => self.start(disk)?.attend(),
        }
    }

    fn start(&self, disk: &Disk) -> Result<Arc<Session>> {
        let thread = Arc::new(Thread::current(), GFP_KERNEL)?;
        let setup = {
            let mut config = self.config.lock();
            let openers = config.openers;
            config.state.claim_setup(openers)
        };
        let setup = setup.map_err(|refusal| self.info().refuse(disk, "NBD_DO_IT", &refusal))?;
        StartGuard::new(disk).start(setup, Origin::Ioctl { thread })
    }

    /// Cleans the device and makes it idle, if it is left from an ended session and at most so many
    /// have it open. Sleeps.
    pub(crate) fn retire(&self, disk: &Disk, openers: u32) {
        let retired = {
            let mut config = self.config.lock();
            let now = config.openers;
            config.state.retire(now, openers)
        };
        if retired {
            drop(StartGuard::new(disk));
        }
    }
}
