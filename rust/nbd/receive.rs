// SPDX-License-Identifier: GPL-2.0

//! Turning bytes from a socket into finished requests.

use crate::{
    life::{LinkError, ReceiveError},
    link::Link,
    protocol::{Cookie, Failure, Reply, REPLY_LEN},
    request::Queue,
    trace, //
};
use kernel::{
    block::{
        mq::{Claim, Op},
        BlkStatus,
    },
    bvec::BvecDest,
    net::socket::Wait,
    prelude::*,
    time::{jiffies, jiffies_since, msecs_to_jiffies}, //
};

/// Pieces of one receive, on the stack: 128 KiB of scattered pages and what is read ahead, and some
/// more.
const MAX_PIECES: usize = 40;

type Dest<'a> = BvecDest<'a, MAX_PIECES>;

/// Bytes read ahead: this many replies without payload cost one receive. What it holds of a
/// payload is copied once more, so it is kept small; a link takes 256 bytes with it.
const READ_AHEAD: usize = 6 * REPLY_LEN;

/// Bytes that one receive may wait for: as with those that are sent.
const MAX_WAITING: usize = 128 << 10;

/// A payload longer than this is received without reading ahead behind it.
const LONG_PAYLOAD: usize = 32 << 10;

/// How long a receiver may keep its worker, in milliseconds, if others wait for one.
const TURN_MS: u32 = 250;

/// What a receiver has to tell.
pub(crate) enum Event {
    /// There is nothing to be received, for now.
    Idle,
    /// There may be more, but others shall have their turn.
    Turn,
    /// A request of a link that is watched has finished.
    Finished,
    /// The server refused a request because it is shutting down: the link is to be left, and the
    /// request to be requeued after that.
    Refused(Claim<Queue>),
    /// The link cannot be read any further.
    Broken(LinkError),
}

/// A reply of which the payload is on its way.
struct Partial {
    claim: Claim<Queue>,
    cookie: Cookie,
    /// Bytes of the payload that have arrived.
    done: usize,
}

/// What the header of a reply says.
enum Begun {
    Payload(Partial),
    Whole(Received),
}

/// What came of an attempt to receive a reply.
enum Received {
    Reply,
    /// The request of a reply that says that the server is shutting down.
    Refused(Claim<Queue>),
    /// Not all of one, for now.
    Nothing,
}

