// SPDX-License-Identifier: GPL-2.0

//! How a session ends.
//!
//! Whatever ends it, one path does: [`Session::make_end`] closes the connections, waits for their
//! workers, finishes every request, and only then reports that the device is stopped.

use crate::{
    error::Reason,
    link::Link,
    log::Topic,
    refusal::Refusal,
    session::{life::SessionState, Attendance, Life, Origin, Session, SessionOwner, DISCONNECT_MS}, //
};
use core::mem;
use kernel::{
    block::BlkStatus,
    mm::NoIo,
    prelude::*,
    sync::{
        wait::{WaitMode, Waited, FOR_EVER},
        Arc,
    },
    task::{must_act_on_signal, Thread},
    time::{msecs_to_jiffies, Instant, Jiffies}, //
};

/// How long the end may take before who waits for it is told what that waits for, in milliseconds.
const STOP_MS: u32 = 2000;

impl Session {
    /// Has the end made, once.
    pub(super) fn begin_end(self: &Arc<Self>, life: &mut Life, reason: Reason) {
        if !life.state.begin_end(reason) {
            return;
        }
        // It cannot be queued already: a session begins to end once.
        let _ = self
            .info()
            .driver()
            .end_wq()
            .enqueue::<Arc<Self>, 0>(self.clone());
        if let (Origin::Ioctl { thread }, Attendance::Away) = (&self.origin, &life.attendance) {
            thread.wake();
        }
        self.changed.wake_all();
    }

    /// Ends the session, and waits until that is done.
    ///
    /// It waits for no peer, but for calls of the sockets to return, of which another user of a
    /// socket may hold the lock. Fails with [`Refusal::Ending`] when that takes long; the end goes
    /// on without the caller.
    ///
    /// Context: may sleep.
    pub(crate) fn stop(self: &Arc<Self>, reason: Reason) -> Result<Reason, Refusal> {
        self.begin_end(&mut self.life.lock(), reason);
        self.wait_for_end(msecs_to_jiffies(STOP_MS))
    }

    fn wait_for_end(&self, patience: Jiffies) -> Result<Reason, Refusal> {
        let mut ended = None;
        self.changed
            .wait_until(WaitMode::Uninterruptible, patience, || {
                ended = self.life.lock().state.ended();
                ended.is_some()
            });
        ended.ok_or_else(|| Refusal::Ending {
            connection: self.stuck_connection(),
        })
    }

    /// As [`Self::stop`], however long it takes: the device can be used for nothing else meanwhile.
    pub(crate) fn stop_whole(self: &Arc<Self>) {
        self.begin_end(&mut self.life.lock(), Reason::Requested);
        let _ = self.wait_for_end(FOR_EVER);
    }

    /// The connection whose socket the end waits for.
    fn stuck_connection(&self) -> Option<u32> {
        let stuck = self.connections().iter().find(|one| one.is_stuck());
        stuck.map(|one| one.index())
    }

    /// Tells the servers that nothing follows. The session ends when they have closed the
    /// connections, or when they take too long. May sleep, but not for a peer.
    fn start_disconnect(self: &Arc<Self>) {
        {
            let mut life = self.life.lock();
            if life.state.start_disconnect(Instant::now()) {
                self.begin_end(&mut life, Reason::Requested);
            }
        }
        self.start_clock();
        for connection in self.connections() {
            if let Some(link) = connection.link() {
                if let Err(broken) = link.disconnect() {
                    self.send_failed(&link, broken);
                }
            }
        }
    }

    /// Tells the servers that nothing follows, and returns when they have been told and nothing is
    /// in flight, or the session has ended, or the servers take too long. The rest goes on without
    /// the caller. May sleep, for little more than a second, and for another two if a socket is
    /// kept from it.
    pub(crate) fn disconnect(self: &Arc<Self>) -> Result<(), Refusal> {
        self.start_disconnect();
        // Before this looks, so that whoever finishes a request says so. No link comes any more.
        self.watch(true);
        // A signal that kills the task may wait for so long.
        let waited = self.changed.wait_until(
            WaitMode::Uninterruptible,
            msecs_to_jiffies(DISCONNECT_MS),
            || {
                let state = self.life.lock().state;
                match state {
                    SessionState::Ended(_) => true,
                    SessionState::Ending(_) => false,
                    _ => self.is_quiet(),
                }
            },
        );
        self.watch(false);
        if waited != Waited::Done {
            return self.stop(Reason::Requested).map(|_| ());
        }
        // What an upper layer protocol holds back would be cut off.
        let cut = |link: Arc<Link>| link.socket().has_ulp();
        if !self
            .connections()
            .iter()
            .filter_map(|one| one.link())
            .any(cut)
        {
            self.begin_end(&mut self.life.lock(), Reason::Requested);
        }
        Ok(())
    }

    /// As [`Self::disconnect`], but returns when the session has ended.
    pub(crate) fn disconnect_whole(self: &Arc<Self>) -> Result<(), Refusal> {
        self.disconnect()?;
        match self.wait_for_end(msecs_to_jiffies(DISCONNECT_MS)) {
            Ok(_) => Ok(()),
            Err(_) => self.stop(Reason::Requested).map(|_| ()),
        }
    }

    /// The current thread closes the device. One that has left [`Self::attend`] for a while does not
    /// come back then. Does not sleep for long.
    pub(crate) fn closed(self: &Arc<Self>) {
        let Origin::Ioctl { thread } = &self.origin else {
            return;
        };
        if thread.is_current() {
            let mut life = self.life.lock();
            if matches!(life.attendance, Attendance::Away) {
                self.begin_end(&mut life, Reason::Interrupted);
            }
        }
    }

