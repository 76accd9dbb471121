// SPDX-License-Identifier: GPL-2.0

//! The netlink interface.
//!
//! C header: [`include/uapi/linux/nbd-netlink.h`](srctree/include/uapi/linux/nbd-netlink.h)

mod status;

use crate::{
    changes::{
        Changes,
        ConnectionChange, //
    },
    device::{
        ClaimedDevice,
        Setup, //
    },
    driver::Driver,
    error::Reason,
    params::Params,
    protocol::{
        ClientFlags,
        Flags, //
    },
    refusal::{
        Refusal,
        MAX_CONNECTIONS, //
    },
    request::Disk,
    session::Origin,
    NbdModule, //
};
use kernel::{
    mm::NoIo,
    module::this_module,
    net::{
        netlink::{
            attr_size,
            Attr,
            CommandFamily,
            CommandRegistration,
            Commands,
            Family,
            Info,
            MulticastGroup,
            Operation,
            Policy, //
        },
        socket::Socket, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        ArcBorrow, //
    }, //
};

const VERSION: u32 = 1;

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
const LINK_DEAD: u8 = 4;
const STATUS: u8 = 5;
const LINK_UP: u8 = 6;
const SESSION_END: u8 = 7;

const INDEX: c_int = 1;
const SIZE_BYTES: c_int = 2;
const BLOCK_SIZE_BYTES: c_int = 3;
const TIMEOUT: c_int = 4;
const SERVER_FLAGS: c_int = 5;
const CLIENT_FLAGS: c_int = 6;
const SOCKETS: c_int = 7;
const DEAD_CONN_TIMEOUT: c_int = 8;
const DEVICE_LIST: c_int = 9;
const BACKEND_IDENTIFIER: c_int = 10;
const FIRST_CONNECTION: c_int = 11;
const SESSION: c_int = 12;
const CONNECTION_INDEX: c_int = 13;
const END_REASON: c_int = 14;

static POLICY: [Policy; 15] = [
    Policy::UNSPEC,
    Policy::U32,
    Policy::U64,
    Policy::U64,
    Policy::U64,
    Policy::U64,
    Policy::U64,
    Policy::NESTED,
    Policy::U64,
    Policy::NESTED,
    Policy::STRING,
    Policy::U32,
    Policy::NESTED,
    Policy::U32,
    Policy::U32,
];

/// An item of [`SOCKETS`].
const SOCK_ITEM: c_int = 1;
/// An attribute of [`SOCK_ITEM`].
const SOCK_FD: c_int = 1;
/// An attribute of [`SOCK_ITEM`].
const SOCK_INDEX: c_int = 2;
static SOCK_POLICY: [Policy; 3] = [Policy::UNSPEC, Policy::U32, Policy::U32];

static OPERATIONS: [Operation<Nbd>; 4] = [
    Operation::lenient(CONNECT),
    Operation::lenient(DISCONNECT),
    Operation::lenient(RECONFIGURE),
    Operation::lenient(STATUS),
];

/// The group to which link errors are sent.
const LISTENERS: u32 = 0;
static GROUPS: [MulticastGroup; 1] = [MulticastGroup::const_new(c"nbd_mc_group")];

static FAMILY: CommandFamily<Nbd> =
    Family::const_new(this_module::<NbdModule>(), b"nbd\0", VERSION, &GROUPS)
        .with_commands(&POLICY, &OPERATIONS);

/// The commands of the family `nbd`.
pub(crate) struct Nbd;

/// Registers the family. Context: may sleep.
pub(crate) fn register(driver: Arc<Driver>) -> Result<CommandRegistration<Nbd>> {
    FAMILY.register(driver)
}

/// Sends `event` of device `index`, with one more attribute, to the multicast group. Context: may
/// sleep.
fn notify(event: u8, index: u32, detail: Option<(c_int, u32)>) {
    let size = attr_size(4) * (1 + usize::from(detail.is_some()));
    // Without memory the message is lost.
    let _ = FAMILY.new_msg(event, size).and_then(|mut message| {
        message.put_u32(INDEX, index)?;
        if let Some((attr, value)) = detail {
            message.put_u32(attr, value)?;
        }
        message.multicast_allns(&FAMILY, LISTENERS)
    });
}

/// Tells the multicast group that a link of device `index` has failed. Context: may sleep.
pub(crate) fn notify_link_dead(index: u32) {
    notify(LINK_DEAD, index, None);
}

/// Tells the multicast group that a connection of device `index` has a new link. Context: may
/// sleep.
pub(crate) fn notify_link_up(index: u32, connection: u32) {
    notify(LINK_UP, index, Some((CONNECTION_INDEX, connection)));
}

