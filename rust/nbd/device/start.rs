// SPDX-License-Identifier: GPL-2.0

//! Taking a device out of use, to start a session with it or to clean it.

use super::{
    ClaimedDevice,
    Device,
    Setup,
    StartGuard,
    START_WAIT_MS, //
};
use crate::{
    log::Topic,
    refusal::Refusal,
    request::Disk,
    session::{
        Origin,
        Session, //
    },
    state::Claimed, //
};
use kernel::{
    net::socket::Socket,
    prelude::*,
    sync::{
        aref::ARef,
        wait::{
            WaitMode,
            Waited, //
        },
        Arc, //
    },
    task::{
        Task,
        Thread, //
    },
    time::{
        jiffies,
        jiffies_since,
        msecs_to_jiffies, //
    },
    types::ScopeGuard, //
};

impl StartGuard {
    /// The state of the device must have become [`Starting`](crate::state::State::Starting) in the
    /// current task.
    pub(super) fn new(disk: &Disk) -> Self {
        Self(ScopeGuard::new_with_data(disk.into(), |disk| {
            disk.data().finish(&disk)
        }))
    }

    /// Creates a session of a setup, and starts it. On failure the setup is dropped. Context: may
    /// sleep.
    pub(crate) fn start(self, setup: Setup, origin: Origin) -> Result<Arc<Session>> {
        let disk: &Disk = &self.0;
        let device = &*disk.data();
        match device.create_session(disk, setup, origin) {
            Ok(session) => {
                device.state_changed.wake_all();
                session.launch(device);
                device.update_debug(disk);
                self.0.dismiss();
                Ok(session)
            }
            Err(error) => {
                let disk: ARef<Disk> = disk.into();
                // The device is idle before the message is logged.
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
    /// Claims the device for a session of `setup` if it is idle. Hands the setup back otherwise. If
    /// the device was `created` for this session and the session cannot be started, the device is
    /// removed if the setup asks for that. Context: may sleep.
    pub(crate) fn claim_idle(
        &self,
        disk: &Disk,
        setup: Setup,
        created: bool,
    ) -> Result<ClaimedDevice, (Refusal, Setup)> {
        let claimed = {
            let mut config = self.config.lock();
            let openers = config.openers;
            config.state.claim_idle(setup, openers, created)?
        };
        Ok(Self::claimed(disk, claimed))
    }

    /// As [`Self::claim_idle`], but also replaces a setup whose owner has exited, and waits for
    /// openers that are left from an ended session, for [`START_WAIT_MS`] at most.
    pub(crate) fn claim_patiently(
        &self,
        disk: &Disk,
        mut setup: Setup,
        created: bool,
    ) -> Result<ClaimedDevice, (Refusal, Setup)> {
        let start = jiffies();
        loop {
            let claimed = {
                let mut config = self.config.lock();
                let openers = config.openers;
                config.state.claim(setup, openers, created)
            };
            let refusal;
            (refusal, setup) = match claimed {
                Ok(claimed) => return Ok(Self::claimed(disk, claimed)),
                Err(refused) => refused,
            };
            if !matches!(refusal, Refusal::Starting | Refusal::PreviousSession { .. }) {
                return Err((refusal, setup));
            }
            let left = msecs_to_jiffies(START_WAIT_MS).saturating_sub(jiffies_since(start));
            let waited = self.state_changed.wait_until(WaitMode::Killable, left, || {
                !self.config.lock().state.is_held()
            });
            if waited != Waited::Done {
                return Err((refusal, setup));
            }
        }
    }

    fn claimed(disk: &Disk, claimed: Claimed<ARef<Task>, Socket>) -> ClaimedDevice {
        let guard = StartGuard::new(disk);
        Self::drop_stale(disk, claimed.stale);
        (guard, claimed.setup)
    }

    /// Starts a session of the setup that ioctls have created, and waits until it has ended.
    ///
    /// Fails with `ERESTARTNOHAND` if the thread has to handle a signal that does not end the
    /// session. When the thread calls this again, it continues to wait.
    ///
    /// Context: may sleep.
    pub(crate) fn run(&self, disk: &Disk) -> Result<i32> {
        match self.resume_do_it() {
            Some(Ok(session)) => session.wait_do_it(),
            Some(Err(reason)) => reason.result(),
            None => self.start(disk)?.wait_do_it(),
        }
    }

    /// Creates a session of a setup, and makes it the running one.
    fn create_session(&self, disk: &Disk, setup: Setup, origin: Origin) -> Result<Arc<Session>> {
        let params = setup.params();
        let session = Session::new(disk, self.info(), setup, origin)?;
        // No other task can end the session before its sysfs files are complete.
        *self.session.lock() = Some(session.clone());
        disk.set_queue_data(session.clone())
            .map_err(|_| EBUSY)
            .and_then(|()| session.create_files())
            .and_then(|()| {
                let running = session.clone();
                session.set_running(|| {
                    let rejected = self.config.lock().state.started(params, running);
                    drop(rejected);
                })
            })
            .inspect_err(|_| {
                session.stop_and_wait();
                // An end that has begun before the files were created did not remove them.
                session.remove_files();
            })?;
        Ok(session)
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

    /// Cleans the device and makes it idle, if its session has ended and it has at most `openers`
    /// openers. Context: may sleep.
    pub(crate) fn start_clean(&self, disk: &Disk, openers: u32) {
        let retired = {
            let mut config = self.config.lock();
            let now = config.openers;
            config.state.start_clean(now, openers)
        };
        if retired {
            drop(StartGuard::new(disk));
        }
    }
}
