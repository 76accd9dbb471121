// SPDX-License-Identifier: GPL-2.0

//! The workqueues of sessions. To make them takes longer than all else that a connect does, since
//! each has a thread for when memory is short: so sessions hand them on.

use crate::kernel::workqueue::OwnedQueue;
use core::ops::Deref;
use kernel::{
    new_mutex,
    new_work,
    prelude::*,
    sync::{Arc, Mutex},
    workqueue::{impl_has_work, Work, WorkItem}, //
};

/// The most work items that a workqueue runs at a time; its share of one memory node is enough for
/// as many connections as there can be.
const MAX_ACTIVE: u32 = 2048;

/// How many are kept, for sessions that begin one after the other, and for some that do at once.
const SPARES: usize = 2;

/// The workqueues of a session.
pub(crate) struct Queues {
    /// Receivers stay for the whole session: senders must not wait for them.
    pub(crate) receivers: OwnedQueue,
    pub(crate) senders: OwnedQueue,
}

impl Queues {
    fn new() -> Result<Arc<Self>> {
        let queues = Self {
            receivers: OwnedQueue::new_unbound_reclaim(c"nbd-receive", MAX_ACTIVE)?,
            senders: OwnedQueue::new_unbound_reclaim(c"nbd-send", MAX_ACTIVE)?,
        };
        Ok(Arc::new(queues, GFP_KERNEL)?)
    }
}

/// What a session has of [`Queues`], which others get after it.
pub(crate) struct Workers {
    queues: Arc<Queues>,
    spares: Arc<Spares>,
}

impl Deref for Workers {
    type Target = Queues;

    fn deref(&self) -> &Queues {
        &self.queues
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.spares.keep(self.queues.clone());
    }
}

/// The workqueues that no session has.
#[pin_data]
pub(crate) struct Spares {
    /// Has room for [`SPARES`].
    #[pin]
    queues: Mutex<KVec<Arc<Queues>>>,
    #[pin]
    work: Work<Spares>,
}

impl_has_work! {
    impl HasWork<Spares> for Spares { self.work }
}

impl Spares {
    /// As many as are kept. Sleeps.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let mut queues = KVec::with_capacity(SPARES, GFP_KERNEL)?;
        for _ in 0..SPARES {
            queues.push(Queues::new()?, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                queues <- new_mutex!(queues),
                work <- new_work!("nbd_spares"),
            }),
            GFP_KERNEL,
        )
    }

    /// Workqueues for a session. If they are the last, `maker` makes others. Sleeps.
    pub(crate) fn take(self: &Arc<Self>, maker: &OwnedQueue) -> Result<Arc<Workers>> {
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
            None => Queues::new()?,
        };
        let spares = self.clone();
        Ok(Arc::new(Workers { queues, spares }, GFP_KERNEL)?)
    }

    /// Keeps workqueues, or drops them when there are enough. Sleeps.
    fn keep(&self, queues: Arc<Queues>) {
        let rejected = self.queues.lock().push_within_capacity(queues);
        drop(rejected);
    }
}

impl WorkItem for Spares {
    type Pointer = Arc<Self>;

    /// Makes workqueues when there are none.
    fn run(this: Arc<Self>) {
        if this.queues.lock().is_empty() {
            // Without memory the next session tries again.
            if let Ok(queues) = Queues::new() {
                this.keep(queues);
            }
        }
    }
}
