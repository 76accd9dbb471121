// SPDX-License-Identifier: GPL-2.0

//! The debugfs files of a device that is not idle.

use crate::{
    protocol::Flags,
    request::Disk,
    NbdModule, //
};
use kernel::{
    block::mq::timeout_in_jiffies,
    debugfs::owned::{
        Dir,
        Print,
        Root, //
    },
    fmt,
    net::addr::SocketAddr,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        Arc, //
    }, //
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

/// Creates the directory of a device. Context: may sleep.
pub(crate) fn create(root: &Arc<Root>, disk: &Disk) -> Result<Dir<ARef<Disk>, NbdModule>> {
    let name = CString::try_from_fmt(fmt!("nbd{}", disk.data().info().index()))?;
    Dir::new(root, &name, &ARef::from(disk), &FILES)
}

fn tasks(disk: &ARef<Disk>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match disk.data().configured_session() {
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

/// An address. It is printed as `-` if there is none.
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
    let Some(session) = disk.data().configured_session() else {
        return Ok(());
    };
    for connection in session.connections().filter(|one| !one.is_removed()) {
        let (state, link) = connection.describe();
        write!(f, "{}: {}", connection.index(), state)?;
        if let Some(link) = link {
            f.write_fmt(fmt!(
                " generation {} local {} peer {} from {} ({}) requests {} in-flight {} sent {} \
                 received {}",
                link.generation(),
                Address(link.socket().local_addr()),
                Address(link.socket().peer_addr()),
                link.added_by().tgid(),
                link.added_by().comm(),
                link.stats().requests(),
                link.in_flight(),
                link.stats().sent(),
                link.stats().received(),
            ))?;
        }
        write!(f, " replayed {}", connection.replayed())?;
        match connection.last_error() {
            Some(error) => f.write_fmt(fmt!(" last-error {error}\n"))?,
            None => writeln!(f, " last-error none")?,
        }
    }
    Ok(())
}
