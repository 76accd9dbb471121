// SPDX-License-Identifier: GPL-2.0

//! What all devices share, and what everything that belongs to a device knows of it.

use crate::{
    log::{LogLimits, Topic},
    refusal::Refusal,
    request::{Disk, DiskOps},
    workqueues::{WorkqueuePool, Workqueues}, //
};
use kernel::{
    block::mq::RegisteredDisk,
    debugfs::owned::Root,
    new_condvar,
    new_mutex,
    new_spinlock,
    prelude::*,
    rbtree::RBTree,
    sync::{
        atomic::{Atomic, Relaxed},
        lock::{mutex::MutexBackend, Guard},
        Arc, CondVar, Mutex, SpinLock,
    },
    workqueue::OwnedQueue, //
};

/// Log2 of the minors of a major number.
const MINOR_BITS: u32 = 20;

/// How many minors a device has, and where they begin.
#[derive(Clone, Copy)]
pub(crate) struct Minors {
    shift: u32,
}

impl Minors {
    /// `shift` is log2 of the minors per device; 0 without partitions.
    pub(crate) fn new(shift: u32) -> Self {
        Self { shift }
    }

    /// How many minors a device has.
    pub(crate) fn count(self) -> u32 {
        1 << self.shift
    }

    /// The first minor of device `index`.
    pub(crate) fn first(self, index: u32) -> u32 {
        index << self.shift
    }

    /// How many devices there are minors for.
    pub(crate) fn devices(self) -> u32 {
        1 << (MINOR_BITS - self.shift)
    }
}

/// The disks by their index.
pub(crate) type Table = RBTree<u32, RegisteredDisk<DiskOps>>;

/// The devices, and what they share.
#[pin_data]
pub(crate) struct Driver {
    minors: Minors,
    /// Where sessions are ended, and nothing else: their requests may be what frees memory.
    end_wq: OwnedQueue,
    /// Where what needs memory is done: devices are removed, losses are told.
    event_wq: OwnedQueue,
    pool: Arc<WorkqueuePool>,
    debug: Arc<Root>,
    #[pin]
    table: Mutex<Table>,
    alive: Arc<Alive>,
}

/// Counts the devices that are not freed yet, in the table or not.
#[pin_data]
struct Alive {
    #[pin]
    count: SpinLock<u32>,
    #[pin]
    none: CondVar,
}

impl Alive {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                count <- new_spinlock!(0),
                none <- new_condvar!(),
            }),
            GFP_KERNEL,
        )
    }

    /// Waits until there is none. Sleeps.
    fn wait(&self) {
        let mut count = self.count.lock();
        while *count > 0 {
            self.none.wait(&mut count);
        }
    }
}

/// A device that is not freed yet. It must be the last thing of the device to be dropped: the
/// module may be unloaded then.
pub(crate) struct AliveMark(Arc<Alive>);

impl Drop for AliveMark {
    fn drop(&mut self) {
        let mut count = self.0.count.lock();
        *count = count.saturating_sub(1);
        self.0.none.notify_all();
    }
}

impl Driver {
    /// A driver without devices. Sleeps.
    pub(crate) fn new(minors: Minors) -> Result<Arc<Self>> {
        let end_wq = OwnedQueue::new_unbound_reclaim(c"nbd-end", 0)?;
        let event_wq = OwnedQueue::new_unbound(c"nbd-work", 0)?;
        let pool = WorkqueuePool::new()?;
        let alive = Alive::new()?;
        let debug = Root::new(c"nbd")?;
        Arc::pin_init(
            pin_init!(Self {
                minors,
                end_wq,
                event_wq,
                pool,
                debug,
                table <- new_mutex!(RBTree::new()),
                alive,
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn minors(&self) -> Minors {
        self.minors
    }

    /// Where sessions are ended.
    pub(crate) fn end_wq(&self) -> &OwnedQueue {
        &self.end_wq
    }

    /// Where devices are removed and losses told.
    pub(crate) fn event_wq(&self) -> &OwnedQueue {
        &self.event_wq
    }

    /// The mark of a device about to be made.
    pub(crate) fn mark(&self) -> AliveMark {
        *self.alive.count.lock() += 1;
        AliveMark(self.alive.clone())
    }

    /// The workqueues of a new session. Sleeps.
    pub(crate) fn session_workqueues(&self) -> Result<Arc<Workqueues>> {
        self.pool.take(&self.event_wq)
    }

    /// The debugfs directory of the driver.
    pub(crate) fn debug(&self) -> &Arc<Root> {
        &self.debug
    }

    /// The table of disks, locked while devices are added and removed. Sleeps.
    pub(crate) fn table(&self) -> Guard<'_, Table, MutexBackend> {
        self.table.lock()
    }

    /// Removes a device that is not used any more. Sleeps.
    pub(crate) fn remove(&self, index: u32) {
        // Under the lock, so that the name is free when the index is.
        self.table.lock().remove(&index);
    }

    /// Waits until sessions that were ended are gone, and devices that leave. Sleeps.
    pub(crate) fn settle(&self) {
        // The end of a session may have its device removed.
        self.end_wq.flush();
        self.event_wq.flush();
    }

    /// Removes all devices. Sleeps. They must not be used.
    pub(crate) fn clear(&self) {
        self.settle();
        let table = core::mem::replace(&mut *self.table.lock(), RBTree::new());
        drop(table);
        // The kernel may hold a disk for a moment longer, and calls the driver when it lets go.
        self.alive.wait();
    }
}

/// What a device's sessions and links know of it.
#[pin_data]
pub(crate) struct DeviceInfo {
    index: u32,
    driver: Arc<Driver>,
    #[pin]
    log: LogLimits,
    links_made: Atomic<u64>,
    requests_sent: Atomic<u32>,
}

impl DeviceInfo {
    /// What is to be known of device `index`. Sleeps.
    pub(crate) fn new(driver: &Arc<Driver>, index: u32) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                index,
                driver: driver.clone(),
                log <- LogLimits::new(),
                links_made: Atomic::new(0),
                requests_sent: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// A number that no other link of the device ever has.
    pub(crate) fn new_generation(&self) -> u64 {
        self.links_made.fetch_add(1, Relaxed).wrapping_add(1)
    }

    /// A number for a request that no other of the last 2^32 had.
    pub(crate) fn new_cookie(&self) -> u32 {
        self.requests_sent.fetch_add(1, Relaxed)
    }

    /// Whether one more message may be logged now.
    pub(crate) fn may_log(&self, topic: Topic) -> bool {
        self.log.allow(topic)
    }

    /// Says once in a while what was refused, why, and what to do. Returns the errno.
    pub(crate) fn refuse(&self, disk: &Disk, what: &str, refusal: &Refusal) -> Error {
        if self.may_log(Topic::Refusal) {
            dev_err!(disk.device(), "{} refused: {}\n", what, refusal);
        }
        refusal.errno()
    }
}
