// SPDX-License-Identifier: GPL-2.0

//! The generic netlink family `nbd`, as `Documentation/netlink/specs/nbd.yaml` describes it.

use crate::error::{Error, Kind, Result};
use crate::export::Flags;
use crate::session::{Connection, ConnectionState, Session, SessionState};
use neli::attr::Attribute;
use neli::consts::nl::{NlmF, NlmsgerrAttr};
use neli::consts::socket::NlFamily;
use neli::err::{RouterError, SocketError};
use neli::genl::{
    AttrTypeBuilder, GenlAttrHandle, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder,
    NoUserHeader,
};
use neli::nl::NlPayload;
use neli::router::synchronous::NlRouter;
use neli::socket::synchronous::NlSocketHandle;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;
use neli::{Size, ToBytes};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const FAMILY: &str = "nbd";
const GROUP: &str = "nbd_mc_group";
const VERSION: u8 = 1;

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;
const CMD_LINK_DEAD: u8 = 4;
const CMD_STATUS: u8 = 5;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_DEVICE_LIST: u16 = 9;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const ATTR_FIRST_CONNECTION: u16 = 11;
const ATTR_SESSION: u16 = 12;

const NOBUFS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();

const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;
const SOCK_INDEX: u16 = 2;

const DEVICE_ITEM: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

const SESSION_STATE: u16 = 1;
const SESSION_AGE_MS: u16 = 4;
const SESSION_CONNECTIONS: u16 = 5;
const SESSION_CONNECTION: u16 = 6;

const CONNECTION_INDEX: u16 = 1;
const CONNECTION_STATE: u16 = 2;
const CONNECTION_GENERATION: u16 = 3;
const CONNECTION_LOCAL: u16 = 4;
const CONNECTION_PEER: u16 = 5;
const CONNECTION_REQUESTS: u16 = 8;
const CONNECTION_IN_FLIGHT: u16 = 9;
const CONNECTION_REPLAYED: u16 = 11;
const CONNECTION_SENT: u16 = 12;
const CONNECTION_RECEIVED: u16 = 13;
const CONNECTION_LAST_ERROR: u16 = 14;
const CONNECTION_AGE_MS: u16 = 15;

type Header = Genlmsghdr<u8, u16>;
type Attr = Nlattr<u16, Buffer>;
type Attrs<'a> = GenlAttrHandle<'a, u16>;

/// A message could not be put together.
fn unbuildable(e: impl std::fmt::Display) -> Error {
    Error::new(Kind::Failed, format!("netlink: {e}"))
}

fn attr<P: Size + ToBytes>(attr_type: u16, payload: P) -> Result<Attr> {
    NlattrBuilder::default()
        .nla_type(
            AttrTypeBuilder::default()
                .nla_type(attr_type)
                .build()
                .map_err(unbuildable)?,
        )
        .nla_payload(payload)
        .build()
        .map_err(unbuildable)
}

fn nest(attr_type: u16, inside: &[Attr]) -> Result<Attr> {
    inside.iter().try_fold(attr(attr_type, ())?, |outer, a| {
        outer.nest(a).map_err(unbuildable)
    })
}

/// What the kernel has answered, or why it has not.
fn refused<T, P>(error: RouterError<T, P>) -> Error {
    let RouterError::Nlmsgerr(answer) = error else {
        return Error::new(Kind::Failed, format!("netlink: {}", words(&error)));
    };
    let errno = rustix::io::Errno::from_raw_os_error(-*answer.error());
    let reason = answer.ext_ack().iter().find_map(|a| {
        (*a.nla_type().nla_type() == NlmsgerrAttr::Msg)
            .then(|| a.get_payload_as_with_len::<String>().ok())
            .flatten()
    });
    let kernel = match reason {
        Some(reason) => format!("the kernel refuses: {reason}"),
        None => format!("the kernel refuses: {}", std::io::Error::from(errno)),
    };
    let error = Error::new(Kind::Failed, kernel);
    match errno {
        rustix::io::Errno::PERM => error.hint("run it as root"),
        rustix::io::Errno::BUSY => error.hint("nbdctl list shows the devices"),
        _ => error,
    }
}

