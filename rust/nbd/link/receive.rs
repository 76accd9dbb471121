// SPDX-License-Identifier: GPL-2.0

//! The receiver of a link, which reads replies and finishes their requests.

use super::{
    read_ahead::LONG_PAYLOAD,
    Link,
    Partial,
    Receiver,
    Report, //
};
use crate::{
    error::{
        LinkError,
        ReceiveError, //
    },
    protocol::{
        Cookie,
        Failure,
        Reply,
        REPLY_LEN, //
    },
    request::Queue,
    trace, //
};
use kernel::{
    block::{
        mq::{
            Claim,
            Op,
            RequestCursor, //
        },
        BlkStatus, //
    },
    bvec::BvecDest,
    net::{
        data_ready::SkBuff,
        socket::Wait, //
    },
    prelude::*,
    sync::Arc,
    time::{
        jiffies,
        jiffies_since,
        msecs_to_jiffies, //
    }, //
};

/// The pieces of one receive, which are on the stack. They hold 128 KiB of scattered pages and the
/// read-ahead buffer, with some to spare.
const MAX_PIECES: usize = 40;

type Dest<'a> = BvecDest<'a, MAX_PIECES>;

/// The bytes that one receive may wait for.
const MAX_WAITING: usize = 128 << 10;

/// How long a receiver may occupy its worker before other work gets its turn, in milliseconds.
const MAX_RUN_MS: u32 = 250;

/// Why a receiver stops.
enum Stop {
    /// Nothing can be received now.
    Idle,
    /// There may be more to receive, but other work gets its turn.
    Turn,
    /// Nothing can be received any more.
    Broken(LinkError),
}

/// What follows the header of a reply.
enum Parsed {
    Payload(Partial),
    Whole(Received),
}

/// The result of an attempt to receive a reply.
enum Received {
    /// A whole reply.
    Reply {
        /// Whether its payload was so long that the next one may be, too.
        long: bool,
    },
    /// The request of a reply that says that the server is shutting down.
    Refused(Claim<Queue>),
    /// The reply is incomplete.
    Nothing,
}

impl Link {
    /// Receives for the work that [`Self::receive_later`] queues, and passes reports to `report`.
    /// Returns the error when nothing can be received any more, once.
    ///
    /// Context: may sleep, and waits a short time for the peer if more is likely to come.
    pub(crate) fn receive(self: &Arc<Self>, mut report: impl FnMut(Report)) -> Option<LinkError> {
        // There is no receiver after an error, or a callback queues the work again.
        let mut receiver = self.receive_side.lock().take_for_work()?;
        // A callback does not report what it has finished.
        if self.is_watched() {
            report(Report::Finished);
        }
        let direct = self.is_direct();
        match receiver.run(self, direct, report) {
            Stop::Idle => {
                // Nothing is left, so that no callback takes a buffer that was read in part.
                let direct = direct && !receiver.is_long();
                self.receive_side.lock().put_from_work(receiver, direct);
                None
            }
            Stop::Turn => {
                self.receive_side.lock().put_from_work(receiver, false);
                self.receive_later();
                None
            }
            Stop::Broken(error) => {
                self.receive_side.lock().close();
                Some(error)
            }
        }
    }
}

impl Partial {
    /// Creates a reply to a read of which only the header has arrived.
    pub(super) fn new(claim: Claim<Queue>, cookie: Cookie) -> Self {
        Self {
            left: claim.bytes() as usize,
            claim: RequestCursor::new(claim),
            cookie,
        }
    }

    /// Whether so much is missing that it is left to the work.
    pub(super) fn is_long(&self) -> bool {
        self.left > LONG_PAYLOAD
    }

    /// Records that the next `bytes` of the payload have arrived.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.claim.advance(bytes);
        self.left = self.left.saturating_sub(bytes);
    }

    /// Finishes the request, whose payload is complete. Context: does not sleep.
    pub(super) fn finish(self, link: &Link) {
        Receiver::finish(link, self.claim.into_inner(), self.cookie, BlkStatus::OK);
    }
}

