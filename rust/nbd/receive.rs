// SPDX-License-Identifier: GPL-2.0

//! Turning bytes from a socket into finished requests.

use crate::{
    kernel::{
        block::{
            mq::{Claim, Op},
            BlkStatus, //
        },
        bvec::BvecDest,
        net::socket::Wait,
        trace, //
    },
    life::ReceiveError,
    link::Link,
    protocol::{Failure, Reply, REPLY_LEN},
    queue::Queue,
};
use kernel::prelude::*;

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

/// What a receiver has to tell.
pub(crate) enum Event {
    /// A request of a link that is watched has finished.
    Finished,
    /// The server refused a request because it is shutting down: the link is to be left, and the
    /// request to be requeued after that.
    Refused(Claim<Queue>),
    /// The link cannot be read any further.
    Broken(ReceiveError),
}

/// The one who reads a link's socket. It must not be on the stack, see [`BvecDest::push_bytes`].
pub(crate) struct Receiver {
    ahead: [u8; READ_AHEAD],
    /// The bytes of `ahead` that were received and not looked at.
    start: usize,
    end: usize,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Self {
            ahead: [0; READ_AHEAD],
            start: 0,
            end: 0,
        }
    }

    /// Serves replies until there is something to tell. May sleep, and waits for the peer.
    pub(crate) fn run(&mut self, link: &Link) -> Event {
        loop {
            match self.serve(link) {
                Ok(Some(refused)) => return Event::Refused(refused),
                Ok(None) if link.is_watched() => return Event::Finished,
                Ok(None) => {}
                Err(error) => return Event::Broken(error),
            }
        }
    }

    /// Serves one reply. Returns the request if the server refused it because it is shutting down,
    /// and the link does not know that yet.
    fn serve(&mut self, link: &Link) -> Result<Option<Claim<Queue>>, ReceiveError> {
        let header = self.header(link)?;
        let reply = Reply::decode(&header).map_err(|_| ReceiveError::NoReply)?;
        let cookie = reply.cookie;
        let claim = link.disk().hold_requests().and_then(|requests| {
            requests
                .request(cookie.tag)?
                .claim(Some(cookie.attempt), |data| data.is_on(link))
        });
        let Some(mut claim) = claim else {
            return Err(ReceiveError::Unexpected { tag: cookie.tag });
        };
        link.traffic().add_reply();
        trace::nbd_header_received(&claim, || cookie.into_wire());
        let status = match reply.result {
            // Somebody else may do better than a server that is going away.
            Err(_) if link.is_draining() => {
                claim.requeue();
                return Ok(None);
            }
            Err(Failure::ShuttingDown) => return Ok(Some(claim)),
            // The block layer takes a flush that is not supported for one that is done.
            Err(Failure::Status(BlkStatus::NOTSUPP)) if claim.op() == Op::Flush => BlkStatus::IOERR,
            Err(Failure::Status(status)) => status,
            Ok(()) => {
                if claim.op() == Op::Read {
                    if let Err(error) = self.payload(link, &mut claim) {
                        claim.requeue();
                        return Err(error);
                    }
                }
                BlkStatus::OK
            }
        };
        trace::nbd_payload_received(&claim, || cookie.into_wire());
        if claim.should_fake_timeout() {
            claim.release();
        } else {
            claim.end(status);
        }
        Ok(None)
    }

    fn buffered(&self) -> &[u8] {
        self.ahead.get(self.start..self.end).unwrap_or(&[])
    }

    /// The next header, with as much behind it as there is and has room.
    fn header(&mut self, link: &Link) -> Result<[u8; REPLY_LEN], ReceiveError> {
        while self.end - self.start < REPLY_LEN {
            self.ahead.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let mut dest = Dest::new(MAX_WAITING);
            dest.push_bytes(self.ahead.get_mut(self.end..).unwrap_or_default());
            self.end += Self::some(link, &mut dest, Wait::Some)?;
        }
        let mut header = [0; REPLY_LEN];
        for (to, from) in header.iter_mut().zip(self.buffered()) {
            *to = *from;
        }
        self.start += REPLY_LEN;
        Ok(header)
    }

    /// Fills the data of `claim`: first with what was read ahead, then from the socket.
    fn payload(&mut self, link: &Link, claim: &mut Claim<Queue>) -> Result<(), ReceiveError> {
        let len = claim.bytes() as usize;
        let mut done = 0;
        if self.start < self.end {
            let mut dest = Dest::new(MAX_WAITING);
            dest.push_request(claim, 0);
            done = dest.fill(self.buffered());
            self.start += done;
        }
        while done < len {
            let mut dest = Dest::new(MAX_WAITING);
            let whole = dest.push_request(claim, done);
            // Nothing is left over from reading ahead, or the payload would be complete.
            let wait = if whole && len - done <= LONG_PAYLOAD {
                dest.push_bytes(&mut self.ahead);
                Wait::Some
            } else {
                Wait::All
            };
            done += Self::some(link, &mut dest, wait)?;
            if done > len {
                (self.start, self.end) = (0, done - len);
            }
        }
        Ok(())
    }

    /// Receives, and says how many bytes that brought; none if only time went by.
    fn some(link: &Link, dest: &mut Dest<'_>, wait: Wait) -> Result<usize, ReceiveError> {
        match link.socket().receive(dest, wait) {
            Ok(0) => Err(ReceiveError::Closed),
            Ok(bytes) => {
                link.traffic().add_received(bytes);
                Ok(bytes)
            }
            Err(EAGAIN | EINTR | ERESTARTSYS) => Ok(0),
            Err(error) => Err(ReceiveError::Socket(error)),
        }
    }
}