    /// Has the receivers say when requests finish, or not any more.
    fn watch(&self, on: bool) {
        for link in self.connections().iter().filter_map(|one| one.link()) {
            if on {
                link.watch();
            } else {
                link.unwatch();
            }
        }
    }

    /// Whether every server has heard that nothing follows and has answered all.
    fn is_quiet(&self) -> bool {
        self.connections().iter().all(|one| one.is_quiet())
    }

    /// What `NBD_DO_IT` does: waits until the session has ended, and ends it when the current task
    /// gets a signal that it acts on. For anything else that has the task return to user space it
    /// fails with `ERESTARTNOHAND`, and the session goes on until the task comes back with
    /// [`Self::come_back`], or exits.
    ///
    /// Context: may sleep.
    pub(crate) fn attend(self: &Arc<Self>) -> Result<i32> {
        let mut ended = None;
        self.changed
            .wait_until(WaitMode::Interruptible, FOR_EVER, || {
                ended = self.life.lock().state.ended();
                ended.is_some()
            });
        if let Some(reason) = ended {
            return reason.result();
        }
        if must_act_on_signal() {
            return match self.stop(Reason::Interrupted) {
                Ok(reason) => reason.result(),
                Err(refusal) => {
                    self.info().refuse(self.disk(), "a quick end", &refusal);
                    Reason::Interrupted.result()
                }
            };
        }
        {
            let mut life = self.life.lock();
            if matches!(life.attendance, Attendance::Over) {
                drop(life);
                return self.wait_for_end(FOR_EVER).map_err(|r| r.errno())?.result();
            }
            life.attendance = Attendance::Away;
        }
        // If it is queued already, it will see that the task is away again.
        let _ = self
            .workqueues()
            .receivers()
            .enqueue::<Arc<Self>, 3>(self.clone());
        Err(ERESTARTNOHAND)
    }

    /// Whether the current task is the one that has left [`Self::attend`] for a while, which is over
    /// with this. Does not sleep for long.
    pub(crate) fn come_back(&self) -> bool {
        let Origin::Ioctl { thread } = &self.origin else {
            return false;
        };
        let mut life = self.life.lock();
        let back = thread.is_current() && matches!(life.attendance, Attendance::Away);
        if back {
            life.attendance = Attendance::Present;
            drop(life);
            thread.wake();
        }
        back
    }

    /// Ends the session if the task that has left [`Self::attend`] exits. May sleep.
    pub(crate) fn watch_absence(self: &Arc<Self>) {
        let Origin::Ioctl { thread } = &self.origin else {
            return;
        };
        let is_away =
            |life: &Life| matches!(life.attendance, Attendance::Away) && !life.state.is_ending();
        if thread.wait_for_exit(|| !is_away(&self.life.lock())) {
            let mut life = self.life.lock();
            if is_away(&life) {
                self.begin_end(&mut life, Reason::Interrupted);
            }
        }
    }

    /// The task has not to come back any more. Returns it, with why the session ends, if it is away
    /// and has to hear that. Does not sleep for long.
    pub(crate) fn end_attendance(&self) -> Option<(Arc<Thread>, Reason)> {
        let mut life = self.life.lock();
        let before = mem::replace(&mut life.attendance, Attendance::Over);
        match (&self.origin, before) {
            (Origin::Ioctl { thread }, Attendance::Away) => {
                Some((thread.clone(), life.state.ending()?))
            }
            _ => None,
        }
    }

    /// Makes the end. May sleep.
    pub(crate) fn make_end(self: &Arc<Self>, owner: &impl SessionOwner) {
        // What frees memory may wait for another end.
        let _noio = NoIo::enter();
        let disk = self.disk();
        let Some(reason) = self.life.lock().state.ending() else {
            return;
        };
        // A server that is going away may answer for a moment.
        let polite = reason == Reason::ShuttingDown;
        let untold = self.connections().iter().map(|one| one.shut(polite)).sum();
        self.link_dead(untold);
        // Whatever holds the workers up does not hold these up.
        self.fail_requests(|generation| self.is_leaving(generation));
        self.workqueues().senders().flush();
        self.workqueues().receivers().flush();
        // A link that was left and has had its time is shut down only now, and its receiver looks
        // once more then.
        self.workqueues().senders().flush();
        self.workqueues().receivers().flush();
        let session = owner.unpublish();
        // No queue function runs in between, so that no request is on its way to a connection.
        let queue_data = disk.take_queue_data(|| self.fail_requests(|_| false));
        // Requests that were requeued are failed when they come again.
        disk.kick_requeued();
        disk.drain();
        for connection in self.connections() {
            connection.forget();
        }
        let (files, module) = self.published.lock().take().unzip();
        // Before the device can have another session.
        drop(files);
        // Who changes the size of the disk does so before this, or sees that the session has ended.
        let applied = self.applied.lock();
        let stopped = owner.stopped(disk, self);
        if self.info().may_log(Topic::Session) {
            dev_info!(disk.device(), "session ended: {}\n", reason.describe());
        }
        self.life.lock().state.end();
        drop(applied);
        self.changed.wake_all();
        // The module may be unloaded once it has no reference; that waits for this function.
        drop((session, queue_data, stopped, module));
    }

    /// Fails each started request that nobody has claimed and whose link's generation `f` does not
    /// spare.
    fn fail_requests(&self, f: impl Fn(u64) -> bool) {
        self.disk().for_each_started(|rq| {
            if let Some(claim) = rq.claim(None, |data| !f(data.generation())) {
                claim.end(BlkStatus::IOERR);
            }
        });
    }
}