fn words<T, P>(error: &RouterError<T, P>) -> String {
    match error {
        RouterError::Msg(e) => e.to_string(),
        RouterError::Io(e) => e.to_string(),
        RouterError::De(e) => e.to_string(),
        RouterError::Socket(e) => e.to_string(),
        RouterError::Nlmsgerr(e) => e.to_string(),
        RouterError::BadSeqOrPid(_) => "an answer to another question".into(),
        RouterError::NoAck | RouterError::UnexpectedAck => "an answer out of turn".into(),
        RouterError::ClosedChannel => "no answer".into(),
    }
}

/// What [`Driver::connect`] is to make.
#[derive(Debug)]
pub struct NewSession<'a> {
    /// None takes any idle device.
    pub index: Option<u32>,
    pub size: u64,
    pub block_size: u64,
    pub flags: Flags,
    /// In seconds; 0 is no limit.
    pub timeout: u64,
    /// In seconds.
    pub dead_conn_timeout: u64,
    pub backend: &'a str,
    pub sockets: &'a [OwnedFd],
}

/// An item of a reconfiguration.
#[derive(Debug)]
pub enum SocketChange<'a> {
    /// In the place of a connection that is dead; dropped if none is.
    Revive(&'a OwnedFd),
    /// The socket of the connection of this number, which is a new one if it is the next free
    /// number.
    Place(u32, &'a OwnedFd),
    /// The connection of this number is to go.
    Remove(u32),
}

/// What [`Driver::reconfigure`] is to change.
#[derive(Debug)]
pub struct Changes<'a> {
    pub size: Option<u64>,
    /// What the session has; the kernel refuses another one.
    pub backend: Option<&'a str>,
    pub sockets: Vec<SocketChange<'a>>,
}

/// The driver, asked and told.
pub struct Driver {
    router: NlRouter,
    family: u16,
}

impl Driver {
    /// Fails if there is no driver. The kernel tries to load it, if it finds it by the name of the
    /// family.
    pub fn open() -> Result<Self> {
        let (router, _) =
            NlRouter::connect(NlFamily::Generic, None, Groups::empty()).map_err(refused)?;
        router.enable_ext_ack(true).map_err(refused)?;
        let family = router.resolve_genl_family(FAMILY).map_err(|_| {
            Error::new(Kind::Driver, "the nbd driver is not loaded").hint("modprobe nbd")
        })?;
        Ok(Self { router, family })
    }

    fn send(&self, command: u8, attrs: Vec<Attr>) -> Result<Vec<Header>> {
        let message = GenlmsghdrBuilder::<u8, u16, NoUserHeader>::default()
            .cmd(command)
            .version(VERSION)
            .attrs(attrs.into_iter().collect::<GenlBuffer<_, _>>())
            .build()
            .map_err(unbuildable)?;
        let replies = self
            .router
            .send::<u16, Header, u16, Header>(self.family, NlmF::ACK, NlPayload::Payload(message))
            .map_err(refused)?;
        let mut answers = Vec::new();
        for reply in replies {
            if let NlPayload::Payload(header) = reply.map_err(refused)?.nl_payload() {
                answers.push(header.clone());
            }
        }
        Ok(answers)
    }

    /// Starts a session and returns the number of its device.
    pub fn connect(&self, new: &NewSession<'_>) -> Result<u32> {
        let mut attrs = vec![
            attr(ATTR_SIZE_BYTES, new.size)?,
            attr(ATTR_BLOCK_SIZE_BYTES, new.block_size)?,
            attr(ATTR_SERVER_FLAGS, new.flags.0)?,
            attr(ATTR_TIMEOUT, new.timeout)?,
            attr(ATTR_DEAD_CONN_TIMEOUT, new.dead_conn_timeout)?,
            attr(ATTR_BACKEND_IDENTIFIER, new.backend)?,
        ];
        if let Some(index) = new.index {
            attrs.push(attr(ATTR_INDEX, index)?);
        }
        let changes: Vec<_> = new.sockets.iter().map(SocketChange::Revive).collect();
        attrs.push(sockets(&changes)?);
        let answers = self.send(CMD_CONNECT, attrs)?;
        answers
            .iter()
            .find_map(|a| u32_of(&a.attrs().get_attr_handle(), ATTR_INDEX))
            .ok_or_else(|| Error::new(Kind::Failed, "the kernel does not say which device it took"))
    }

