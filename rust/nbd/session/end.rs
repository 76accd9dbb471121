// SPDX-License-Identifier: GPL-2.0

//! The end of a session.
//!
//! Whatever the cause, [`Session::run_end`] is the only path. It closes the connections, waits for
//! their workers, finishes every request, and then reports that the device is stopped.

use crate::{
    error::Reason,
    link::Link,
    log::Topic,
    refusal::Refusal,
    session::{
        state::SessionState,
        Origin,
        Session,
        SessionInner,
        SessionOwner,
        DISCONNECT_MS, //
    }, //
};
use kernel::{
    block::BlkStatus,
    mm::NoIo,
    prelude::*,
    sync::{
        wait::{
            WaitMode,
            Waited,
            FOR_EVER, //
        },
        Arc, //
    },
    task::Thread,
    time::{
        msecs_to_jiffies,
        Instant,
        Jiffies, //
    }, //
};

/// How long a task waits for the end before it gets [`Refusal::Ending`], in milliseconds.
const STOP_MS: u32 = 2000;

impl Session {
    /// Queues the work that ends the session, unless it was queued before. Context: under
    /// `Session::inner`; does not sleep.
    pub(super) fn begin_end(self: &Arc<Self>, inner: &mut SessionInner, reason: Reason) {
        if !inner.state.begin_end(reason) {
            return;
        }
        // It cannot be queued already, as a session begins to end once.
        let _ = self
            .info()
            .driver()
            .end_wq()
            .enqueue::<Arc<Self>, 0>(self.clone());
        if let (Origin::Ioctl { thread }, true) = (&self.origin, inner.do_it.is_interrupted()) {
            thread.wake();
        }
        self.changed.wake_all();
    }

    /// Ends the session, and waits until it has ended.
    ///
    /// This waits for no peer, but for socket calls to return, and another user of the socket may
    /// hold the socket lock. Fails with [`Refusal::Ending`] if that takes longer than two seconds.
    /// The end then continues without the caller.
    ///
    /// Context: may sleep.
    pub(crate) fn stop(self: &Arc<Self>, reason: Reason) -> Result<Reason, Refusal> {
        self.begin_end(&mut self.inner.lock(), reason);
        self.wait_for_end(msecs_to_jiffies(STOP_MS))
    }

