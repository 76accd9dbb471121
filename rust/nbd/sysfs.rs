// SPDX-License-Identifier: GPL-2.0

//! What a connected disk shows in sysfs.

use crate::request::{Disk, DiskOps};
use kernel::{block::mq::Attribute, fmt, prelude::*, str::BStr};

/// The file `pid`: the thread that asked for the session.
pub(crate) struct Pid;

impl Attribute<DiskOps> for Pid {
    const NAME: &'static CStr = c"pid";

    fn show(disk: &Disk, to: &mut dyn fmt::Write) -> fmt::Result {
        // The files come before the session is configured, and go before it is not any more.
        let session = disk.data().shown();
        writeln!(to, "{}", session.map_or(0, |session| session.pid()))
    }
}

/// The file `backend`: what the backend is called, for sessions that netlink made.
pub(crate) struct Backend;

impl Attribute<DiskOps> for Backend {
    const NAME: &'static CStr = c"backend";

    fn show(disk: &Disk, to: &mut dyn fmt::Write) -> fmt::Result {
        if let Some(backend) = disk.data().shown().as_ref().and_then(|s| s.backend()) {
            match core::str::from_utf8(backend) {
                Ok(text) => to.write_str(text)?,
                Err(_) => to.write_fmt(fmt!("{}", BStr::from_bytes(backend)))?,
            }
        }
        writeln!(to)
    }
}