impl Receiver {
    /// Whether the rest of a long payload is missing.
    fn is_long(&self) -> bool {
        self.partial.as_ref().is_some_and(Partial::is_long)
    }

    /// Receives replies until there is a reason to stop, and passes reports to `report`. With
    /// `direct`, callbacks take what arrives later, unless it is long.
    fn run(&mut self, link: &Link, direct: bool, mut report: impl FnMut(Report)) -> Stop {
        let start = jiffies();
        let limit = msecs_to_jiffies(MAX_RUN_MS);
        let mut wait = Wait::No;
        let error = loop {
            let next = match self.serve(link, direct, wait) {
                Ok(Received::Refused(claim)) => {
                    report(Report::Refused(claim));
                    Wait::No
                }
                Ok(Received::Nothing) => match Self::end(link) {
                    Some(error) => break error,
                    None => return Stop::Idle,
                },
                Ok(Received::Reply { long }) => {
                    if link.is_watched() {
                        report(Report::Finished);
                        Wait::No
                    } else if direct && !long {
                        Wait::No
                    } else {
                        // The server has just replied and may do so again.
                        Wait::Some
                    }
                }
                Err(error) => break LinkError::Receive(error),
            };
            if jiffies_since(start) > limit {
                return Stop::Turn;
            }
            wait = next;
        };
        // The rest of the payload does not arrive.
        if let Some(partial) = self.partial.take() {
            link.requeue(partial.claim.into_inner());
        }
        Stop::Broken(error)
    }

    /// Returns an error if nothing more is expected although the stream has not ended.
    fn end(link: &Link) -> Option<LinkError> {
        // Another user of the socket may have connected it again.
        if link.is_shut() {
            return Some(LinkError::Receive(ReceiveError::Closed));
        }
        link.send_error().map(LinkError::Send)
    }

