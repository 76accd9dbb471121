// SPDX-License-Identifier: GPL-2.0

//! Turning queued requests into bytes on a socket.

use crate::{
    kernel::{
        block::mq::{Op, RequestList, StartedRequest},
        bvec::BvecBuf,
        net::socket::Wait,
        trace, //
    },
    link::Link,
    protocol::{encode_disconnect, encode_request, wire_len, Cookie, REQUEST_LEN},
    queue::Queue,
};
use kernel::{prelude::*, sync::Arc};

/// Pieces of one send: what fits one page of vectors.
const MAX_PIECES: usize = 256;

/// Headers of one send.
const MAX_HEADERS: usize = 32;

/// How far a send came.
#[derive(PartialEq, Eq)]
pub(crate) enum Progress {
    /// All was sent.
    Done,
    /// The socket has no room, and the caller did not want to wait.
    Blocked,
}

/// The one who writes to a link's socket. There is one for each link, so that a request that was
/// sent in part is always continued where it stopped.
pub(crate) struct Sender {
    link: Arc<Link>,
    batch: RequestList<Queue>,
    /// Bytes of the batch's first request that are sent.
    sent: usize,
    /// The headers of the batch's first requests, as they were given to tracers, who may change
    /// them: made once, however often a send must be continued.
    headers: KVec<[u8; REQUEST_LEN]>,
    vecs: BvecBuf,
}

impl Sender {
    pub(crate) fn new(link: Arc<Link>) -> Result<Self> {
        Ok(Self {
            link,
            batch: RequestList::new(),
            sent: 0,
            headers: KVec::with_capacity(MAX_HEADERS, GFP_KERNEL)?,
            vecs: BvecBuf::new(MAX_PIECES, MAX_HEADERS * REQUEST_LEN)?,
        })
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    pub(crate) fn is_for(&self, link: &Link) -> bool {
        self.link.generation() == link.generation()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.batch.is_empty()
    }

    /// Gives an idle sender requests to send.
    pub(crate) fn load(&mut self, batch: RequestList<Queue>) {
        self.batch = batch;
        self.sent = 0;
        self.headers.clear();
    }

    /// Sends what was loaded. Several requests go out in one call of the socket, each with its
    /// header and payload. Sleeps; waits for the peer only as `wait` says.
    ///
    /// After an error nothing more can be sent on the socket.
    pub(crate) fn send(&mut self, wait: Wait) -> Result<Progress> {
        while !self.batch.is_empty() {
            let mut source = self.vecs.source();
            let mut skip = self.sent;
            for (index, rq) in self.batch.iter().enumerate() {
                let Some(header) = Self::header(&mut self.headers, index, rq) else {
                    break;
                };
                let rest = header.get(skip..).unwrap_or(&[]);
                if !rest.is_empty() && !source.push_copy(rest) {
                    break;
                }
                if rq.op() == Op::Write
                    && !source.push_request(rq, skip.saturating_sub(REQUEST_LEN))
                {
                    break;
                }
                skip = 0;
            }
            match self.link.socket().send(&source, wait) {
                Ok(bytes) => self.advance(bytes),
                Err(EAGAIN | EINTR | ERESTARTSYS) if wait == Wait::No => {
                    return Ok(Progress::Blocked)
                }
                // A timeout of the socket's own is none of ours.
                Err(EAGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Done)
    }

    /// Sends the message that ends a connection, after all requests, and ends the stream: some
    /// servers close their end only then. Does not wait for the peer: one without room for the
    /// message learns from the end of the stream.
    pub(crate) fn send_disconnect(&mut self) {
        let socket = self.link.socket();
        let mut source = self.vecs.source();
        source.push_copy(&encode_disconnect());
        let _ = socket.send(&source, Wait::No);
        socket.shutdown_send();
    }

    /// The header of the batch's request number `index`, which is the first that is not in
    /// `headers` or one that is. `None` when there is no room.
    fn header<'a>(
        headers: &'a mut KVec<[u8; REQUEST_LEN]>,
        index: usize,
        rq: &StartedRequest<Queue>,
    ) -> Option<&'a [u8; REQUEST_LEN]> {
        if index == headers.len() && index < headers.capacity() {
            let mut header = encode_request(rq);
            trace::nbd_send_request(&mut header, || rq.disk().data().index(), rq);
            headers.push_within_capacity(header).ok()?;
        }
        headers.get(index)
    }

    /// Lets go of the requests that are sent whole once `bytes` more are sent.
    fn advance(&mut self, bytes: usize) {
        let mut before = self.sent;
        self.sent += bytes;
        let mut whole = 0;
        while let Some(rq) = self.batch.front() {
            if before < REQUEST_LEN && self.sent >= REQUEST_LEN {
                trace::nbd_header_sent(rq, || Cookie::of(rq).into_wire());
            }
            let len = wire_len(rq);
            if self.sent < len {
                break;
            }
            trace::nbd_payload_sent(rq, || Cookie::of(rq).into_wire());
            self.sent -= len;
            before = 0;
            self.batch.pop_front();
            whole += 1;
        }
        self.link.traffic().add_sent(bytes);
        self.link.traffic().add_requests(whole);
        let mut number = 0;
        self.headers.retain(|_| {
            number += 1;
            number > whole
        });
    }
}
