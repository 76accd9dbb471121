// SPDX-License-Identifier: GPL-2.0

//! What all devices share, and the part of a device that its sessions and links use.

use crate::{
    log::{
        LogLimits,
        Topic, //
    },
    refusal::Refusal,
    request::{
        Disk,
        DiskOps, //
    },
    workqueues::{
        WorkqueuePool,
        Workqueues, //
    }, //
};
use kernel::{
    block::mq::RegisteredDisk,
    debugfs::owned::Root,
    net::data_ready::CallbackBarrier,
    new_condvar,
    new_mutex,
    new_spinlock,
    prelude::*,
    rbtree::RBTree,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        Arc,
        CondVar,
        Mutex,
        SpinLock, //
    },
    workqueue::{
        OwnedQueue,
        Queue, //
    }, //
};

/// Log2 of the number of minors of a major number.
const MINOR_BITS: u32 = 20;

/// The number of minors of a device, which gives the first minor of each.
#[derive(Clone, Copy)]
pub(crate) struct Minors {
    shift: u32,
}

impl Minors {
    /// `shift` is log2 of the number of minors per device; 0 without partitions.
    pub(crate) fn new(shift: u32) -> Self {
        Self { shift }
    }

    /// Returns the number of minors of a device.
    pub(crate) fn count(self) -> u32 {
        1 << self.shift
    }

    /// Returns the first minor of device `index`.
    pub(crate) fn first(self, index: u32) -> u32 {
        index << self.shift
    }

    /// Returns the number of devices for which there are minors.
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
    /// Runs the end of sessions and little else, since that may be needed to free memory.
    end_wq: OwnedQueue,
    /// Runs work that may wait for memory: it removes devices and reports link errors.
    event_wq: OwnedQueue,
    pool: Arc<WorkqueuePool>,
    debug: Arc<Root>,
    #[pin]
    table: Mutex<Table>,
    alive: Arc<Alive>,
    callbacks: Arc<CallbackBarrier>,
}

/// Counts the devices that are not freed, whether or not they are in the table.
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

    /// Waits until there are none. Context: may sleep.
    fn wait(&self) {
        let mut count = self.count.lock();
        while *count > 0 {
            self.none.wait(&mut count);
        }
    }
}

/// Counts a device that is not freed. A device must drop this last, since the module may be
/// unloaded after that.
pub(crate) struct AliveMark(Arc<Alive>);

impl Drop for AliveMark {
    fn drop(&mut self) {
        let mut count = self.0.count.lock();
        *count = count.saturating_sub(1);
        self.0.none.notify_all();
    }
}

impl Driver {
    /// Creates a driver without devices. Context: may sleep.
    pub(crate) fn new(minors: Minors) -> Result<Arc<Self>> {
        let end_wq = Queue::new_unbound().mem_reclaim().build(c"nbd-end")?;
        let event_wq = Queue::new_unbound().build(c"nbd-work")?;
        let pool = WorkqueuePool::new()?;
        let alive = Alive::new()?;
        let debug = Root::new(c"nbd")?;
        let callbacks = CallbackBarrier::new()?;
        Arc::pin_init(
            pin_init!(Self {
                minors,
                end_wq,
                event_wq,
                pool,
                debug,
                table <- new_mutex!(RBTree::new()),
                alive,
                callbacks,
            }),
            GFP_KERNEL,
        )
    }

    /// Returns what the callbacks of sockets need.
    pub(crate) fn callbacks(&self) -> &Arc<CallbackBarrier> {
        &self.callbacks
    }

    pub(crate) fn minors(&self) -> Minors {
        self.minors
    }

    /// Returns the workqueue for the end of sessions.
    pub(crate) fn end_wq(&self) -> &OwnedQueue {
        &self.end_wq
    }

    /// Returns the workqueue for work that may wait for memory.
    pub(crate) fn event_wq(&self) -> &OwnedQueue {
        &self.event_wq
    }

    /// Counts a device that is about to be created.
    pub(crate) fn mark(&self) -> AliveMark {
        *self.alive.count.lock() += 1;
        AliveMark(self.alive.clone())
    }

    /// Returns workqueues for a new session. Context: may sleep.
    pub(crate) fn session_workqueues(&self) -> Result<Arc<Workqueues>> {
        self.pool.take(&self.event_wq)
    }

    /// Returns the debugfs directory of the driver.
    pub(crate) fn debug(&self) -> &Arc<Root> {
        &self.debug
    }

    /// Locks the table of disks. Context: may sleep.
    pub(crate) fn table(&self) -> Guard<'_, Table, MutexBackend> {
        self.table.lock()
    }

    /// Removes device `index` from the table. Context: may sleep.
    pub(crate) fn remove(&self, index: u32) {
        // The lock is held while the disk is removed, so that its name is free when its index is.
        self.table.lock().remove(&index);
    }

    /// Waits for sessions that are ending, and for devices that are being removed. Context: may
    /// sleep.
    pub(crate) fn flush(&self) {
        // The end of a session may queue the removal of its device, so its workqueue is flushed
        // first.
        self.end_wq.flush();
        self.event_wq.flush();
    }

    /// Removes all devices, which must be unused. Context: may sleep.
    pub(crate) fn clear(&self) {
        self.flush();
        let table = core::mem::replace(&mut *self.table.lock(), RBTree::new());
        drop(table);
        // The kernel may keep a disk for a moment, and calls the driver when it frees it.
        self.alive.wait();
    }
}

/// The part of a device that its sessions and links use.
#[pin_data]
pub(crate) struct DeviceInfo {
    index: u32,
    driver: Arc<Driver>,
    #[pin]
    log: LogLimits,
    links_made: Atomic<u64>,
    cookies_taken: Atomic<u32>,
}

/// The cookies that a connection has taken. It takes many at a time, so that connections of
/// different processors do not write the same word for each request.
pub(crate) struct Cookies {
    next: u32,
    left: u32,
}

impl Cookies {
    const COUNT: u32 = 1024;

    pub(crate) fn new() -> Self {
        Self { next: 0, left: 0 }
    }

    /// Returns a number that no request of the device had before, until 2^32 have been taken.
    pub(crate) fn take(&mut self, info: &DeviceInfo) -> u32 {
        if self.left == 0 {
            self.next = info.cookies_taken.fetch_add(Self::COUNT, Relaxed);
            self.left = Self::COUNT;
        }
        let cookie = self.next;
        self.next = cookie.wrapping_add(1);
        self.left -= 1;
        cookie
    }
}

impl DeviceInfo {
    /// Creates this part for device `index`. Context: may sleep.
    pub(crate) fn new(driver: &Arc<Driver>, index: u32) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                index,
                driver: driver.clone(),
                log <- LogLimits::new(),
                links_made: Atomic::new(0),
                cookies_taken: Atomic::new(0),
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

    /// Returns a number that no other link of the device ever has.
    pub(crate) fn new_generation(&self) -> u64 {
        self.links_made.fetch_add(1, Relaxed).wrapping_add(1)
    }

    /// Whether another message may be logged now. Context: does not sleep.
    pub(crate) fn may_log(&self, topic: Topic) -> bool {
        self.log.allow(topic)
    }

    /// Logs a refusal, subject to the rate limit. Returns the errno. Context: does not sleep.
    pub(crate) fn refuse(&self, disk: &Disk, what: &str, refusal: &Refusal) -> Error {
        if self.may_log(Topic::Refusal) {
            dev_err!(disk.device(), "{} refused: {}\n", what, refusal);
        }
        refusal.errno()
    }
}
