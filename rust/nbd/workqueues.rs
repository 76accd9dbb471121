// SPDX-License-Identifier: GPL-2.0

//! The workqueues of sessions. To make them takes longer than all else that a connect does, since
//! each has a thread for when memory is short: so sessions hand them on.

use core::ops::Deref;
use kernel::{
    new_mutex,
    new_work,
    prelude::*,
    sync::{Arc, Mutex},
    workqueue::{impl_has_work, OwnedQueue, Work, WorkItem}, //
};

/// The most work items that a workqueue runs at a time. A memory node gets a share of it; with many
/// nodes that is less than there can be connections, whose work then takes turns.
const MAX_ACTIVE: u32 = 2048;

/// How many are kept, for sessions that begin one after the other, and for some that do at once.
const KEPT: usize = 2;

/// The workqueues of a session.
pub(crate) struct WorkqueuePair {
    /// A receiver stays for a while at a server that is busy: senders must not wait for it.
    receivers: OwnedQueue,
    senders: OwnedQueue,
}

impl WorkqueuePair {
    fn new() -> Result<Arc<Self>> {
        let queues = Self {
            receivers: OwnedQueue::new_unbound_reclaim(c"nbd-receive", MAX_ACTIVE)?,
            senders: OwnedQueue::new_unbound_reclaim(c"nbd-send", MAX_ACTIVE)?,
        };
        Ok(Arc::new(queues, GFP_KERNEL)?)
    }

    pub(crate) fn receivers(&self) -> &OwnedQueue {
        &self.receivers
    }

    pub(crate) fn senders(&self) -> &OwnedQueue {
        &self.senders
    }
}

/// What a session has of [`WorkqueuePair`], which others get after it.
pub(crate) struct Workqueues {
    queues: Arc<WorkqueuePair>,
    pool: Arc<WorkqueuePool>,
}

impl Deref for Workqueues {
    type Target = WorkqueuePair;

    fn deref(&self) -> &WorkqueuePair {
        &self.queues
    }
}

impl Drop for Workqueues {
    fn drop(&mut self) {
        self.pool.keep(self.queues.clone());
    }
}

/// The workqueues that no session has.
#[pin_data]
pub(crate) struct WorkqueuePool {
    /// Has room for [`KEPT`].
    #[pin]
    queues: Mutex<KVec<Arc<WorkqueuePair>>>,
    #[pin]
    work: Work<WorkqueuePool>,
}

impl_has_work! {
    impl HasWork<WorkqueuePool> for WorkqueuePool { self.work }
}

impl WorkqueuePool {
    /// As many as are kept. Sleeps.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let mut queues = KVec::with_capacity(KEPT, GFP_KERNEL)?;
        for _ in 0..KEPT {
            queues.push(WorkqueuePair::new()?, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                queues <- new_mutex!(queues),
                work <- new_work!("nbd_workqueues"),
            }),
            GFP_KERNEL,
        )
    }

    /// Workqueues for a session. If they are the last, `maker` makes others. Sleeps.
    pub(crate) fn take(self: &Arc<Self>, maker: &OwnedQueue) -> Result<Arc<Workqueues>> {
        let (spare, left) = {
            let mut queues = self.queues.lock();
            (queues.pop(), queues.len())
        };
        if left == 0 {
            // If it is queued already, it will find that there are none.
            let _ = maker.enqueue(self.clone());
        }
        let queues = match spare {
            Some(queues) => queues,
            None => WorkqueuePair::new()?,
        };
        let pool = self.clone();
        Ok(Arc::new(Workqueues { queues, pool }, GFP_KERNEL)?)
    }

    /// Keeps workqueues, or drops them when there are enough. Sleeps.
    fn keep(&self, queues: Arc<WorkqueuePair>) {
        let rejected = self.queues.lock().push_within_capacity(queues);
        drop(rejected);
    }
}

impl WorkItem for WorkqueuePool {
    type Pointer = Arc<Self>;

    /// Makes workqueues when there are none.
    fn run(this: Arc<Self>) {
        if this.queues.lock().is_empty() {
            // Without memory the next session tries again.
            if let Ok(queues) = WorkqueuePair::new() {
                this.keep(queues);
            }
        }
    }
}
