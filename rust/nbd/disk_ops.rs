// SPDX-License-Identifier: GPL-2.0

//! What the block layer asks of a device.

use crate::{
    device::{Device, Disk},
    queue::Queue,
    state::LastClose,
    NbdModule, //
};
use kernel::{block::mq::DiskOperations, prelude::*, sync::Arc};

/// What user space can do to a device.
pub(crate) struct DiskOps;

impl DiskOperations for DiskOps {
    type Data = Device;
    type Queue = Queue;
    type OwnerModule = NbdModule;

    fn open(disk: &Disk) -> Result {
        let device = disk.data();
        let mut config = device.config.lock();
        if config.state.is_leaving() {
            return Err(ENXIO);
        }
        // The partitions of the ended session go, if nobody has one open.
        if config.state.is_stopped() && crate::partitions() {
            disk.need_partition_scan();
        }
        config.open();
        Ok(())
    }

    fn release(disk: &Disk) {
        let device = disk.data();
        if let Some(session) = device.configured() {
            session.closed();
        }
        let todo = {
            let mut config = device.config.lock();
            config.openers = config.openers.saturating_sub(1);
            if config.openers == 0 {
                config.state.last_closed()
            } else {
                LastClose::Nothing
            }
        };
        match todo {
            LastClose::Nothing => {}
            LastClose::Drop(setup) => {
                drop(setup);
                device.settled.wake_all();
                device.show_debug(disk);
            }
            LastClose::Clean(params) => device.finish(disk, params),
            LastClose::Disconnect(session) => {
                if let Err(refusal) = session.disconnect_whole() {
                    device.refuse(disk, "a quick close", &refusal);
                }
            }
        }
    }

    fn free(device: Arc<Device>) {
        device.free();
    }

    fn ioctl(disk: &Disk, cmd: u32, arg: usize) -> Result<i32> {
        crate::ioctl::ioctl(disk, cmd, arg)
    }
}
