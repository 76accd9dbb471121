// SPDX-License-Identifier: GPL-2.0

//! Which devices there are.

use crate::{
    device::{Device, Disk, Minors, Setup, MINOR_BITS},
    disk_ops::DiskOps,
    kernel::{
        block::mq::RegisteredDisk,
        net::socket::Socket,
        task::Process,
        workqueue::OwnedQueue, //
    },
    state::Begun,
    workers::{Spares, Workers},
};
use kernel::{
    debugfs::Dir,
    new_condvar,
    new_mutex,
    new_spinlock,
    prelude::*,
    rbtree::{RBTree, RBTreeNode},
    sync::{aref::ARef, Arc, CondVar, Mutex, SpinLock}, //
};

/// The devices by their index.
#[pin_data]
pub(crate) struct Devices {
    minors: Minors,
    /// Where sessions are ended and devices removed.
    workers: OwnedQueue,
    spares: Arc<Spares>,
    debug: Dir,
    #[pin]
    table: Mutex<RBTree<u32, RegisteredDisk<DiskOps>>>,
    /// Devices that are not freed yet, in the table or not.
    #[pin]
    alive: SpinLock<u32>,
    #[pin]
    all_gone: CondVar,
}

impl Devices {
    /// No devices yet. Sleeps.
    pub(crate) fn new(minors: Minors) -> Result<Arc<Self>> {
        let workers = OwnedQueue::new_unbound_reclaim(c"nbd-end", 0)?;
        let spares = Spares::new()?;
        Arc::pin_init(
            pin_init!(Self {
                minors,
                workers,
                spares,
                debug: Dir::new(c"nbd"),
                table <- new_mutex!(RBTree::new()),
                alive <- new_spinlock!(0),
                all_gone <- new_condvar!(),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn workers(&self) -> &OwnedQueue {
        &self.workers
    }

    /// The workqueues of a new session. Sleeps.
    pub(crate) fn session_workers(&self) -> Result<Arc<Workers>> {
        self.spares.take(&self.workers)
    }

    /// The debugfs directory of the driver.
    pub(crate) fn debug(&self) -> &Dir {
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
                setup = match disk.data().begin(setup) {
                    Ok(begun) => return Ok((ARef::from(&**disk), begun)),
                    Err((_, setup)) => setup,
                };
            }
        }
        for index in table.keys() {
            if *index == free {
                free += 1;
            }
        }
        let added = if free < self.limit() {
            self.insert(&mut table, free, hw_queues)
        } else {
            Err(ENOSPC)
        };
        match added {
            // Nobody could find it yet.
            Ok(disk) => match disk.data().begin(setup) {
                Ok(begun) => Ok((disk, begun.on_new_device())),
                Err((refusal, setup)) => {
                    setup.forget();
                    Err(refusal.errno())
                }
            },
            Err(error) => {
                setup.forget();
                Err(error)
            }
        }
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
        self.workers.flush();
    }

    /// Removes all devices. Sleeps. They must not be used.
    pub(crate) fn clear(&self) {
        self.settle();
        let table = core::mem::replace(&mut *self.table.lock(), RBTree::new());
        drop(table);
        // The kernel may hold a disk for a moment longer, and calls the driver when it lets go.
        let mut alive = self.alive.lock();
        while *alive > 0 {
            self.all_gone.wait(&mut alive);
        }
    }

    /// One more device is about to be made.
    pub(crate) fn device_made(&self) {
        *self.alive.lock() += 1;
    }

    /// A device is no more.
    pub(crate) fn device_gone(&self) {
        let mut alive = self.alive.lock();
        *alive = alive.saturating_sub(1);
        self.all_gone.notify_all();
    }
}