/// Tells the multicast group that the session of device `index` has ended. Context: may sleep.
pub(crate) fn notify_session_end(index: u32, reason: Reason) {
    let reason = match reason {
        Reason::LinksFailed => 0,
        Reason::TimedOut => 1,
        Reason::ShuttingDown => 2,
        Reason::Requested => 3,
        Reason::Interrupted => 4,
    };
    notify(SESSION_END, index, Some((END_REASON, reason)));
}

impl Commands for Nbd {
    type Context = Driver;

    fn handle(driver: ArcBorrow<'_, Driver>, command: u8, info: &Info<'_>) -> Result {
        // The I/O that frees memory may depend on this message, or on another one that waits for
        // the same lock.
        let _noio = NoIo::enter();
        if command == STATUS {
            return status::reply(&driver, info);
        }
        if !info.is_admin() {
            info.refuse(None, fmt!("only CAP_SYS_ADMIN may do that"));
            return Err(EPERM);
        }
        match command {
            CONNECT => connect(&driver.into(), info),
            DISCONNECT => disconnect(&driver, info),
            RECONFIGURE => reconfigure(&driver, info),
            _ => Err(EOPNOTSUPP),
        }
    }
}

/// Reports a refusal to the sender of the message and to the log. Returns the errno.
fn refuse(info: &Info<'_>, disk: &Disk, what: &str, refusal: &Refusal) -> Error {
    info.refuse(None, fmt!("{refusal}"));
    disk.data().info().refuse(disk, what, refusal)
}

/// Returns the device that the message names. Fails with `EINVAL` if there is none.
fn device(driver: &Driver, info: &Info<'_>) -> Result<ARef<Disk>> {
    let index = info.require(INDEX)?;
    driver.find(index.u32()?).ok_or_else(|| {
        info.refuse(Some(index), fmt!("there is no such device"));
        EINVAL
    })
}

fn number(info: &Info<'_>, attr: c_int) -> Result<Option<u64>> {
    info.attr(attr).map(|attr| attr.u64()).transpose()
}

/// Returns the sockets in the message without a number of a connection, and the changes of
/// connections that have one.
fn sockets(info: &Info<'_>) -> Result<(KVec<Socket>, KVec<ConnectionChange>)> {
    let Some(list) = info.attr(SOCKETS) else {
        return Ok((KVec::new(), KVec::new()));
    };
    let count = list.items().count();
    let mut sockets = KVec::with_capacity(count.min(MAX_CONNECTIONS), GFP_KERNEL)?;
    let mut connections: KVec<ConnectionChange> = KVec::new();
    for item in list.items() {
        if item.kind() != SOCK_ITEM {
            info.refuse(Some(item), fmt!("not a socket item"));
            return Err(EINVAL);
        }
        let item = item.parse(&SOCK_POLICY, info).map_err(|_| EINVAL)?;
        let socket = match item.attr(SOCK_FD) {
            Some(fd) => Some(socket(fd).inspect_err(|_| {
                info.refuse(
                    Some(fd),
                    fmt!("the descriptor is no TCP or AF_UNIX stream socket"),
                )
            })?),
            None => None,
        };
        match (item.attr(SOCK_INDEX), socket) {
            (Some(attr), socket) => {
                let index = attr.u32()?;
                if connections.iter().any(|one| one.index == index) {
                    info.refuse(Some(attr), fmt!("connection {index} is given twice"));
                    return Err(EINVAL);
                }
                connections.push(ConnectionChange { index, socket }, GFP_KERNEL)?;
            }
            (None, Some(socket)) => sockets.push(socket, GFP_KERNEL)?,
            (None, None) => {}
        }
    }
    if !sockets.is_empty() && !connections.is_empty() {
        info.refuse(
            Some(list),
            fmt!("give an index for all sockets or for none"),
        );
        return Err(EINVAL);
    }
    Ok((sockets, connections))
}

fn socket(fd: Attr<'_>) -> Result<Socket> {
    let fd = fd.u32()?;
    i32::try_from(fd).map_err(|_| EBADF)?;
    Socket::from_fd(fd)
}

/// Returns the changes that the message requests, with its sockets.
fn changes(info: &Info<'_>) -> Result<Changes> {
    let (sockets, connections) = sockets(info)?;
    Ok(Changes {
        size: number(info, SIZE_BYTES)?,
        block_size: number(info, BLOCK_SIZE_BYTES)?,
        timeout: number(info, TIMEOUT)?,
        dead_conn_timeout: number(info, DEAD_CONN_TIMEOUT)?,
        client: number(info, CLIENT_FLAGS)?.map(ClientFlags::new),
        sockets,
        connections,
    })
}

/// Returns the backend identifier in the message, up to the first NUL.
fn backend<'a>(info: &Info<'a>) -> Option<&'a [u8]> {
    let name = info.attr(BACKEND_IDENTIFIER)?.string();
    name.split(|byte| *byte == 0).next()
}

