// SPDX-License-Identifier: GPL-2.0

//! Starts a session: negotiates each connection, and gives all of them to the kernel in one
//! message.

use crate::cli::SessionArgs;
use crate::error::{Error, Kind, Result};
use crate::export::{device_size, Export, Flags};
use crate::negotiate;
use crate::netlink::{Driver, NewSession};
use crate::output::Bytes;
use crate::process::Signals;
use crate::record::{Record, Records};
use crate::sysfs::{Attributes, Device, Sysfs};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The smallest block that the kernel can use, in bytes.
const SMALLEST_BLOCK: u64 = 512;

/// What a session is to be; see [`SessionArgs`].
#[derive(Clone, Debug)]
pub struct Request {
    pub uri: String,
    pub device: Option<Device>,
    pub backend: String,
    pub connections: u32,
    pub block_size: Option<u64>,
    pub read_only: bool,
    pub connect_timeout: Duration,
    /// In seconds; 0 is no limit.
    pub timeout: u64,
    /// In seconds.
    pub dead_conn_timeout: u64,
}

impl Request {
    pub fn new(args: &SessionArgs, timeout: u64, dead_conn_timeout: u64) -> Result<Self> {
        negotiate::check_uri(&args.uri)?;
        if args
            .block_size
            .is_some_and(|b| b < SMALLEST_BLOCK || !b.is_power_of_two())
        {
            return Err(Error::new(
                Kind::Usage,
                "the block size must be a power of two, and at least 512",
            ));
        }
        Ok(Self {
            uri: args.uri.clone(),
            device: args.device.as_deref().map(parse_device).transpose()?,
            backend: args.backend.clone().unwrap_or_else(|| args.uri.clone()),
            connections: args.connections,
            block_size: args.block_size,
            read_only: args.read_only,
            connect_timeout: Duration::from_secs(args.connect_timeout),
            timeout,
            dead_conn_timeout,
        })
    }
}

pub fn parse_device(text: &str) -> Result<Device> {
    text.parse()
        .map_err(|why| Error::new(Kind::Usage, format!("{text}: {why}")))
}

/// The block size of a device for this export.
fn block_size(wanted: Option<u64>, export: &Export) -> Result<u64> {
    let smallest = export.minimum_block.max(SMALLEST_BLOCK);
    match wanted {
        None => Ok(smallest),
        Some(size) if size >= smallest => Ok(size),
        Some(size) => Err(Error::new(
            Kind::Usage,
            format!("the server's smallest block has {smallest} bytes, {size} is less"),
        )),
    }
}

/// Makes `count` connections to the same export.
pub fn negotiate_all(
    uri: &str,
    count: u32,
    timeout: Duration,
    signals: Option<&Signals>,
) -> Result<(Export, Vec<OwnedFd>)> {
    let first = negotiate::connect(uri, timeout, signals)?;
    if count > 1 && !first.export.flags.has(Flags::MULTI_CONN) {
        return Err(Error::new(
            Kind::Server,
            format!("{uri}: the server does not offer multi-conn, which several connections need"),
        )
        .hint("use one connection"));
    }
    let mut sockets = vec![first.socket];
    for _ in 1..count {
        let next = negotiate::connect(uri, timeout, signals)?;
        if next.export != first.export {
            return Err(Error::new(
                Kind::Export,
                format!("{uri}: the connections reach different exports"),
            ));
        }
        sockets.push(next.socket);
    }
    Ok((first.export, sockets))
}

/// A session that has just been started.
#[derive(Debug)]
pub struct Started {
    pub device: Device,
    pub session: Attributes,
    pub flags: Flags,
}

/// Starts a session.
pub fn start(
    driver: &Driver,
    sysfs: &Sysfs,
    records: &Records,
    request: &Request,
    signals: Option<&Signals>,
) -> Result<Started> {
    let (export, sockets) = negotiate_all(
        &request.uri,
        request.connections,
        request.connect_timeout,
        signals,
    )?;
    let block_size = block_size(request.block_size, &export)?;
    if export.size < block_size {
        return Err(Error::new(
            Kind::Server,
            format!(
                "{}: the export has only {}",
                request.uri,
                Bytes(export.size)
            ),
        ));
    }
    let flags = export.flags.with(Flags::READ_ONLY, request.read_only);
    let index = driver
        .connect(&NewSession {
            index: request.device.map(|d| d.0),
            size: device_size(export.size, block_size),
            block_size,
            flags,
            timeout: request.timeout,
            dead_conn_timeout: request.dead_conn_timeout,
            backend: &request.backend,
            sockets: &sockets,
        })
        .map_err(|e| match request.device {
            Some(device) => e.context(device),
            None => e,
        })?;
    let device = Device(index);
    let session = sysfs.require(device)?;
    let record = Record::new(&session, &request.uri, Some(flags), request.connections);
    if let Err(e) = records.store(device, &record) {
        crate::log::warn(format_args!("{device} is connected, but {e}"));
    }
    Ok(Started {
        device,
        session,
        flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes() {
        let export = |minimum_block| Export {
            size: 1 << 20,
            flags: Flags(1),
            minimum_block,
        };
        assert_eq!(block_size(None, &export(0)), Ok(512));
        assert_eq!(block_size(None, &export(1)), Ok(512));
        assert_eq!(block_size(None, &export(4096)), Ok(4096));
        assert_eq!(block_size(Some(4096), &export(1)), Ok(4096));
        assert!(block_size(Some(512), &export(4096)).is_err());
    }
}
