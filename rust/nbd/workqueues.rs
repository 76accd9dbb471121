// SPDX-License-Identifier: GPL-2.0

//! The workqueues of sessions. Each has a rescuer thread, whose creation would take most of the
//! time of a connect. Sessions therefore return their workqueues to a pool.

use core::ops::Deref;
use kernel::{
    new_mutex,
    new_work,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    workqueue::{
        impl_has_work,
        OwnedQueue,
        Queue,
        Work,
        WorkItem, //
    }, //
};

/// The largest number of work items that a workqueue runs at a time. Each memory node gets a share
/// of it. With many nodes that is less than a session can have connections, whose work then takes
/// turns.
const MAX_ACTIVE: u32 = 2048;

/// The number of pairs that are kept, for sessions that start in turn and for a few that start
/// together.
const KEPT: usize = 2;

/// The workqueues of a session.
pub(crate) struct WorkqueuePair {
    /// A receiver waits for a while at a busy server, and senders must not wait for it.
    receivers: OwnedQueue,
    senders: OwnedQueue,
}

fn new_queue(name: &CStr) -> Result<OwnedQueue> {
    let queue = Queue::new_unbound().mem_reclaim().max_active(MAX_ACTIVE);
    Ok(queue.build(name)?)
}

impl WorkqueuePair {
    fn new() -> Result<Arc<Self>> {
        let queues = Self {
            receivers: new_queue(c"nbd-receive")?,
            senders: new_queue(c"nbd-send")?,
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

/// The [`WorkqueuePair`] of a session. Dropping this returns it to the pool.
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

/// The workqueues that are not in use.
#[pin_data]
pub(crate) struct WorkqueuePool {
    /// Has a capacity of [`KEPT`].
    #[pin]
    queues: Mutex<KVec<Arc<WorkqueuePair>>>,
    #[pin]
    work: Work<WorkqueuePool>,
}

impl_has_work! {
    impl HasWork<WorkqueuePool> for WorkqueuePool { self.work }
}

impl WorkqueuePool {
    /// Creates a pool with [`KEPT`] pairs. Context: may sleep.
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

    /// Takes workqueues for a session. If none are left, `maker` creates others later. Context: may
    /// sleep.
    pub(crate) fn take(self: &Arc<Self>, maker: &OwnedQueue) -> Result<Arc<Workqueues>> {
        let (spare, left) = {
            let mut queues = self.queues.lock();
            (queues.pop(), queues.len())
        };
        if left == 0 {
            // If the work is queued already, it finds that there are none.
            let _ = maker.enqueue(self.clone());
        }
        let queues = match spare {
            Some(queues) => queues,
            None => WorkqueuePair::new()?,
        };
        let pool = self.clone();
        Ok(Arc::new(Workqueues { queues, pool }, GFP_KERNEL)?)
    }

    /// Keeps workqueues, or drops them if there are enough. Context: may sleep.
    fn keep(&self, queues: Arc<WorkqueuePair>) {
        let rejected = self.queues.lock().push_within_capacity(queues);
        drop(rejected);
    }
}

impl WorkItem for WorkqueuePool {
    type Pointer = Arc<Self>;

    /// Creates workqueues if there are none.
    fn run(this: Arc<Self>) {
        if this.queues.lock().is_empty() {
            // Without memory the next session tries again.
            if let Ok(queues) = WorkqueuePair::new() {
                this.keep(queues);
            }
        }
    }
}
