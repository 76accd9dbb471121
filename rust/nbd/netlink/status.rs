// SPDX-License-Identifier: GPL-2.0

//! The reply to `NBD_CMD_STATUS`.

use super::{
    BACKEND_IDENTIFIER,
    BLOCK_SIZE_BYTES,
    CLIENT_FLAGS,
    DEAD_CONN_TIMEOUT,
    DEVICE_LIST,
    FIRST_CONNECTION,
    INDEX,
    SERVER_FLAGS,
    SESSION,
    SIZE_BYTES,
    STATUS,
    TIMEOUT, //
};
use crate::{
    connection::{
        Connection,
        ConnectionState, //
    },
    driver::Driver,
    request::Disk,
    session::{
        Phase,
        Session, //
    }, //
};
use kernel::{
    fmt,
    net::netlink::{
        attr_size,
        GenlMsg,
        Info,
        Nest, //
    },
    prelude::*,
    str::CString, //
};

/// An item of [`DEVICE_LIST`].
const DEVICE_ITEM: c_int = 1;
/// An attribute of [`DEVICE_ITEM`].
const DEVICE_INDEX: c_int = 1;
/// An attribute of [`DEVICE_ITEM`].
const DEVICE_CONNECTED: c_int = 2;

/// The attributes of [`SESSION`].
mod session_attr {
    use kernel::prelude::c_int;

    pub(super) const STATE: c_int = 1;
    pub(super) const ORIGIN: c_int = 2;
    pub(super) const PID: c_int = 3;
    pub(super) const AGE_MS: c_int = 4;
    pub(super) const CONNECTIONS: c_int = 5;
    pub(super) const CONNECTION: c_int = 6;
}

/// The attributes of [`session_attr::CONNECTION`].
mod connection_attr {
    use kernel::prelude::c_int;

    pub(super) const INDEX: c_int = 1;
    pub(super) const STATE: c_int = 2;
    pub(super) const GENERATION: c_int = 3;
    pub(super) const LOCAL_ADDRESS: c_int = 4;
    pub(super) const PEER_ADDRESS: c_int = 5;
    pub(super) const ADDED_BY_PID: c_int = 6;
    pub(super) const ADDED_BY_COMM: c_int = 7;
    pub(super) const REQUESTS: c_int = 8;
    pub(super) const IN_FLIGHT: c_int = 9;
    pub(super) const DRAINING: c_int = 10;
    pub(super) const REPLAYED: c_int = 11;
    pub(super) const SENT_BYTES: c_int = 12;
    pub(super) const RECEIVED_BYTES: c_int = 13;
    pub(super) const LAST_ERROR: c_int = 14;
    pub(super) const AGE_MS: c_int = 15;
}

/// The size of an item of [`DEVICE_LIST`], in bytes.
const ITEM_SIZE: usize = attr_size(attr_size(4) + attr_size(1));

/// The room for the attributes of a reply with a session, in bytes. With its headers, and what the
/// kernel keeps beside a message, the reply fills 8 KiB, which every netlink library can receive.
const SESSION_ROOM: usize = 7680;

/// Replies with the status of one device or of all. Context: may sleep.
pub(super) fn reply(driver: &Driver, info: &Info<'_>) -> Result {
    let first = info.attr(FIRST_CONNECTION).map(|attr| attr.u32());
    let first = first.transpose()?;
    let index = info.attr(INDEX).map(|attr| attr.u32()).transpose()?;
    match (index, first) {
        (None, None) => driver.with_all(|count, disks| list(info, count, disks)),
        (None, Some(_)) => {
            info.refuse(
                info.attr(FIRST_CONNECTION),
                fmt!("only one device at a time: give its index"),
            );
            Err(EINVAL)
        }
        (Some(index), first) => match (driver.find(index), first) {
            (Some(disk), Some(first)) => one(info, &disk, first),
            (Some(disk), None) => list(info, 1, &mut [&*disk].into_iter()),
            (None, _) => list(info, 0, &mut [].into_iter()),
        },
    }
}

/// Replies with the status of `count` devices.
fn list(info: &Info<'_>, count: usize, disks: &mut dyn Iterator<Item = &Disk>) -> Result {
    let mut reply = info.new_reply(STATUS, attr_size(count * ITEM_SIZE))?;
    put_list(&mut reply, disks).inspect_err(|_| {
        info.refuse(None, fmt!("too many devices for one message: ask for one"));
    })?;
    reply.reply(info)
}

fn put_list(reply: &mut GenlMsg, disks: &mut dyn Iterator<Item = &Disk>) -> Result {
    let mut list = reply.nest(DEVICE_LIST)?;
    for disk in disks {
        let mut item = list.nest(DEVICE_ITEM)?;
        item.put_u32(DEVICE_INDEX, disk.data().info().index())?;
        item.put_u8(DEVICE_CONNECTED, disk.data().is_connected().into())?;
        item.end()?;
    }
    list.end()
}

