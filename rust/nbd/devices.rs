// SPDX-License-Identifier: GPL-2.0

//! Adding devices, finding them, and claiming one for a session.

use crate::{
    debugfs,
    device::{
        ClaimedDevice,
        Device,
        Setup, //
    },
    driver::{
        Driver,
        Table, //
    },
    request::Disk, //
};
use kernel::{
    prelude::*,
    rbtree::RBTreeNode,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

impl Driver {
    /// Adds device `index`. Fails with `EEXIST` if it exists. Context: may sleep.
    pub(crate) fn add(self: &Arc<Self>, index: u32, hw_queues: u32) -> Result {
        let mut table = self.table();
        if table.get(&index).is_some() {
            return Err(EEXIST);
        }
        self.insert(&mut table, index, hw_queues).map(|_| ())
    }

    fn insert(
        self: &Arc<Self>,
        table: &mut Table,
        index: u32,
        hw_queues: u32,
    ) -> Result<ARef<Disk>> {
        let disk = Device::add(self, index, hw_queues, debugfs::create)?;
        let found = ARef::from(&*disk);
        table.insert(RBTreeNode::new(index, disk, GFP_KERNEL)?);
        Ok(found)
    }

    /// Returns device `index`. Context: may sleep.
    pub(crate) fn find(&self, index: u32) -> Option<ARef<Disk>> {
        self.table().get(&index).map(|disk| ARef::from(&**disk))
    }

    /// Returns device `index`, and whether this call has added it. Context: may sleep.
    pub(crate) fn find_or_add(
        self: &Arc<Self>,
        index: u32,
        hw_queues: u32,
    ) -> Result<(ARef<Disk>, bool)> {
        let mut table = self.table();
        match table.get(&index) {
            Some(disk) => Ok((ARef::from(&**disk), false)),
            None => Ok((self.insert(&mut table, index, hw_queues)?, true)),
        }
    }

    /// Claims the first idle device for a session of `setup`, or a new one if none is idle. A
    /// device that is open is claimed only if no other is idle, since its opener may be about to
    /// set it up.
    ///
    /// Fails with `ENOSPC` if there are no minors left.
    ///
    /// Context: may sleep.
    pub(crate) fn claim_any(
        self: &Arc<Self>,
        mut setup: Setup,
        hw_queues: u32,
    ) -> Result<(ARef<Disk>, ClaimedDevice)> {
        let mut table = self.table();
        let mut free = 0;
        for open in [false, true] {
            for disk in table.values().filter(|disk| disk.data().is_open() == open) {
                setup = match disk.data().claim_idle(disk, setup, false) {
                    Ok(claimed) => return Ok((ARef::from(&**disk), claimed)),
                    Err((_, setup)) => setup,
                };
            }
        }
        let error = loop {
            while table.get(&free).is_some() {
                free += 1;
            }
            if free >= self.minors().devices() {
                break ENOSPC;
            }
            let disk = match self.insert(&mut table, free, hw_queues) {
                Ok(disk) => disk,
                Err(error) => break error,
            };
            setup = match disk.data().claim_idle(&disk, setup, true) {
                Ok(claimed) => return Ok((disk, claimed)),
                // Another task has opened the new device already and sets it up.
                Err((_, setup)) => setup,
            };
        };
        setup.release();
        Err(error)
    }

    /// Calls `f` with the number of devices, and all devices in the order of their indices.
    /// Context: may sleep.
    pub(crate) fn with_all<R>(
        &self,
        f: impl FnOnce(usize, &mut dyn Iterator<Item = &Disk>) -> R,
    ) -> R {
        let table = self.table();
        let count = table.keys().count();
        let mut disks = table.values().map(|disk| &**disk);
        f(count, &mut disks)
    }

    /// Drops a reference to the disk of a device. If the device is being removed, waits until it is
    /// gone. Context: may sleep.
    pub(crate) fn put(&self, disk: ARef<Disk>) {
        let leaves = disk.data().is_removing();
        drop(disk);
        if leaves {
            self.flush();
        }
    }
}