    pub fn disconnect(&self, index: u32) -> Result<()> {
        self.send(CMD_DISCONNECT, vec![attr(ATTR_INDEX, index)?])
            .map(drop)
    }

    pub fn reconfigure(&self, index: u32, changes: &Changes<'_>) -> Result<()> {
        let mut attrs = vec![attr(ATTR_INDEX, index)?];
        if let Some(size) = changes.size {
            attrs.push(attr(ATTR_SIZE_BYTES, size)?);
        }
        if let Some(backend) = changes.backend {
            attrs.push(attr(ATTR_BACKEND_IDENTIFIER, backend)?);
        }
        if !changes.sockets.is_empty() {
            attrs.push(sockets(&changes.sockets)?);
        }
        self.send(CMD_RECONFIGURE, attrs).map(drop)
    }

    /// The numbers of all devices, in order, and whether each has a session.
    pub fn devices(&self) -> Result<Vec<(u32, bool)>> {
        let mut devices = Vec::new();
        for answer in self.send(CMD_STATUS, Vec::new())? {
            let attrs = answer.attrs().get_attr_handle();
            let Ok(list) = attrs.get_nested_attributes::<u16>(ATTR_DEVICE_LIST) else {
                continue;
            };
            for item in list
                .iter()
                .filter(|a| *a.nla_type().nla_type() == DEVICE_ITEM)
            {
                let Ok(device) = item.get_attr_handle::<u16>() else {
                    continue;
                };
                let connected = device
                    .get_attr_payload_as::<u8>(DEVICE_CONNECTED)
                    .unwrap_or(0);
                if let Some(index) = u32_of(&device, DEVICE_INDEX) {
                    devices.push((index, connected != 0));
                }
            }
        }
        devices.sort_unstable();
        Ok(devices)
    }

    /// The session of a device. None if it has none, or if the driver does not tell.
    pub fn session(&self, index: u32) -> Result<Option<Session>> {
        let mut session: Option<Session> = None;
        loop {
            let first = session.as_ref().map_or(0, Session::next_connection);
            let answers = self.send(
                CMD_STATUS,
                vec![
                    attr(ATTR_INDEX, index)?,
                    attr(ATTR_FIRST_CONNECTION, first)?,
                ],
            )?;
            let Some(part) = answers.iter().find_map(parse_session) else {
                return Ok(session);
            };
            let complete = part.connections.is_empty();
            match &mut session {
                Some(whole) => whole.connections.extend(part.connections),
                None => session = Some(part),
            }
            if complete || session.as_ref().is_some_and(Session::is_complete) {
                return Ok(session);
            }
        }
    }

    /// Hears of all devices from now on.
    pub fn listen(&self) -> Result<Listener> {
        let group = self
            .router
            .resolve_nl_mcast_group(FAMILY, GROUP)
            .map_err(|e| Error::new(Kind::Driver, format!("netlink: {}", words(&e))))?;
        let socket = NlSocketHandle::connect(NlFamily::Generic, None, Groups::empty())
            .map_err(unbuildable)?;
        socket
            .add_mcast_membership(Groups::new_groups(&[group]))
            .map_err(unbuildable)?;
        Ok(Listener { socket })
    }
}

