// SPDX-License-Identifier: GPL-2.0

//! The wire format of the protocol, and the flags of servers and clients.
//!
//! C header: [`include/uapi/linux/nbd.h`](srctree/include/uapi/linux/nbd.h)

use kernel::{
    block::{
        mq::{
            request::Flag,
            Op,
            Operations,
            Publish,
            StartedRequest, //
        },
        BlkStatus,
        SECTOR_SHIFT, //
    },
    prelude::*, //
};

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

/// The error of the protocol that says that the server is shutting down.
const ESHUTDOWN: u32 = 108;

/// Length of the header of a request, in bytes.
pub(crate) const REQUEST_LEN: usize = 28;
/// Length of the header of a reply, in bytes.
pub(crate) const REPLY_LEN: usize = 16;

/// The flags of the server from the negotiation.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flags(u32);

impl Flags {
    pub(crate) const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The names of the flags that concern a disk, in the order of the C driver.
    pub(crate) const NAMES: [(&'static str, u32); 8] = [
        ("HAS_FLAGS", 1 << 0),
        ("READ_ONLY", 1 << 1),
        ("SEND_FLUSH", 1 << 2),
        ("SEND_FUA", 1 << 3),
        ("SEND_TRIM", 1 << 5),
        ("SEND_WRITE_ZEROES", 1 << 6),
        ("ROTATIONAL", 1 << 4),
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

/// The flags of the client.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ClientFlags(u64);

impl ClientFlags {
    pub(crate) const fn new(raw: u64) -> Self {
        Self(raw)
    }

    pub(crate) const fn raw(self) -> u64 {
        self.0
    }

    /// Whether the device is removed when its session ends.
    pub(crate) fn destroy_on_disconnect(self) -> bool {
        self.0 & (1 << 0) != 0
    }

    /// Returns the flags with nothing but [`Self::destroy_on_disconnect`].
    pub(crate) fn only_destroy(self) -> Self {
        Self(self.0 & 1 << 0)
    }

    /// Whether the session ends when the last opener closes the device.
    pub(crate) fn disconnect_on_close(self) -> bool {
        self.0 & (1 << 1) != 0
    }
}

/// Puts `field` at the start of `room`, and returns what follows it.
fn put<const N: usize>(room: &mut [u8], field: [u8; N]) -> &mut [u8] {
    match room.split_first_chunk_mut() {
        Some((start, rest)) => {
            *start = field;
            rest
        }
        None => &mut [],
    }
}

fn encode(kind: u32, cookie: u64, from: u64, len: u32) -> [u8; REQUEST_LEN] {
    let mut header = [0; REQUEST_LEN];
    let room = put(&mut header, REQUEST_MAGIC.to_be_bytes());
    let room = put(room, kind.to_be_bytes());
    let room = put(room, cookie.to_be_bytes());
    let room = put(room, from.to_be_bytes());
    put(room, len.to_be_bytes());
    header
}

/// Encodes the message that ends a connection. It has no reply.
pub(crate) fn encode_disconnect() -> [u8; REQUEST_LEN] {
    encode(CMD_DISC, 0, 0, 0)
}

/// Whether the protocol has a command for `op`.
pub(crate) fn is_supported(op: Op) -> bool {
    op != Op::Other
}

/// Returns the command for `op`, with its flags.
fn kind_of(op: Op, fua: bool, no_hole: bool) -> u32 {
    let mut kind = match op {
        Op::Read | Op::Other => CMD_READ,
        Op::Write => CMD_WRITE,
        Op::Flush => CMD_FLUSH,
        Op::Discard => CMD_TRIM,
        Op::WriteZeroes => CMD_WRITE_ZEROES,
    };
    if fua {
        kind |= CMD_FLAG_FUA;
    }
    if no_hole {
        kind |= CMD_FLAG_NO_HOLE;
    }
    kind
}

/// Returns the offset and the length of the data of `op`, in bytes.
fn range_of(op: Op, sector: u64, bytes: u32) -> (u64, u32) {
    match op {
        // The block layer does not define the sector of a flush.
        Op::Flush => (0, 0),
        _ => (sector << SECTOR_SHIFT, bytes),
    }
}

/// Encodes the header of a request that will be published under the number `attempt`.
pub(crate) fn encode_request<T: Operations>(
    rq: &StartedRequest<T>,
    attempt: u32,
) -> [u8; REQUEST_LEN] {
    let tag = rq.unique_tag();
    let op = rq.op();
    let flags = rq.flags();
    let kind = kind_of(
        op,
        flags.contains(Flag::ForcedUnitAccess),
        op == Op::WriteZeroes && flags.contains(Flag::NoUnmap),
    );
    let (from, len) = range_of(op, rq.sector(), rq.bytes());
    encode(kind, Cookie { tag, attempt }.into_wire(), from, len)
}

/// Returns the length of a request on the wire with its payload, in bytes.
pub(crate) fn wire_len<T: Operations>(rq: &StartedRequest<T>) -> usize {
    REQUEST_LEN + payload_len(rq.op(), || rq.bytes())
}

/// Returns the number of bytes that follow the header of a request.
fn payload_len(op: Op, bytes: impl FnOnce() -> u32) -> usize {
    match op {
        Op::Write => bytes() as usize,
        _ => 0,
    }
}

/// Identifies the request of a reply. The tag finds the request, and the attempt distinguishes this
/// use of the tag from earlier ones.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie {
    pub(crate) tag: u32,
    pub(crate) attempt: u32,
}

impl Cookie {
    /// Returns the cookie of a published request.
    pub(crate) fn of<T: Publish>(rq: &StartedRequest<T>) -> Self {
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
    /// If this is `Ok` and the request is a read, its payload follows.
    pub(crate) result: Result<(), Failure>,
}

/// Why a server has not served a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// `NBD_ESHUTDOWN`: the server is shutting down and wants the client to disconnect. This says
    /// nothing about the request.
    ShuttingDown,
    /// The request has failed.
    Status(BlkStatus),
}

impl Reply {
    /// Decodes the header of a reply. Fails with `EPROTO` if it is none.
    pub(crate) fn decode(header: &[u8; REPLY_LEN]) -> Result<Self> {
        let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = *header;
        if u32::from_be_bytes([m0, m1, m2, m3]) != REPLY_MAGIC {
            return Err(EPROTO);
        }
        Ok(Self {
            cookie: Cookie::from_wire(u64::from_be_bytes(cookie)),
            result: match u32::from_be_bytes([e0, e1, e2, e3]) {
                0 => Ok(()),
                ESHUTDOWN => Err(Failure::ShuttingDown),
                error => Err(Failure::Status(status_of(error))),
            },
        })
    }
}

/// Converts an error of the protocol, whose numbers are those of Linux on x86.
fn status_of(error: u32) -> BlkStatus {
    match error {
        12 => BlkStatus::from_error(ENOMEM),
        22 => BlkStatus::from_error(EINVAL),
        28 => BlkStatus::from_error(ENOSPC),
        95 => BlkStatus::from_error(EOPNOTSUPP),
        // EPERM, EIO and EOVERFLOW have no status of their own.
        _ => BlkStatus::IOERR,
    }
}

#[kernel::macros::kunit_tests(nbd_protocol)]
mod tests {
    use super::*;

    const OPS: [Op; 5] = [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes];

    fn reply(magic: u32, error: u32, cookie: u64) -> [u8; REPLY_LEN] {
        let mut header = [0; REPLY_LEN];
        let room = put(&mut header, magic.to_be_bytes());
        let room = put(room, error.to_be_bytes());
        put(room, cookie.to_be_bytes());
        header
    }

    #[test]
    fn header_is_as_the_protocol_says() {
        let header = encode(
            0x0102_0304,
            0x1112_1314_1516_1718,
            0x2122_2324_2526_2728,
            0x3132_3334,
        );
        assert_eq!(
            header,
            [
                0x25, 0x60, 0x95, 0x13, // magic
                0x01, 0x02, 0x03, 0x04, // flags and command
                0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // cookie
                0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, // from
                0x31, 0x32, 0x33, 0x34, // length
            ]
        );
    }

    #[test]
    fn disconnect_is_as_the_protocol_says() {
        let header = encode_disconnect();
        assert!(header.starts_with(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2]));
        assert!(header.iter().skip(8).all(|byte| *byte == 0));
    }

    #[test]
    fn every_command() {
        let commands = [0, 1, 3, 4, 6];
        for (op, command) in OPS.into_iter().zip(commands) {
            assert!(is_supported(op));
            assert_eq!(kind_of(op, false, false), command);
            assert_eq!(kind_of(op, true, false), command | 1 << 16);
            assert_eq!(kind_of(op, false, true), command | 1 << 17);
            assert_eq!(kind_of(op, true, true), command | 3 << 16);
        }
        assert!(!is_supported(Op::Other));
    }

    #[test]
    fn ranges_are_in_bytes() {
        for op in OPS {
            let (from, len) = range_of(op, 8, 4096);
            match op {
                Op::Flush => assert_eq!((from, len), (0, 0)),
                _ => assert_eq!((from, len), (4096, 4096)),
            }
        }
        // A flush has no offset, whatever the block layer sets.
        assert_eq!(range_of(Op::Flush, u64::MAX, u32::MAX), (0, 0));
        // The last sector of the largest device.
        let last = (i64::MAX as u64 >> SECTOR_SHIFT) - 1;
        let (from, len) = range_of(Op::Read, last, 512);
        assert_eq!(from, last * 512);
        assert!(from.checked_add(len.into()).is_some());
        // The longest discard is longer than 31 bits.
        assert_eq!(range_of(Op::Discard, 0, u32::MAX - 511).1, u32::MAX - 511);
    }

    #[test]
    fn only_writes_have_a_payload() {
        for op in Iterator::chain(OPS.into_iter(), [Op::Other]) {
            for bytes in [0, 512, 32 << 20, u32::MAX] {
                let wanted = if op == Op::Write { bytes as usize } else { 0 };
                assert_eq!(payload_len(op, || bytes), wanted);
            }
        }
    }

    #[test]
    fn cookies_go_round() {
        let numbers = [0, 1, 0xffff, 0x1_0000, 0x8000_0000, 0xdead_beef, u32::MAX];
        for tag in numbers {
            for attempt in numbers {
                let cookie = Cookie { tag, attempt };
                assert!(Cookie::from_wire(cookie.into_wire()) == cookie);
                // Another attempt and another tag are other cookies.
                for other in numbers {
                    let again = Cookie {
                        tag,
                        attempt: other,
                    };
                    assert_eq!((again.into_wire() == cookie.into_wire()), other == attempt);
                    let neighbour = Cookie {
                        tag: other,
                        attempt,
                    };
                    assert_eq!((neighbour.into_wire() == cookie.into_wire()), other == tag);
                }
            }
        }
    }

    #[test]
    fn reply_names_its_request() {
        let sent = Cookie {
            tag: 0x0003_0042,
            attempt: 0xfedc_ba98,
        };
        let header = encode(CMD_WRITE, sent.into_wire(), 0, 512);
        let mut cookie = [0; 8];
        for (to, from) in cookie.iter_mut().zip(header.iter().skip(8)) {
            *to = *from;
        }
        let back = Reply::decode(&reply(REPLY_MAGIC, 0, u64::from_be_bytes(cookie)));
        assert!(back.is_ok_and(|reply| reply.cookie == sent && reply.result.is_ok()));
        // A late reply to an earlier attempt has the tag, but not the cookie.
        let late = Cookie {
            attempt: sent.attempt.wrapping_sub(1),
            ..sent
        };
        let back = Reply::decode(&reply(REPLY_MAGIC, 0, late.into_wire()));
        assert!(back.is_ok_and(|reply| reply.cookie.tag == sent.tag && reply.cookie != sent));
    }

    #[test]
    fn what_is_no_reply() {
        assert!(Reply::decode(&[0; REPLY_LEN]).is_err_and(|error| error == EPROTO));
        assert!(Reply::decode(&[0xff; REPLY_LEN]).is_err());
        for bit in 0..32 {
            assert!(Reply::decode(&reply(REPLY_MAGIC ^ 1 << bit, 0, 0)).is_err());
        }
        // The magic numbers of requests, of structured replies, and in the wrong order.
        for magic in [REQUEST_MAGIC, 0x668e_33ef, REPLY_MAGIC.swap_bytes()] {
            assert!(Reply::decode(&reply(magic, 0, 0)).is_err());
        }
    }

    #[test]
    fn every_error_is_an_error() -> Result {
        let errors = Iterator::chain(0..=4096, [0x8000_0000, 0xffff_fff4, u32::MAX]);
        for error in errors {
            let decoded = Reply::decode(&reply(REPLY_MAGIC, error, 1));
            let status = match decoded.map(|reply| reply.result) {
                Ok(Ok(())) => BlkStatus::OK,
                Ok(Err(Failure::ShuttingDown)) => {
                    assert_eq!(error, 108);
                    continue;
                }
                Ok(Err(Failure::Status(status))) => status,
                Err(_) => return Err(EINVAL),
            };
            assert!(error != 108);
            let wanted = match error {
                0 => BlkStatus::OK,
                12 => BlkStatus::from_error(ENOMEM),
                22 => BlkStatus::from_error(EINVAL),
                28 => BlkStatus::from_error(ENOSPC),
                95 => BlkStatus::NOTSUPP,
                _ => BlkStatus::IOERR,
            };
            assert!(status == wanted);
            assert_eq!((status == BlkStatus::OK), error == 0);
        }
        // Errors that have a status of their own are distinguished.
        for error in [12, 28, 95] {
            assert!(status_of(error) != BlkStatus::IOERR);
        }
        Ok(())
    }

    #[test]
    fn flags_one_by_one() {
        type View = fn(Flags) -> bool;
        let views: [(u32, View); 7] = [
            (1, Flags::read_only),
            (2, Flags::flush),
            (3, Flags::fua),
            (4, Flags::rotational),
            (5, Flags::trim),
            (6, Flags::write_zeroes),
            (8, Flags::multi_conn),
        ];
        for bit in 0..32 {
            let flags = Flags::new(1 << bit);
            assert_eq!(flags.raw(), 1 << bit);
            for (own, view) in views {
                assert_eq!(view(flags), own == bit);
                assert_eq!(view(Flags::new(!(1 << bit))), own != bit);
            }
        }
        assert!(views.iter().all(|(_, view)| !view(Flags::default())));
        // Each name has a bit of its own.
        let all = Flags::NAMES.iter().fold(0, |all, (_, bit)| all | bit);
        assert_eq!(all, 0x17f);
        assert_eq!(Flags::NAMES.len() as u32, all.count_ones());
    }

    #[test]
    fn client_flags_one_by_one() {
        for bit in 0..64 {
            let flags = ClientFlags::new(1 << bit);
            assert_eq!(flags.destroy_on_disconnect(), bit == 0);
            assert_eq!(flags.disconnect_on_close(), bit == 1);
        }
        let none = ClientFlags::default();
        assert!(!none.destroy_on_disconnect() && !none.disconnect_on_close());
    }
}