fn copy(bytes: &[u8]) -> Result<Arc<KVec<u8>>> {
    let mut copy = KVec::new();
    copy.extend_from_slice(bytes, GFP_KERNEL)?;
    Ok(Arc::new(copy, GFP_KERNEL)?)
}

fn connect(driver: &Arc<Driver>, info: &Info<'_>) -> Result {
    let index = info
        .attr(INDEX)
        .map(|attr| Ok::<_, Error>((attr, attr.u32()?)));
    let index = index.transpose()?;
    if let Some((attr, index)) = index {
        if index >= driver.minors().devices() {
            info.refuse(
                Some(attr),
                fmt!(
                    "the index is too large: at most {}",
                    driver.minors().devices() - 1
                ),
            );
            return Err(EINVAL);
        }
    }
    info.require(SOCKETS)?;
    info.require(SIZE_BYTES)?;

    let mut changes = changes(info)?;
    let params = changes.apply(Params::default()).inspect_err(|_| {
        info.refuse(None, fmt!("a value is out of range"));
    })?;
    let flags = number(info, SERVER_FLAGS)?.map_or(Flags::default(), |f| Flags::new(f as u32));
    let params = params.with_flags(flags);
    let backend = backend(info).map(copy).transpose()?;

    if !changes.connections.is_empty() {
        info.refuse(
            info.attr(SOCKETS),
            fmt!("connect numbers the connections itself: give no index"),
        );
        return Err(EINVAL);
    }
    let sockets = core::mem::take(&mut changes.sockets);
    if sockets.is_empty() {
        info.refuse(info.attr(SOCKETS), fmt!("give at least one socket"));
        return Err(EINVAL);
    }
    let setup =
        Setup::with_sockets(params, ARef::from(&**current!()), sockets).map_err(|refusal| {
            info.refuse(info.attr(SOCKETS), fmt!("{refusal}"));
            refusal.errno()
        })?;
    if setup.socket_count() > 1 && !flags.multi_conn() {
        info.refuse(
            info.attr(SOCKETS),
            fmt!("the server does not support multiple connections: give one"),
        );
        setup.release();
        return Err(EINVAL);
    }

    let (disk, claimed) = match index {
        Some((_, index)) => claim_at(driver, info, index, setup)?,
        None => {
            let hw_queues = setup.socket_count() as u32;
            driver.claim_any(setup, hw_queues).inspect_err(|error| {
                if *error == ENOSPC {
                    info.refuse(
                        None,
                        fmt!(
                            "{} devices are all there can be: disconnect one",
                            driver.minors().devices()
                        ),
                    );
                }
            })?
        }
    };
    let (guard, setup) = claimed;
    if let Err(error) = guard.start(setup, Origin::Netlink { backend }) {
        info.refuse(None, fmt!("no session was started: see the kernel's log"));
        driver.put(disk);
        return Err(error);
    }

    // The session runs even if the reply cannot be sent.
    let _ = info.new_reply(CONNECT, attr_size(4)).and_then(|mut reply| {
        reply.put_u32(INDEX, disk.data().info().index())?;
        reply.reply(info)
    });
    Ok(())
}

/// Claims device `index` for a session. Adds the device if there is none. Context: may sleep.
fn claim_at(
    driver: &Arc<Driver>,
    info: &Info<'_>,
    index: u32,
    mut setup: Setup,
) -> Result<(ARef<Disk>, ClaimedDevice)> {
    loop {
        let hw_queues = setup.socket_count() as u32;
        let (disk, made) = match driver.find_or_add(index, hw_queues) {
            Ok(found) => found,
            Err(error) => {
                setup.release();
                return Err(error);
            }
        };
        match disk.data().claim_patiently(&disk, setup, made) {
            Ok(claimed) => return Ok((disk, claimed)),
            Err((Refusal::Removing, back)) => {
                setup = back;
                driver.put(disk);
            }
            Err((refusal, setup)) => {
                setup.release();
                return Err(refuse(info, &disk, "NBD_CMD_CONNECT", &refusal));
            }
        }
    }
}

fn disconnect(driver: &Driver, info: &Info<'_>) -> Result {
    let disk = device(driver, info)?;
    disk.data()
        .disconnect()
        .map_err(|refusal| refuse(info, &disk, "NBD_CMD_DISCONNECT", &refusal))?;
    driver.put(disk);
    Ok(())
}

fn reconfigure(driver: &Driver, info: &Info<'_>) -> Result {
    let disk = device(driver, info)?;
    disk.data()
        .reconfigure(&disk, backend(info), changes(info)?)
        .map_err(|refusal| refuse(info, &disk, "NBD_CMD_RECONFIGURE", &refusal))
}