    /// Receives the next reply or a part of it. Finishes the request if the reply is complete.
    fn serve(&mut self, link: &Link, direct: bool, wait: Wait) -> Result<Received, ReceiveError> {
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => {
                let Some(header) = self.header(link, wait)? else {
                    return Ok(Received::Nothing);
                };
                match Self::parse(link, &header)? {
                    Parsed::Payload(partial) => partial,
                    Parsed::Whole(received) => return Ok(received),
                }
            }
        };
        match self.payload(link, direct, &mut partial) {
            Ok(true) => {
                let long = partial.claim.bytes() as usize > LONG_PAYLOAD;
                partial.finish(link);
                Ok(Received::Reply { long })
            }
            other => {
                self.partial = Some(partial);
                other.map(|_| Received::Nothing)
            }
        }
    }

    /// Claims the request of a reply whose header was received. [`None`] if it waits for none.
    /// Context: does not sleep.
    pub(super) fn claim(link: &Link, cookie: Cookie) -> Option<Claim<Queue>> {
        let requests = link.disk().hold_requests()?;
        let request = requests.request(cookie.tag)?;
        let claim = request.claim(Some(cookie.attempt), |data| link.has(data))?;
        link.stats().add_reply();
        trace::nbd_header_received(&claim, || cookie.into_wire());
        Some(claim)
    }

    /// Claims the request of a reply, and finishes it unless a payload follows.
    fn parse(link: &Link, header: &[u8; REPLY_LEN]) -> Result<Parsed, ReceiveError> {
        let reply = Reply::decode(header).map_err(|_| ReceiveError::NoReply)?;
        let cookie = reply.cookie;
        let Some(claim) = Self::claim(link, cookie) else {
            return Err(ReceiveError::Unexpected { tag: cookie.tag });
        };
        let status = match reply.result {
            Err(Failure::ShuttingDown) => return Ok(Parsed::Whole(Received::Refused(claim))),
            // Another server may succeed where one that is shutting down has failed.
            Err(_) if link.is_draining() => {
                link.requeue(claim);
                return Ok(Parsed::Whole(Received::Reply { long: false }));
            }
            // The block layer takes a flush that is not supported for a successful one.
            Err(Failure::Status(BlkStatus::NOTSUPP)) if claim.op() == Op::Flush => BlkStatus::IOERR,
            Err(Failure::Status(status)) => status,
            Ok(()) if claim.op() == Op::Read => {
                return Ok(Parsed::Payload(Partial::new(claim, cookie)))
            }
            Ok(()) => BlkStatus::OK,
        };
        Self::finish(link, claim, cookie, status);
        Ok(Parsed::Whole(Received::Reply { long: false }))
    }

    /// Finishes a request whose reply is complete. Context: does not sleep.
    pub(super) fn finish(link: &Link, claim: Claim<Queue>, cookie: Cookie, status: BlkStatus) {
        trace::nbd_payload_received(&claim, || cookie.into_wire());
        trace::nbd_reply(&claim, || link.attempt(claim.data(), cookie), status);
        if claim.should_fake_timeout() {
            claim.release();
        } else {
            claim.end(status);
        }
    }

    /// Returns the next header, after reading ahead as far as there is room. Returns [`None`] if
    /// the header is incomplete.
    fn header(&mut self, link: &Link, wait: Wait) -> Result<Option<[u8; REPLY_LEN]>, ReceiveError> {
        while self.ahead.bytes().len() < REPLY_LEN {
            let mut dest = Dest::new(MAX_WAITING);
            dest.push_bytes(self.ahead.room());
            match Self::receive_some(&mut self.taken, link, dest, wait)? {
                0 => return Ok(None),
                bytes => self.ahead.add(bytes),
            }
        }
        let header = self.ahead.bytes().first_chunk().copied();
        self.ahead.consume(REPLY_LEN);
        Ok(header)
    }

    /// Fills the pages of a request: first from the read-ahead buffer, then from the socket.
    /// Returns whether the payload is complete.
    fn payload(
        &mut self,
        link: &Link,
        direct: bool,
        partial: &mut Partial,
    ) -> Result<bool, ReceiveError> {
        if !self.ahead.bytes().is_empty() {
            let mut dest = Dest::new(MAX_WAITING);
            dest.push_rest(&mut partial.claim);
            let bytes = dest.fill(self.ahead.bytes());
            self.ahead.consume(bytes);
            partial.advance(bytes);
        }
        while partial.left > 0 {
            let is_long = partial.is_long();
            let mut dest = Dest::new(MAX_WAITING);
            let whole = dest.push_rest(&mut partial.claim);
            // The read-ahead buffer is empty, or the payload would be complete.
            let wait = if whole && !is_long {
                dest.push_bytes(self.ahead.room());
                if direct {
                    Wait::No
                } else {
                    Wait::Some
                }
            } else {
                Wait::All
            };
            match Self::receive_some(&mut self.taken, link, dest, wait)? {
                0 => return Ok(false),
                bytes => {
                    self.ahead.add(bytes.saturating_sub(partial.left));
                    partial.advance(bytes);
                }
            }
        }
        Ok(true)
    }

    /// Receives once, from `taken` if there is something. Returns the number of bytes, or 0 if none
    /// arrived in time.
    fn receive_some(
        taken: &mut Option<SkBuff>,
        link: &Link,
        mut dest: Dest<'_>,
        wait: Wait,
    ) -> Result<usize, ReceiveError> {
        let received = match taken {
            Some(buffer) => Ok(buffer.read(|bytes| bytes.fill(dest))),
            None => link.socket().receive(&mut dest, wait),
        };
        if taken.as_ref().is_some_and(SkBuff::is_empty) {
            *taken = None;
        }
        match received {
            Ok(0) => Err(ReceiveError::Closed),
            Ok(bytes) => {
                link.stats().add_received(bytes);
                Ok(bytes)
            }
            Err(EAGAIN | EINTR | ERESTARTSYS) => Ok(0),
            Err(error) => Err(ReceiveError::Socket(error)),
        }
    }
}
