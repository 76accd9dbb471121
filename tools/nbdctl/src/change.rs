// SPDX-License-Identifier: GPL-2.0

//! Changes of a running session: its size and its connections.

use crate::cli::{AddArgs, RemoveArgs, ReplaceArgs, ResizeArgs};
use crate::connect::{negotiate_all, parse_device};
use crate::error::{Error, Kind, Result};
use crate::export::{device_size, Expected, Export};
use crate::log;
use crate::negotiate;
use crate::netlink::{Changes, Driver, SocketChange};
use crate::output::{parse_size, Bytes};
use crate::record::{Record, Records};
use crate::session::{ConnectionState, Session};
use crate::sysfs::{Attributes, Device, Sysfs};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long a server may take to connect and negotiate.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A device whose session is to be changed.
struct Target {
    driver: Driver,
    records: Records,
    device: Device,
    session: Attributes,
    record: Option<Record>,
}

impl Target {
    fn open(name: &str) -> Result<Self> {
        let device = parse_device(name)?;
        let driver = Driver::open()?;
        let session = Sysfs::default().require(device)?;
        let records = Records::default();
        let record = records.load(device, &session);
        Ok(Self {
            driver,
            records,
            device,
            session,
            record,
        })
    }

    /// Where the export is served.
    fn uri(&self) -> Result<&str> {
        self.record.as_ref().map(|r| r.uri.as_str()).ok_or_else(|| {
            Error::new(
                Kind::Failed,
                format!(
                    "{}: it is not known where the export is, for nbdctl has not connected it",
                    self.device
                ),
            )
        })
    }

    fn reconfigure(&self, size: Option<u64>, sockets: Vec<SocketChange<'_>>) -> Result<()> {
        let changes = Changes {
            size,
            backend: self.session.backend.as_deref(),
            sockets,
        };
        self.driver
            .reconfigure(self.device.0, &changes)
            .map_err(|e| e.context(self.device))
    }

    /// The connections, of a driver that can change them.
    fn connections(&self) -> Result<Session> {
        self.driver.session(self.device.0)?.ok_or_else(|| {
            Error::new(
                Kind::Driver,
                format!(
                    "{}: this driver cannot change the connections of a running session",
                    self.device
                ),
            )
            .hint("nbdctl keep brings lost ones back")
        })
    }

    /// Refuses the number of a connection that is not there.
    fn require(&self, session: &Session, index: u32) -> Result<()> {
        if session.connections.iter().any(|c| c.index == index) {
            return Ok(());
        }
        Err(Error::new(
            Kind::NoDevice,
            format!("{}: there is no connection {index}", self.device),
        ))
    }

    /// Refuses an export that is not the one of the device.
    fn check(&self, session: &Session, total: u32, export: &Export) -> Result<()> {
        let flags = session.flags.or_else(|| self.record.as_ref()?.flags);
        let expected = Expected {
            size: self.session.size,
            block_size: self.session.block_size,
            flags,
            connections: total,
        };
        expected.check(export).map_err(|e| e.context(self.device))
    }

    fn note(&self, change: impl FnOnce(&mut Record)) {
        if let Err(e) = self.records.update(self.device, &self.session, change) {
            log::warn(format_args!("{}: done, but {e}", self.device));
        }
    }
}

pub fn resize(args: &ResizeArgs) -> Result<()> {
    let target = Target::open(&args.device)?;
    let size = if let Some(text) = &args.size {
        parse_size(text).map_err(|why| Error::new(Kind::Usage, format!("{text}: {why}")))?
    } else {
        let new = negotiate::connect(target.uri()?, CONNECT_TIMEOUT, None)
            .map_err(|e| e.hint("or say the size: nbdctl resize DEVICE SIZE"))?;
        device_size(new.export.size, target.session.block_size)
    };
    if size == 0 || size % target.session.block_size != 0 {
        return Err(Error::new(
            Kind::Usage,
            format!(
                "{}: the size must be a multiple of the block size of {}",
                target.device,
                Bytes(target.session.block_size)
            ),
        ));
    }
    if size < target.session.size && !args.shrink {
        return Err(Error::new(
            Kind::Failed,
            format!(
                "{}: not shrunk from {} to {}: what is behind the new end is cut off",
                target.device,
                Bytes(target.session.size),
                Bytes(size)
            ),
        )
        .hint("--shrink does it anyway"));
    }
    target.reconfigure(Some(size), Vec::new())
}

/// Pairs of the numbers of connections and the sockets that they get.
fn places<'a>(indices: &[u32], sockets: &'a [OwnedFd]) -> Vec<SocketChange<'a>> {
    indices
        .iter()
        .zip(sockets)
        .map(|(index, fd)| SocketChange::Place(*index, fd))
        .collect()
}

pub fn replace(args: &ReplaceArgs) -> Result<()> {
    negotiate::check_uri(&args.uri)?;
    let target = Target::open(&args.device)?;
    let session = target.connections()?;
    let indices: Vec<u32> = match args.connection {
        Some(index) => {
            target.require(&session, index)?;
            vec![index]
        }
        None => session.connections.iter().map(|c| c.index).collect(),
    };
    let count = u32::try_from(indices.len()).unwrap_or(u32::MAX);
    let (export, sockets) = negotiate_all(&args.uri, count, CONNECT_TIMEOUT, None)?;
    target.check(&session, session.total, &export)?;
    target.reconfigure(None, places(&indices, &sockets))?;
    // One of several may be moved for a moment only.
    if args.connection.is_none() {
        target.note(|record| record.uri.clone_from(&args.uri));
    }
    Ok(())
}

/// The lowest numbers that no connection has.
fn free_indices(session: &Session, count: u32) -> Vec<u32> {
    (0..)
        .filter(|index| session.connections.iter().all(|c| c.index != *index))
        .take(count as usize)
        .collect()
}

pub fn add(args: &AddArgs) -> Result<()> {
    let target = Target::open(&args.device)?;
    let session = target.connections()?;
    let total = session.total.saturating_add(args.connections);
    let (export, sockets) = negotiate_all(target.uri()?, args.connections, CONNECT_TIMEOUT, None)?;
    target.check(&session, total, &export)?;
    target.reconfigure(
        None,
        places(&free_indices(&session, args.connections), &sockets),
    )?;
    target.note(|record| record.connections = total);
    Ok(())
}

pub fn remove(args: &RemoveArgs) -> Result<()> {
    let target = Target::open(&args.device)?;
    let session = target.connections()?;
    target.require(&session, args.connection)?;
    let mut others = session
        .connections
        .iter()
        .filter(|c| c.index != args.connection);
    if !others.any(|c| c.state == ConnectionState::Open) {
        return Err(Error::new(
            Kind::Failed,
            format!("{}: no other connection is open", target.device),
        )
        .hint("nbdctl disconnect ends the session"));
    }
    target.reconfigure(None, vec![SocketChange::Remove(args.connection)])?;
    target.note(|record| record.connections = session.total.saturating_sub(1));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::parse_debugfs;

    #[test]
    fn free_numbers() {
        let session = Session::new_test(
            2,
            parse_debugfs("0: open last-error none\n2: open last-error none\n"),
        );
        assert_eq!(free_indices(&session, 3), [1, 3, 4]);
    }
}
