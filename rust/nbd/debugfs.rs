// SPDX-License-Identifier: GPL-2.0

//! What a device that is not idle shows in debugfs.

use crate::{
    device::Disk,
    kernel::{
        block::timeout_in_jiffies,
        debugfs::{Dir, Print, Root},
        net::addr::SocketAddr, //
    },
    protocol::Flags,
    NbdModule, //
};
use core::cell::Cell;
use kernel::{
    fmt,
    prelude::*,
    str::CString,
    sync::{aref::ARef, Arc}, //
};

const FILES: [(&CStr, Print<ARef<Disk>>); 7] = [
    (c"tasks", tasks),
    (c"size_bytes", size_bytes),
    (c"timeout", timeout),
    (c"blocksize_bits", blocksize_bits),
    (c"flags", flags),
    (c"state", state),
    (c"connections", connections),
];

/// The directory of a device; it goes away with the value. Dropping it waits for readers, which
/// take the device's configuration lock.
pub(crate) type DebugDir = Dir<ARef<Disk>, NbdModule>;

/// Makes the directory of a device. Sleeps.
pub(crate) fn show(root: &Arc<Root>, disk: &Disk) -> Result<DebugDir> {
    let name = CString::try_from_fmt(fmt!("nbd{}", disk.data().index()))?;
    Dir::new(root, &name, &ARef::from(disk), &FILES)
}

fn tasks(disk: &ARef<Disk>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match disk.data().configured() {
        Some(session) => writeln!(f, "recv: {}", session.pid()),
        None => Ok(()),
    }
}

fn size_bytes(disk: &ARef<Disk>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", disk.data().params().size())
}

fn timeout(disk: &ARef<Disk>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", timeout_in_jiffies(disk.data().params().timeout()))
}

fn blocksize_bits(disk: &ARef<Disk>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", disk.data().params().block_size().trailing_zeros())
}

fn flags(disk: &ARef<Disk>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let flags = disk.data().params().flags();
    writeln!(f, "Hex: {:#010x}\n\nKnown flags:", flags.raw())?;
    for (name, bit) in Flags::NAMES {
        if flags.raw() & bit != 0 {
            writeln!(f, "NBD_FLAG_{name}")?;
        }
    }
    Ok(())
}

fn state(disk: &ARef<Disk>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    disk.data().describe(f)
}

/// An address, or why there is none.
struct Address(Result<SocketAddr>);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(addr) => addr.fmt(f),
            Err(_) => f.write_str("-"),
        }
    }
}

fn connections(disk: &ARef<Disk>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some(session) = disk.data().configured() else {
        return Ok(());
    };
    for connection in session.connections() {
        write!(f, "{}: {}", connection.index(), connection.describe())?;
        if let Some(link) = &connection.link() {
            let in_flight = Cell::new(0);
            disk.for_each_started(|rq| {
                if rq.published(|data| data.is_on(link)) == Some(true) {
                    in_flight.set(in_flight.get() + 1);
                }
            });
            f.write_fmt(fmt!(
                " generation {} local {} peer {} from {} ({}) requests {} in-flight {} sent {} \
                 received {}",
                link.generation(),
                Address(link.socket().local_addr()),
                Address(link.socket().peer_addr()),
                link.giver().pid(),
                link.giver().comm(),
                link.traffic().requests(),
                in_flight.get(),
                link.traffic().sent(),
                link.traffic().received(),
            ))?;
        }
        write!(f, " replayed {}", connection.replayed())?;
        match connection.last_loss() {
            Some(loss) => f.write_fmt(fmt!(" last-error {loss}\n"))?,
            None => writeln!(f, " last-error none")?,
        }
    }
    Ok(())
}