/// The one who reads a link's socket. It must not be on the stack, see [`BvecDest::push_bytes`].
pub(crate) struct Receiver {
    ahead: [u8; READ_AHEAD],
    /// The bytes of `ahead` that were received and not looked at.
    start: usize,
    end: usize,
    partial: Option<Partial>,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Self {
            ahead: [0; READ_AHEAD],
            start: 0,
            end: 0,
            partial: None,
        }
    }

    /// Serves replies until there is something to tell. May sleep, and waits for the peer for a
    /// moment where more is to be expected.
    pub(crate) fn run(&mut self, link: &Link) -> Event {
        let start = jiffies();
        let mut wait = Wait::No;
        let error = loop {
            match self.serve(link, wait) {
                Ok(Received::Refused(claim)) => return Event::Refused(claim),
                Ok(Received::Nothing) => match Self::end(link) {
                    Some(error) => break error,
                    None => return Event::Idle,
                },
                Ok(Received::Reply) if link.is_watched() => return Event::Finished,
                Ok(Received::Reply) if jiffies_since(start) > msecs_to_jiffies(TURN_MS) => {
                    return Event::Turn
                }
                // A server that has just replied may do so again.
                Ok(Received::Reply) => wait = Wait::Some,
                Err(error) => break LinkError::Receive(error),
            }
        };
        // The rest of its payload does not come.
        if let Some(partial) = self.partial.take() {
            partial.claim.requeue();
        }
        Event::Broken(error)
    }

    /// Why nothing is to be waited for, although the stream has not ended.
    fn end(link: &Link) -> Option<LinkError> {
        // Another user of the socket may have connected it anew.
        if link.is_shut() {
            return Some(LinkError::Receive(ReceiveError::Closed));
        }
        link.send_error().map(LinkError::Send)
    }

    /// Receives what is there of the next reply, and serves that if it is whole.
    fn serve(&mut self, link: &Link, wait: Wait) -> Result<Received, ReceiveError> {
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => {
                let Some(header) = self.header(link, wait)? else {
                    return Ok(Received::Nothing);
                };
                match Self::begin(link, &header)? {
                    Begun::Payload(partial) => partial,
                    Begun::Whole(received) => return Ok(received),
                }
            }
        };
        match self.payload(link, &mut partial) {
            Ok(true) => {
                Self::finish(partial.claim, partial.cookie, BlkStatus::OK);
                Ok(Received::Reply)
            }
            other => {
                self.partial = Some(partial);
                other.map(|_| Received::Nothing)
            }
        }
    }

    /// Finds the request of a reply, and finishes it unless a payload follows.
    fn begin(link: &Link, header: &[u8; REPLY_LEN]) -> Result<Begun, ReceiveError> {
        let reply = Reply::decode(header).map_err(|_| ReceiveError::NoReply)?;
        let cookie = reply.cookie;
        let claim = link.disk().hold_requests().and_then(|requests| {
            requests
                .request(cookie.tag)?
                .claim(Some(cookie.attempt), |data| {
                    data.generation() == link.generation()
                })
        });
        let Some(claim) = claim else {
            return Err(ReceiveError::Unexpected { tag: cookie.tag });
        };
        link.stats().add_reply();
        trace::nbd_header_received(&claim, || cookie.into_wire());
        let status = match reply.result {
            // Somebody else may do better than a server that is going away.
            Err(_) if link.is_draining() => {
                claim.requeue();
                return Ok(Begun::Whole(Received::Reply));
            }
            Err(Failure::ShuttingDown) => return Ok(Begun::Whole(Received::Refused(claim))),
            // The block layer takes a flush that is not supported for one that is done.
            Err(Failure::Status(BlkStatus::NOTSUPP)) if claim.op() == Op::Flush => BlkStatus::IOERR,
            Err(Failure::Status(status)) => status,
            Ok(()) if claim.op() == Op::Read => {
                return Ok(Begun::Payload(Partial {
                    claim,
                    cookie,
                    done: 0,
                }))
            }
            Ok(()) => BlkStatus::OK,
        };
        Self::finish(claim, cookie, status);
        Ok(Begun::Whole(Received::Reply))
    }

    fn finish(claim: Claim<Queue>, cookie: Cookie, status: BlkStatus) {
        trace::nbd_payload_received(&claim, || cookie.into_wire());
        if claim.should_fake_timeout() {
            claim.release();
        } else {
            claim.end(status);
        }
    }

    fn buffered(&self) -> &[u8] {
        self.ahead.get(self.start..self.end).unwrap_or(&[])
    }

    /// The next header, with as much behind it as there is and has room. [`None`] if it is not there
    /// yet.
    fn header(&mut self, link: &Link, wait: Wait) -> Result<Option<[u8; REPLY_LEN]>, ReceiveError> {
        while self.end - self.start < REPLY_LEN {
            self.ahead.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let mut dest = Dest::new(MAX_WAITING);
            dest.push_bytes(self.ahead.get_mut(self.end..).unwrap_or_default());
            match Self::some(link, &mut dest, wait)? {
                0 => return Ok(None),
                bytes => self.end += bytes,
            }
        }
        let mut header = [0; REPLY_LEN];
        for (to, from) in header.iter_mut().zip(self.buffered()) {
            *to = *from;
        }
        self.start += REPLY_LEN;
        Ok(Some(header))
    }

    /// Fills the data of a request: first with what was read ahead, then from the socket. Returns
    /// whether that was all.
    fn payload(&mut self, link: &Link, partial: &mut Partial) -> Result<bool, ReceiveError> {
        let Partial { claim, done, .. } = partial;
        let len = claim.bytes() as usize;
        if self.start < self.end {
            let mut dest = Dest::new(MAX_WAITING);
            dest.push_request(claim, *done);
            let bytes = dest.fill(self.buffered());
            self.start += bytes;
            *done += bytes;
        }
        while *done < len {
            let mut dest = Dest::new(MAX_WAITING);
            let whole = dest.push_request(claim, *done);
            // Nothing is left over from reading ahead, or the payload would be complete.
            let wait = if whole && len - *done <= LONG_PAYLOAD {
                dest.push_bytes(&mut self.ahead);
                Wait::Some
            } else {
                Wait::All
            };
            match Self::some(link, &mut dest, wait)? {
                0 => return Ok(false),
                bytes => *done += bytes,
            }
            if *done > len {
                (self.start, self.end) = (0, *done - len);
            }
        }
        Ok(true)
    }

    /// Receives, and says how many bytes that brought; none if only time went by.
    fn some(link: &Link, dest: &mut Dest<'_>, wait: Wait) -> Result<usize, ReceiveError> {
        match link.socket().receive(dest, wait) {
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
