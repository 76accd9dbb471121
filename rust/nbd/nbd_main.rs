// SPDX-License-Identifier: GPL-2.0

//! Network block devices: disks whose data is kept by a server at the other end of a socket.
//!
//! There are three paths through the driver:
//!
//! - submit: `block` → `session` → `connection` → `link`
//! - complete: `link` → request by tag → completion
//! - configure: `ioctl` or `netlink` → `device` → `state` → `session`
//!
//! `Documentation/block/nbd.rst` describes the design.

mod block;
mod changes;
mod connection;
mod debugfs;
mod device;
mod devices;
mod driver;
mod error;
mod ioctl;
mod link;
mod log;
mod netlink;
mod params;
mod protocol;
mod refusal;
mod request;
mod session;
mod state;
mod trace;
mod work;
mod workqueues;

use driver::{
    Driver,
    Minors, //
};
use kernel::{
    block::Major,
    net::netlink::CommandRegistration,
    prelude::*,
    sync::Arc, //
};
use netlink::Nbd;

module! {
    type: NbdModule,
    name: "nbd",
    authors: ["The nbd.ko in Rust developers"],
    description: "Network Block Device",
    license: "GPL",
    alias: ["block-major-43-*", "net-pf-16-proto-16-family-nbd"],
    params: {
        nbds_max: c_int {
            default: 16,
            permissions: 0o444,
            description: "number of network block devices to initialize (default: 16)",
        },
        max_part: c_int {
            default: 16,
            permissions: 0o444,
            description: "number of partitions per device (default: 16)",
        },
        pre_defined_connections: c_int {
            default: 1,
            permissions: 0o444,
            description: "number of connections that devices are prepared for (default: 1)",
        },
    },
}

kernel::module_version!("0.9.0");

/// Log2 of the largest number of minors of a disk.
const MAX_PART_SHIFT: u32 = 8;

/// Whether devices have partitions.
fn partitions() -> bool {
    module_parameters::max_part.value() > 0
}

/// All devices. Dropping this removes them.
struct AllDevices(Arc<Driver>);

impl Drop for AllDevices {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// The loaded module. The fields are dropped in order: the netlink interface goes first, so that no
/// device can be added any more, then the devices, then the major number.
struct NbdModule {
    _netlink: CommandRegistration<Nbd>,
    devices: AllDevices,
    _major: Major,
}

impl kernel::Module for NbdModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let driver = Driver::new(minors()?)?;
        let count = u32::try_from(module_parameters::nbds_max.value()).map_err(|_| EINVAL)?;
        if count > driver.minors().devices() {
            pr_err!(
                "nbds_max={} is too large: there are minors for {} devices with max_part={}\n",
                count,
                driver.minors().devices(),
                module_parameters::max_part.value()
            );
            return Err(EINVAL);
        }
        let hw_queues = match u32::try_from(module_parameters::pre_defined_connections.value()) {
            Ok(queues) if queues >= 1 => queues,
            _ => {
                pr_err!("pre_defined_connections must be at least 1\n");
                return Err(EINVAL);
            }
        };
        let major = Major::register(device::MAJOR, c"nbd")?;
        // The interface is registered before any device is added. A device may be opened at once,
        // and the module cannot fail to load after that.
        let module = Self {
            _netlink: netlink::register(driver.clone())?,
            devices: AllDevices(driver),
            _major: major,
        };
        for index in 0..count {
            match module.devices.0.add(index, hw_queues) {
                // A netlink message may have added this device.
                Ok(()) | Err(EEXIST) => {}
                Err(error) => {
                    pr_err!(
                        "could not add nbd{} and those after it: {:?}\n",
                        index,
                        error
                    );
                    break;
                }
            }
        }
        pr_info!("the driver in Rust, version {}\n", VERSION);
        Ok(module)
    }
}

impl Drop for NbdModule {
    fn drop(&mut self) {
        // The module is unused, so that no session runs. The work that ended the last session may
        // not have returned yet, and sends a netlink message.
        self.devices.0.flush();
    }
}

/// Checks `max_part`, and sets the module parameter to the rounded value.
fn minors() -> Result<Minors> {
    let Ok(max_part) = u32::try_from(module_parameters::max_part.value()) else {
        pr_err!("max_part must not be negative\n");
        return Err(EINVAL);
    };
    let shift = u32::BITS - max_part.leading_zeros();
    if shift > MAX_PART_SHIFT {
        pr_err!(
            "max_part={} is too large: at most {}\n",
            max_part,
            (1 << MAX_PART_SHIFT) - 1
        );
        return Err(EINVAL);
    }
    module_parameters::max_part.set_value((1 << shift) - 1);
    Ok(Minors::new(shift))
}
