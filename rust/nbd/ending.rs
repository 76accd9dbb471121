// SPDX-License-Identifier: GPL-2.0

//! How a session ends.
//!
//! Whatever ends it, one path does: the work item below closes the connections, waits for their
//! workers, finishes every request, and only then reports that the device is stopped.

use crate::{
    kernel::{block::BlkStatus, mm::NoIo},
    life::{Life, Reason},
    messages::Topic,
    session::Session, //
};
use kernel::{
    prelude::*,
    sync::{Arc, CondVarTimeoutResult},
    time::msecs_to_jiffies,
    workqueue::WorkItem, //
};

/// How long a server may take to close its end after it was told to, in milliseconds.
const GOODBYE_MS: u32 = 1000;

impl Session {
    /// Has the end made, once.
    pub(crate) fn end(self: &Arc<Self>, life: &mut Life, reason: Reason) {
        *life = Life::Ending(reason);
        // It cannot be queued already: a session begins to end once.
        let _ = self
            .disk
            .data()
            .ends()
            .enqueue::<Arc<Self>, 0>(self.clone());
        self.changed.notify_all();
    }

    /// Ends the session, and waits until that is done: bounded, since it waits for no peer. Sleeps.
    pub(crate) fn stop(self: &Arc<Self>, reason: Reason) -> Reason {
        let mut life = self.life.lock();
        loop {
            match &*life {
                Life::Live(_) | Life::Waiting(_) | Life::Dead | Life::Goodbye(_) => {
                    self.end(&mut life, reason)
                }
                Life::Ending(_) => self.changed.wait(&mut life),
                Life::Ended(reason) => return *reason,
            }
        }
    }

    /// Tells the servers to close the connections, and ends the session when they have, or when
    /// they take too long. Sleeps, for little more than a second.
    pub(crate) fn disconnect(self: &Arc<Self>) {
        {
            let mut life = self.life.lock();
            match *life {
                Life::Live(open) => *life = Life::Goodbye(open),
                Life::Waiting(_) | Life::Dead => self.end(&mut life, Reason::Requested),
                Life::Goodbye(_) | Life::Ending(_) | Life::Ended(_) => {}
            }
        }
        for connection in &self.connections {
            connection.say_goodbye();
        }
        let mut left = msecs_to_jiffies(GOODBYE_MS);
        let mut life = self.life.lock();
        while !matches!(&*life, Life::Ended(_)) {
            match self.changed.wait_interruptible_timeout(&mut life, left) {
                CondVarTimeoutResult::Woken { jiffies } => left = jiffies,
                CondVarTimeoutResult::Timeout | CondVarTimeoutResult::Signal { .. } => break,
            }
        }
        drop(life);
        self.stop(Reason::Requested);
    }

    /// Waits until the session has ended, and ends it when the current task gets a signal.
    pub(crate) fn wait(self: &Arc<Self>) -> Reason {
        let mut life = self.life.lock();
        loop {
            if let Life::Ended(reason) = &*life {
                return *reason;
            }
            if self.changed.wait_interruptible(&mut life) {
                drop(life);
                return self.stop(Reason::Interrupted);
            }
        }
    }
}

impl WorkItem<0> for Session {
    type Pointer = Arc<Self>;

    /// Makes the end.
    fn run(this: Arc<Self>) {
        // What frees memory may wait for another end.
        let _noio = NoIo::enter();
        let device = this.disk.data();
        for connection in &this.connections {
            connection.shut();
        }
        this.workers.senders.flush();
        this.workers.receivers.flush();
        let published = device.unpublish();
        // No queue function runs in between, so that no request is on its way to a connection.
        this.disk.quiesced(|| {
            this.disk.for_each_started(|rq| {
                if let Some(claim) = rq.claim(None, |_| true) {
                    claim.end(BlkStatus::IOERR);
                }
            })
        });
        // Requests that were requeued are failed when they come again.
        this.disk.kick_requeued();
        this.disk.drain();
        let (files, module) = this.published.lock().take().unzip();
        // Before the device can have another session.
        drop(files);
        // Who changes the size of the disk does so before this, or sees that the session has ended.
        let applied = this.applied.lock();
        let stopped = device.stopped(&this.disk, &this);
        {
            let mut life = this.life.lock();
            if let Life::Ending(reason) = *life {
                if device.may_log(Topic::Session) {
                    dev_info!(this.disk.device(), "session ended: {}\n", reason.describe());
                }
                *life = Life::Ended(reason);
            }
        }
        drop(applied);
        this.changed.notify_all();
        // The module may be unloaded once it has no reference; that waits for this function.
        drop((published, stopped, module));
    }
}
