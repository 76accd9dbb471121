// SPDX-License-Identifier: GPL-2.0

//! What goes over the wire, and the flags that say what a server can do.
//!
//! C header: [`include/uapi/linux/nbd.h`](srctree/include/uapi/linux/nbd.h)

use crate::kernel::block::{
    mq::{Op, Operations, StartedRequest},
    BlkStatus,
    SECTOR_SHIFT, //
};
use kernel::prelude::*;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const CMD_READ: u32 = 0;
const CMD_WRITE: u32 = 1;
const CMD_DISC: u32 = 2;
const CMD_FLUSH: u32 = 3;
const CMD_TRIM: u32 = 4;
const CMD_WRITE_ZEROES: u32 = 6;
const CMD_FLAG_FUA: u32 = 1 << 16;
const CMD_FLAG_NO_HOLE: u32 = 1 << 17;

/// Length of a request's header in bytes.
pub(crate) const REQUEST_LEN: usize = 28;
/// Length of a reply's header in bytes.
pub(crate) const REPLY_LEN: usize = 16;

/// What the server can do, as it said in the negotiation.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flags(u32);

impl Flags {
    pub(crate) const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// What the flags are called that say something of a disk.
    pub(crate) const NAMES: [(&'static str, u32); 8] = [
        ("HAS_FLAGS", 1 << 0),
        ("READ_ONLY", 1 << 1),
        ("SEND_FLUSH", 1 << 2),
        ("SEND_FUA", 1 << 3),
        ("ROTATIONAL", 1 << 4),
        ("SEND_TRIM", 1 << 5),
        ("SEND_WRITE_ZEROES", 1 << 6),
        ("CAN_MULTI_CONN", 1 << 8),
    ];

    pub(crate) const fn raw(self) -> u32 {
        self.0
    }

    pub(crate) fn read_only(self) -> bool {
        self.0 & (1 << 1) != 0
    }

    pub(crate) fn flush(self) -> bool {
        self.0 & (1 << 2) != 0
    }

    pub(crate) fn fua(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    pub(crate) fn rotational(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    pub(crate) fn trim(self) -> bool {
        self.0 & (1 << 5) != 0
    }

    pub(crate) fn write_zeroes(self) -> bool {
        self.0 & (1 << 6) != 0
    }

    pub(crate) fn multi_conn(self) -> bool {
        self.0 & (1 << 8) != 0
    }
}

/// What the client wants of its device.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ClientFlags(u64);

impl ClientFlags {
    pub(crate) const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The device goes away with its session.
    pub(crate) fn destroy_on_disconnect(self) -> bool {
        self.0 & (1 << 0) != 0
    }

    /// The session ends when the last opener closes the device.
    pub(crate) fn disconnect_on_close(self) -> bool {
        self.0 & (1 << 1) != 0
    }
}

fn encode(kind: u32, cookie: u64, from: u64, len: u32) -> [u8; REQUEST_LEN] {
    let mut header = [0; REQUEST_LEN];
    let fields: [&[u8]; 5] = [
        &REQUEST_MAGIC.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &from.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    for (to, from) in header.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    header
}

/// The header of the message that ends a connection. It has no reply.
pub(crate) fn encode_disconnect() -> [u8; REQUEST_LEN] {
    encode(CMD_DISC, 0, 0, 0)
}

/// Whether the protocol has a command for `op`.
pub(crate) fn is_supported(op: Op) -> bool {
    op != Op::Other
}

/// The header of a published request.
pub(crate) fn encode_request<T: Operations>(rq: &StartedRequest<T>) -> [u8; REQUEST_LEN] {
    let op = rq.op();
    let mut kind = match op {
        Op::Read | Op::Other => CMD_READ,
        Op::Write => CMD_WRITE,
        Op::Flush => CMD_FLUSH,
        Op::Discard => CMD_TRIM,
        Op::WriteZeroes => CMD_WRITE_ZEROES,
    };
    if rq.is_fua() {
        kind |= CMD_FLAG_FUA;
    }
    if op == Op::WriteZeroes && rq.is_nounmap() {
        kind |= CMD_FLAG_NO_HOLE;
    }
    let (from, len) = if op == Op::Flush {
        (0, 0)
    } else {
        (rq.sector() << SECTOR_SHIFT, rq.bytes())
    };
    encode(kind, Cookie::of(rq).into_wire(), from, len)
}

/// Length of a request on the wire, with its payload, in bytes.
pub(crate) fn wire_len<T: Operations>(rq: &StartedRequest<T>) -> usize {
    REQUEST_LEN
        + match rq.op() {
            Op::Write => rq.bytes() as usize,
            _ => 0,
        }
}

/// Tells which request a reply is for: the tag finds it, and the attempt tells a reply to an
/// earlier use of the tag from one to this.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie {
    pub(crate) tag: u32,
    pub(crate) attempt: u32,
}

impl Cookie {
    /// The cookie of a published request.
    pub(crate) fn of<T: Operations>(rq: &StartedRequest<T>) -> Self {
        Self {
            tag: rq.unique_tag(),
            attempt: rq.cookie(),
        }
    }

    pub(crate) fn into_wire(self) -> u64 {
        u64::from(self.attempt) << 32 | u64::from(self.tag)
    }

    fn from_wire(wire: u64) -> Self {
        Self {
            tag: wire as u32,
            attempt: (wire >> 32) as u32,
        }
    }
}

/// The header of a reply.
pub(crate) struct Reply {
    pub(crate) cookie: Cookie,
    /// `Ok` means that a read's payload follows.
    pub(crate) result: Result<(), BlkStatus>,
}

impl Reply {
    /// Fails with `EPROTO` if this is no reply.
    pub(crate) fn decode(header: &[u8; REPLY_LEN]) -> Result<Self> {
        let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = *header;
        if u32::from_be_bytes([m0, m1, m2, m3]) != REPLY_MAGIC {
            return Err(EPROTO);
        }
        Ok(Self {
            cookie: Cookie::from_wire(u64::from_be_bytes(cookie)),
            result: match u32::from_be_bytes([e0, e1, e2, e3]) {
                0 => Ok(()),
                error => Err(status_of(error)),
            },
        })
    }
}

/// The status for an error of the protocol, whose numbers are Linux's on x86.
fn status_of(error: u32) -> BlkStatus {
    match error {
        12 => BlkStatus::from_error(ENOMEM),
        22 => BlkStatus::from_error(EINVAL),
        28 => BlkStatus::from_error(ENOSPC),
        95 => BlkStatus::from_error(EOPNOTSUPP),
        108 => BlkStatus::from_error(ENODEV),
        // EPERM, EIO and EOVERFLOW have no status of their own.
        _ => BlkStatus::IOERR,
    }
}