/// Replies with the status of a device, its parameters and its session, with the connections from
/// `first` on.
fn one(info: &Info<'_>, disk: &Disk, first: u32) -> Result {
    let device = disk.data();
    let mut reply = info.new_reply(STATUS, SESSION_ROOM)?;
    put_list(&mut reply, &mut [disk].into_iter())?;
    let params = device.params();
    reply.put_u64(SIZE_BYTES, params.size())?;
    reply.put_u64(BLOCK_SIZE_BYTES, params.block_size().into())?;
    reply.put_u64(TIMEOUT, params.timeout().into())?;
    reply.put_u64(DEAD_CONN_TIMEOUT, params.dead_conn_timeout().into())?;
    reply.put_u64(SERVER_FLAGS, params.flags().raw().into())?;
    reply.put_u64(CLIENT_FLAGS, params.client().raw())?;
    if let Some(session) = device.configured_session() {
        if let Some(backend) = session.backend() {
            let mut text = KVec::with_capacity(backend.len() + 1, GFP_KERNEL)?;
            text.extend_from_slice(backend, GFP_KERNEL)?;
            text.push(0, GFP_KERNEL)?;
            reply
                .put_string(
                    BACKEND_IDENTIFIER,
                    CStr::from_bytes_with_nul(&text).map_err(|_| EINVAL)?,
                )
                .inspect_err(|_| {
                    info.refuse(
                        None,
                        fmt!("the backend identifier is too long for the reply"),
                    );
                })?;
        }
        let admin = info.is_admin();
        let mut nest = reply.nest(SESSION)?;
        put_session(&mut nest, &session, first, admin)?;
        nest.end()?;
    }
    reply.reply(info)
}

fn put_session(reply: &mut Nest<'_>, session: &Session, first: u32, admin: bool) -> Result {
    use session_attr::*;

    let state = match session.phase() {
        Phase::Live => 0,
        Phase::Waiting => 1,
        Phase::Dead => 2,
        Phase::Disconnecting => 3,
        Phase::Ending => 4,
    };
    reply.put_u32(STATE, state)?;
    reply.put_u32(ORIGIN, session.is_netlink().into())?;
    if admin {
        reply.put_u32(PID, session.pid() as u32)?;
    }
    reply.put_u64(AGE_MS, session.created().elapsed().as_millis() as u64)?;
    reply.put_u32(CONNECTIONS, session.count_connections().1 as u32)?;
    let connections = session.connections().filter(|one| !one.is_removed());
    for connection in connections.filter(|one| one.index() >= first) {
        let mut nest = reply.nest(CONNECTION)?;
        match put_connection(&mut nest, connection, admin).and_then(|()| nest.end()) {
            // The message is full. The program asks for the others.
            Err(EMSGSIZE) => break,
            put => put?,
        }
    }
    Ok(())
}

fn put_connection(reply: &mut Nest<'_>, connection: &Connection, admin: bool) -> Result {
    use connection_attr::*;

    let status = connection.status();
    let state = match status.state {
        ConnectionState::Vacant => 0,
        ConnectionState::Open => 1,
        ConnectionState::Draining => 2,
        ConnectionState::Closing => 3,
    };
    reply.put_u32(INDEX, connection.index())?;
    reply.put_u32(STATE, state)?;
    reply.put_u64(REPLAYED, connection.replayed())?;
    if let Some(error) = connection.last_error() {
        put_text(reply, LAST_ERROR, fmt!("{error}"))?;
    }
    let mut in_flight = 0;
    let draining = status.draining.iter().flatten();
    if draining.clone().next().is_some() {
        in_flight = draining.map(|link| link.in_flight()).sum();
        reply.put_u32(DRAINING, in_flight)?;
    }
    if let Some(link) = &status.link {
        in_flight += link.in_flight();
        let stats = link.stats();
        reply.put_u64(GENERATION, link.generation())?;
        reply.put_u64(REQUESTS, stats.requests())?;
        reply.put_u64(SENT_BYTES, stats.sent())?;
        reply.put_u64(RECEIVED_BYTES, stats.received())?;
        if admin {
            if let Ok(addr) = link.socket().local_addr() {
                put_text(reply, LOCAL_ADDRESS, fmt!("{addr}"))?;
            }
            if let Ok(addr) = link.socket().peer_addr() {
                put_text(reply, PEER_ADDRESS, fmt!("{addr}"))?;
            }
            let process = link.added_by();
            reply.put_u32(ADDED_BY_PID, process.pid() as u32)?;
            put_text(reply, ADDED_BY_COMM, fmt!("{}", process.comm()))?;
        }
    }
    reply.put_u32(IN_FLIGHT, in_flight)?;
    let since = status.link.map(|link| link.created()).or(status.lost);
    if let Some(since) = since {
        reply.put_u64(AGE_MS, since.elapsed().as_millis() as u64)?;
    }
    Ok(())
}

fn put_text(reply: &mut Nest<'_>, attr: c_int, text: fmt::Arguments<'_>) -> Result {
    reply.put_string(attr, &CString::try_from_fmt(text)?)
}
