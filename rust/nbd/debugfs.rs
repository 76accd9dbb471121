// SPDX-License-Identifier: GPL-2.0

//! What a device that is not idle shows in debugfs.

use crate::{
    device::Disk,
    kernel::{block::timeout_in_jiffies, net::addr::SocketAddr},
    protocol::Flags, //
};
use core::cell::Cell;
use kernel::{
    debugfs::{Dir, Scope},
    fmt,
    prelude::*,
    str::{BStr, CString},
    sync::aref::ARef, //
};

/// The directory of a device; it goes away with the value. Dropping it waits for readers, which
/// take the device's configuration lock.
pub(crate) struct DebugDir(#[expect(dead_code)] Pin<KBox<Scope<ARef<Disk>>>>);

impl DebugDir {
    /// Makes the directory. Sleeps.
    pub(crate) fn new(parent: &Dir, disk: &Disk) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("nbd{}", disk.data().index()))?;
        let scope = parent.scope(ARef::from(disk), &name, |disk, dir| {
            dir.read_callback_file(c"tasks", disk, &tasks);
            dir.read_callback_file(c"size_bytes", disk, &size_bytes);
            dir.read_callback_file(c"timeout", disk, &timeout);
            dir.read_callback_file(c"blocksize_bits", disk, &blocksize_bits);
            dir.read_callback_file(c"flags", disk, &flags);
            dir.read_callback_file(c"state", disk, &state);
            dir.read_callback_file(c"connections", disk, &connections);
        });
        Ok(Self(KBox::pin_init(scope, GFP_KERNEL)?))
    }
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
            let comm = link.giver().comm();
            let comm = comm.split(|byte| *byte == 0).next().unwrap_or(&[]);
            f.write_fmt(fmt!(
                " generation {} local {} peer {} from {} ({}) requests {} in-flight {} sent {} \
                 received {}",
                link.generation(),
                Address(link.socket().local_addr()),
                Address(link.socket().peer_addr()),
                link.giver().pid(),
                BStr::from_bytes(comm),
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