fn sockets(changes: &[SocketChange<'_>]) -> Result<Attr> {
    let number = |fd: &OwnedFd| {
        u32::try_from(fd.as_raw_fd())
            .map_err(unbuildable)
            .and_then(|fd| attr(SOCK_FD, fd))
    };
    let mut items = Vec::new();
    for change in changes {
        let inside = match change {
            SocketChange::Revive(fd) => vec![number(fd)?],
            SocketChange::Place(index, fd) => vec![number(fd)?, attr(SOCK_INDEX, *index)?],
            SocketChange::Remove(index) => vec![attr(SOCK_INDEX, *index)?],
        };
        items.push(nest(SOCK_ITEM, &inside)?);
    }
    nest(ATTR_SOCKETS, &items)
}

fn u32_of(attrs: &Attrs<'_>, attr_type: u16) -> Option<u32> {
    attrs.get_attr_payload_as::<u32>(attr_type).ok()
}

fn u64_of(attrs: &Attrs<'_>, attr_type: u16) -> Option<u64> {
    attrs.get_attr_payload_as::<u64>(attr_type).ok()
}

fn string_of(attrs: &Attrs<'_>, attr_type: u16) -> Option<String> {
    attrs.get_attr_payload_as_with_len::<String>(attr_type).ok()
}

fn parse_session(answer: &Header) -> Option<Session> {
    let attrs = answer.attrs().get_attr_handle();
    let inside = attrs.get_nested_attributes::<u16>(ATTR_SESSION).ok()?;
    let connections = inside
        .iter()
        .filter(|a| *a.nla_type().nla_type() == SESSION_CONNECTION)
        .filter_map(|a| parse_connection(&a.get_attr_handle::<u16>().ok()?))
        .collect();
    Some(Session {
        state: SessionState::from_number(u32_of(&inside, SESSION_STATE)?),
        age_ms: u64_of(&inside, SESSION_AGE_MS),
        total: u32_of(&inside, SESSION_CONNECTIONS)?,
        flags: u64_of(&attrs, ATTR_SERVER_FLAGS).map(Flags),
        timeout: u64_of(&attrs, ATTR_TIMEOUT),
        dead_conn_timeout: u64_of(&attrs, ATTR_DEAD_CONN_TIMEOUT),
        connections,
    })
}

fn parse_connection(attrs: &Attrs<'_>) -> Option<Connection> {
    Some(Connection {
        index: u32_of(attrs, CONNECTION_INDEX)?,
        state: ConnectionState::from_number(u32_of(attrs, CONNECTION_STATE)?),
        generation: u64_of(attrs, CONNECTION_GENERATION),
        local: string_of(attrs, CONNECTION_LOCAL),
        peer: string_of(attrs, CONNECTION_PEER),
        requests: u64_of(attrs, CONNECTION_REQUESTS),
        in_flight: u32_of(attrs, CONNECTION_IN_FLIGHT),
        replayed: u64_of(attrs, CONNECTION_REPLAYED),
        sent_bytes: u64_of(attrs, CONNECTION_SENT),
        received_bytes: u64_of(attrs, CONNECTION_RECEIVED),
        last_error: string_of(attrs, CONNECTION_LAST_ERROR),
        age_ms: u64_of(attrs, CONNECTION_AGE_MS),
    })
}

/// What the driver tells everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection of this device has died.
    LinkDead(u32),
    /// There were more events than the socket can hold: any may have been among them.
    Lost,
}

/// Receives events.
pub struct Listener {
    socket: NlSocketHandle,
}

impl Listener {
    /// The events of a message. Waits for one: ask first whether it can be read.
    pub fn receive(&self) -> Result<Vec<Event>> {
        let messages = match self.socket.recv::<u16, Header>() {
            Ok((messages, _)) => messages,
            Err(SocketError::Io(e)) if e.raw_os_error() == Some(NOBUFS) => {
                return Ok(vec![Event::Lost]);
            }
            Err(e) => return Err(unbuildable(e)),
        };
        let mut events = Vec::new();
        for message in messages {
            // A message that is not understood is one of a newer driver.
            let Ok(message) = message else { break };
            let NlPayload::Payload(header) = message.nl_payload() else {
                continue;
            };
            let Some(index) = u32_of(&header.attrs().get_attr_handle(), ATTR_INDEX) else {
                continue;
            };
            if *header.cmd() == CMD_LINK_DEAD {
                events.push(Event::LinkDead(index));
            }
        }
        Ok(events)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: The socket is open as long as `self` lives, and neli lends it as a number only.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}