    /// Returns why the session has ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<Reason> {
        self.inner.lock().state.ended()
    }

    fn wait_for_end(&self, patience: Jiffies) -> Result<Reason, Refusal> {
        let mut ended = None;
        self.changed
            .wait_until(WaitMode::Uninterruptible, patience, || {
                ended = self.inner.lock().state.ended();
                ended.is_some()
            });
        ended.ok_or_else(|| Refusal::Ending {
            connection: self.blocked_connection(),
        })
    }

    /// As [`Self::stop`], but without a time limit, as the device cannot be used for anything else
    /// meanwhile.
    pub(crate) fn stop_and_wait(self: &Arc<Self>) {
        self.begin_end(&mut self.inner.lock(), Reason::Requested);
        let _ = self.wait_for_end(FOR_EVER);
    }

    /// Returns the connection whose socket call the end waits for.
    fn blocked_connection(&self) -> Option<u32> {
        let blocked = self.connections().find(|one| one.is_blocked());
        blocked.map(|one| one.index())
    }

    /// Tells the servers that no requests follow. The session ends when the servers have closed all
    /// links, or after [`DISCONNECT_MS`]. Context: may sleep, but never for a peer.
    fn start_disconnect(self: &Arc<Self>) {
        {
            let mut inner = self.inner.lock();
            if inner.state.start_disconnect(Instant::now()) {
                self.begin_end(&mut inner, Reason::Requested);
            }
        }
        self.start_clock();
        self.notify_later();
        for connection in self.connections() {
            if let Some(link) = connection.link() {
                if let Err(broken) = link.disconnect() {
                    self.send_failed(&link, broken);
                }
            }
        }
    }

    /// Tells the servers that no requests follow. Returns when they were told and no request is in
    /// flight, or the session has ended, or the servers have taken too long. The session then ends
    /// without the caller.
    ///
    /// Context: may sleep, for a little more than a second, and for another two if the socket lock
    /// is not available.
    pub(crate) fn disconnect(self: &Arc<Self>) -> Result<(), Refusal> {
        self.start_disconnect();
        // This comes before the first check, so that every request that the check finds wakes this
        // task when it finishes. No link is added any more.
        self.watch(true);
        // The wait is short enough for a task that was killed.
        let waited = self.changed.wait_until(
            WaitMode::Uninterruptible,
            msecs_to_jiffies(DISCONNECT_MS),
            || {
                let state = self.inner.lock().state;
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
        // The end would cut off what an upper layer protocol holds back.
        let cut = |link: Arc<Link>| link.socket().has_ulp();
        if !self.connections().filter_map(|one| one.link()).any(cut) {
            self.begin_end(&mut self.inner.lock(), Reason::Requested);
        }
        Ok(())
    }

    /// As [`Self::disconnect`], but returns when the session has ended.
    pub(crate) fn disconnect_and_wait(self: &Arc<Self>) -> Result<(), Refusal> {
        self.disconnect()?;
        match self.wait_for_end(msecs_to_jiffies(DISCONNECT_MS)) {
            Ok(_) => Ok(()),
            Err(_) => self.stop(Reason::Requested).map(|_| ()),
        }
    }

    /// Called when the current thread closes the device. If it has left [`Self::wait_do_it`], it
    /// does not come back, and the session ends. Context: may sleep.
    pub(crate) fn task_closed(self: &Arc<Self>) {
        let Origin::Ioctl { thread } = &self.origin else {
            return;
        };
        if thread.is_current() {
            let mut inner = self.inner.lock();
            if inner.do_it.is_interrupted() {
                self.begin_end(&mut inner, Reason::Interrupted);
            }
        }
    }

    /// Starts or stops to watch for finished requests on all links.
    fn watch(&self, on: bool) {
        for link in self.connections().filter_map(|one| one.link()) {
            if on {
                link.watch();
            } else {
                link.unwatch();
            }
        }
    }

    /// Whether every server was told that no requests follow, and has answered all.
    fn is_quiet(&self) -> bool {
        self.connections().all(|one| one.is_quiet())
    }

    /// Waits for `NBD_DO_IT` until the session has ended. Ends it if the current task gets a signal
    /// that kills it or that it has a handler for.
    ///
    /// Fails with `ERESTARTNOHAND` if the task has to return to user space for another reason. The
    /// session continues until the task comes back with [`Self::resume_do_it`], or exits.
    ///
    /// Context: may sleep.
    pub(crate) fn wait_do_it(self: &Arc<Self>) -> Result<i32> {
        let mut ended = None;
        self.changed
            .wait_until(WaitMode::Interruptible, FOR_EVER, || {
                ended = self.inner.lock().state.ended();
                ended.is_some()
            });
        if let Some(reason) = ended {
            return reason.result();
        }
        if current!().must_act_on_signal() {
            return match self.stop(Reason::Interrupted) {
                Ok(reason) => reason.result(),
                Err(refusal) => {
                    self.info().refuse(self.disk(), "a quick end", &refusal);
                    Reason::Interrupted.result()
                }
            };
        }
        {
            let mut inner = self.inner.lock();
            if !inner.do_it.interrupt() {
                drop(inner);
                return self.wait_for_end(FOR_EVER).map_err(|r| r.errno())?.result();
            }
        }
        // If the work is queued already, it finds that the task is away again.
        let _ = self
            .workqueues()
            .receivers()
            .enqueue::<Arc<Self>, 3>(self.clone());
        Err(ERESTARTNOHAND)
    }

    /// Whether the current task has left [`Self::wait_do_it`]. If so, the task counts as present
    /// again. Context: may sleep.
    pub(crate) fn resume_do_it(&self) -> bool {
        let Origin::Ioctl { thread } = &self.origin else {
            return false;
        };
        let back = thread.is_current() && self.inner.lock().do_it.resume();
        if back {
            thread.wake();
        }
        back
    }

    /// Ends the session if the task that has left [`Self::wait_do_it`] exits. Context: may sleep.
    pub(crate) fn watch_do_it_exit(self: &Arc<Self>) {
        let Origin::Ioctl { thread } = &self.origin else {
            return;
        };
        let is_away =
            |inner: &SessionInner| inner.do_it.is_interrupted() && !inner.state.is_ending();
        if thread.wait_for_exit(|| !is_away(&self.inner.lock())) {
            let mut inner = self.inner.lock();
            if is_away(&inner) {
                self.begin_end(&mut inner, Reason::Interrupted);
            }
        }
    }

    /// Records that the task need not come back. If it is away, returns it with the reason of the
    /// end, for [`Self::wait_do_it`] to return later. Context: may sleep.
    pub(crate) fn end_do_it(&self) -> Option<(Arc<Thread>, Reason)> {
        let mut inner = self.inner.lock();
        let was_interrupted = inner.do_it.end();
        match &self.origin {
            Origin::Ioctl { thread } if was_interrupted => {
                Some((thread.clone(), inner.state.ending()?))
            }
            _ => None,
        }
    }

    /// Ends the session, for the work that [`Self::begin_end`] queues. Context: may sleep.
    pub(crate) fn run_end(self: &Arc<Self>, owner: &impl SessionOwner) {
        // The I/O that frees memory may wait for the end of this or another session.
        let _noio = NoIo::enter();
        let disk = self.disk();
        let Some(reason) = self.inner.lock().state.ending() else {
            return;
        };
        // A server that is shutting down may still answer for a moment.
        let may_answer = reason == Reason::ShuttingDown;
        let unreported = self.connections().map(|one| one.close(may_answer)).sum();
        self.link_dead(unreported);
        // These requests do not wait for workers that are held up.
        self.fail_requests(|generation| self.is_draining(generation));
        self.workqueues().senders().flush();
        self.workqueues().receivers().flush();
        // A draining link whose time is over is shut down by the first flush. Its receiver then
        // runs once more.
        self.workqueues().senders().flush();
        self.workqueues().receivers().flush();
        let session = owner.uninstall();
        // No queue function runs under this, so that no request is on its way to a connection.
        let queue_data = disk.take_queue_data(|| self.fail_requests(|_| false));
        // Parked and requeued requests fail when they are submitted again.
        disk.kick_requeued();
        disk.drain();
        for connection in self.connections() {
            connection.release_last();
        }
        let (files, module) = self.files.lock().take().unzip();
        // The files are removed before the device can have another session, whose files have these
        // names.
        drop(files);
        // A task that changes the parameters of the disk does so before this, or finds that the
        // session has ended.
        let applied = self.applied.lock();
        let stopped = owner.stopped(disk, self);
        if self.info().may_log(Topic::Session) {
            dev_info!(disk.device(), "session ended: {}\n", reason.describe());
        }
        self.inner.lock().state.end();
        drop(applied);
        // It cannot be queued already, as a session ends once.
        let _ = self
            .info()
            .driver()
            .event_wq()
            .enqueue::<Arc<Self>, 4>(self.clone());
        self.changed.wake_all();
        // The module may be unloaded once its reference is dropped. Unloading waits for this
        // function.
        drop((session, queue_data, stopped, module));
    }

    /// Fails each started request that is not claimed, unless `f` of its link's generation is
    /// `true`.
    fn fail_requests(&self, f: impl Fn(u64) -> bool) {
        self.disk().for_each_started(|rq| {
            if let Some(claim) = rq.claim(None, |data| !f(data.generation())) {
                claim.end(BlkStatus::IOERR);
            }
        });
    }
}
