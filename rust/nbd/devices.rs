// SPDX-License-Identifier: GPL-2.0

//! Which devices there are.

use crate::{
    device::{Device, Minors, Setup, MINOR_BITS},
    request::{Disk, DiskOps},
    state::Begun,
    workqueues::{WorkqueuePool, Workqueues}, //
};
use kernel::{
    block::mq::RegisteredDisk,
    debugfs::owned::Root,
    net::socket::Socket,
    new_condvar,
    new_mutex,
    new_spinlock,
    prelude::*,
    rbtree::{RBTree, RBTreeNode},
    sync::{aref::ARef, Arc, CondVar, Mutex, SpinLock},
    task::Process,
    workqueue::OwnedQueue, //
};

/// The devices by their index.
#[pin_data]
pub(crate) struct Devices {
    minors: Minors,
    /// Where sessions are ended, and nothing else: their requests may be what frees memory.
    end_wq: OwnedQueue,
    /// Where what needs memory is done: devices are removed, losses are told.
    event_wq: OwnedQueue,
    pool: Arc<WorkqueuePool>,
    debug: Arc<Root>,
    #[pin]
    table: Mutex<RBTree<u32, RegisteredDisk<DiskOps>>>,
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

impl Devices {
    /// No devices yet. Sleeps.
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

    /// How many devices there are minors for.
    pub(crate) fn limit(&self) -> u32 {
        1 << (MINOR_BITS - self.minors.shift)
    }

    /// Makes device `index`. Sleeps. Fails with `EEXIST` if there is one.
    pub(crate) fn add(self: &Arc<Self>, index: u32, hw_queues: u32) -> Result {
        let mut table = self.table.lock();
        if table.get(&index).is_some() {
            return Err(EEXIST);
        }
        self.insert(&mut table, index, hw_queues).map(|_| ())
    }

    fn insert(
        self: &Arc<Self>,
        table: &mut RBTree<u32, RegisteredDisk<DiskOps>>,
        index: u32,
        hw_queues: u32,
    ) -> Result<ARef<Disk>> {
        let disk = Device::add(self, index, self.minors, hw_queues)?;
        let found = ARef::from(&*disk);
        table.insert(RBTreeNode::new(index, disk, GFP_KERNEL)?);
        Ok(found)
    }

    /// Device `index`. Sleeps.
    pub(crate) fn find(&self, index: u32) -> Option<ARef<Disk>> {
        self.table
            .lock()
            .get(&index)
            .map(|disk| ARef::from(&**disk))
    }

    /// Device `index`, made if need be, and whether it was. Sleeps.
    pub(crate) fn find_or_add(
        self: &Arc<Self>,
        index: u32,
        hw_queues: u32,
    ) -> Result<(ARef<Disk>, bool)> {
        let mut table = self.table.lock();
        match table.get(&index) {
            Some(disk) => Ok((ARef::from(&**disk), false)),
            None => Ok((self.insert(&mut table, index, hw_queues)?, true)),
        }
    }

    /// Takes the first idle device for a session of `setup`, one that nobody has open if possible,
    /// for whoever opens it may be about to set it up; or a new one if there is none.
    /// `Device::make_session` must follow. Sleeps. Fails with `ENOSPC` if there are no minors left.
    pub(crate) fn begin_any(
        self: &Arc<Self>,
        mut setup: Setup,
        hw_queues: u32,
    ) -> Result<(ARef<Disk>, Begun<Process, Socket>)> {
        let mut table = self.table.lock();
        let mut free = 0;
        for open in [false, true] {
            for disk in table.values().filter(|disk| disk.data().is_open() == open) {
                setup = match disk.data().begin_idle(setup) {
                    Ok(begun) => return Ok((ARef::from(&**disk), begun)),
                    Err((_, setup)) => setup,
                };
            }
        }
        let error = loop {
            while table.get(&free).is_some() {
                free += 1;
            }
            if free >= self.limit() {
                break ENOSPC;
            }
            let disk = match self.insert(&mut table, free, hw_queues) {
                Ok(disk) => disk,
                Err(error) => break error,
            };
            setup = match disk.data().begin_idle(setup) {
                Ok(begun) => return Ok((disk, begun.on_new_device())),
                // Somebody was quick to open it, and sets it up.
                Err((_, setup)) => setup,
            };
        };
        setup.forget();
        Err(error)
    }

    /// Calls `f` with all devices, in order of their indices, and their number. Sleeps.
    pub(crate) fn with_all<R>(
        &self,
        f: impl FnOnce(usize, &mut dyn Iterator<Item = &Disk>) -> R,
    ) -> R {
        let table = self.table.lock();
        let count = table.keys().count();
        let mut disks = table.values().map(|disk| &**disk);
        f(count, &mut disks)
    }

    /// Drops the disk of a device, and waits until that is gone if it is being removed. Sleeps.
    pub(crate) fn let_go(&self, disk: ARef<Disk>) {
        let leaves = disk.data().is_leaving();
        drop(disk);
        if leaves {
            self.settle();
        }
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
