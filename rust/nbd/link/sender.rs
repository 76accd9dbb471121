// SPDX-License-Identifier: GPL-2.0

//! Turning queued requests into bytes on a socket.

use super::{socket::LinkSocket, stats::LinkStats};
use crate::{
    protocol::{encode_disconnect, wire_len, Cookie, REQUEST_LEN},
    request::Queue,
    trace, //
};
use kernel::{
    block::mq::RequestList,
    bvec::{BvecSource, HeaderSlots, Headers},
    net::socket::Wait,
    prelude::*, //
};

/// Pieces of one send, on the stack: a header and 128 KiB of scattered pages, and some more.
const MAX_PIECES: usize = 40;

/// Bytes that one send may wait for room for: only when it returns can be seen that they move, and
/// sockets of some kinds wait anew for room for each few of them.
const MAX_WAITING: usize = 64 << 10;

/// How far a send came.
#[derive(PartialEq, Eq)]
pub(super) enum Progress {
    /// All was sent.
    Done,
    /// The socket has no room, and the caller did not want to wait.
    Blocked,
}

/// What a call of the socket has come to.
enum Call {
    Sent(usize),
    /// Not even a byte has gone out in a moment: wait on.
    Nothing,
    /// There is no room, and the caller does not want to wait.
    NoRoom,
}

/// Where a sender writes to.
pub(super) struct Output<'a, F: Fn() -> bool> {
    pub(super) socket: &'a LinkSocket,
    pub(super) stats: &'a LinkStats,
    /// Whether nothing is to be sent any more.
    pub(super) is_closed: F,
}

/// A place in a batch of requests: so many bytes behind the beginning of its first one.
#[derive(Clone, Copy, Default)]
struct Position(usize);

impl Position {
    /// Bytes of the first request's header before this place.
    fn in_header(self) -> usize {
        self.0.min(REQUEST_LEN)
    }

    /// Bytes of the first request's payload before this place.
    fn in_payload(self) -> usize {
        self.0.saturating_sub(REQUEST_LEN)
    }

    /// Whether the first request's header is before this place.
    fn has_header(self) -> bool {
        self.0 >= REQUEST_LEN
    }

    /// Moves on by so many bytes.
    fn advance(&mut self, bytes: usize) {
        self.0 += bytes;
    }

    /// Whether the first request, of `len` bytes, is before this place, which is then one in what
    /// comes after it.
    fn pass(&mut self, len: usize) -> bool {
        match self.0.checked_sub(len) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }
}

/// The one who writes to a link's socket. There is one for each link, so that a request that was
/// sent in part is always continued where it stopped.
pub(crate) struct Sender {
    /// Made for the first send that finds memory for it.
    headers: Option<Headers>,
    batch: RequestList<Queue>,
    /// What of the batch's first request is sent; of the message that ends the connection when there
    /// is none.
    sent: Position,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            headers: None,
            batch: RequestList::new(),
            sent: Position::default(),
        }
    }

    /// Whether all that was loaded is sent.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Takes what is to be sent next, when it [`Self::is_empty`].
    pub(super) fn load(&mut self, batch: RequestList<Queue>) {
        self.batch = batch;
        self.sent = Position::default();
    }

    /// Sends what was loaded. Several requests go out in one call of the socket, each with its
    /// header and payload. May sleep; waits for the peer only as `wait` says.
    ///
    /// After an error nothing more can be sent on the socket.
    pub(super) fn send(
        &mut self,
        out: &Output<'_, impl Fn() -> bool>,
        wait: Wait,
    ) -> Result<Progress> {
        let mut calls = 0;
        while !self.batch.is_empty() {
            Self::check_open(out, &mut calls)?;
            let limit = match wait {
                Wait::No => usize::MAX,
                Wait::Some | Wait::All => MAX_WAITING,
            };
            if self.headers.is_none() {
                self.headers = Headers::new().ok();
            }
            let result = match &mut self.headers {
                Some(headers) => {
                    Self::send_batch(headers.slots(), &self.batch, self.sent, out, limit, wait)
                }
                None => self.send_part(out, limit, wait),
            };
            match Self::call(result, wait)? {
                Call::Sent(bytes) => self.advance(out, bytes),
                Call::Nothing => {}
                Call::NoRoom => return Ok(Progress::Blocked),
            }
        }
        Ok(Progress::Done)
    }

    /// Sends as much of `batch` from the place `from` on as one call of the socket takes.
    fn send_batch<'a>(
        mut slots: HeaderSlots<'a>,
        batch: &'a RequestList<Queue>,
        mut from: Position,
        out: &Output<'_, impl Fn() -> bool>,
        limit: usize,
        wait: Wait,
    ) -> Result<usize> {
        let mut source = BvecSource::<MAX_PIECES>::new(limit);
        for rq in batch.iter() {
            if !source.push_header(&mut slots, rq.header(), from.in_header())
                || !source.push_request(rq, from.in_payload())
            {
                break;
            }
            from = Position::default();
        }
        out.socket.send(&source, wait)
    }

    /// Sends what is left of the first request's header, or of its payload: without room for headers
    /// the two cannot go out in one call.
    fn send_part(
        &self,
        out: &Output<'_, impl Fn() -> bool>,
        limit: usize,
        wait: Wait,
    ) -> Result<usize> {
        let Some(rq) = self.batch.front() else {
            return Ok(0);
        };
        if let Some(rest @ [_, ..]) = rq.header().as_bytes().get(self.sent.in_header()..) {
            return out.socket.send_bytes(rest, wait);
        }
        let mut source = BvecSource::<MAX_PIECES>::new(limit);
        source.push_request(rq, self.sent.in_payload());
        out.socket.send(&source, wait)
    }

    /// Sends the message that ends a connection, after all requests, and ends the stream: some
    /// servers close their end only then. May sleep; waits for the peer only as `wait` says.
    pub(super) fn send_disconnect(
        &mut self,
        out: &Output<'_, impl Fn() -> bool>,
        wait: Wait,
    ) -> Result<Progress> {
        let message = encode_disconnect();
        let mut calls = 0;
        while let Some(rest @ [_, ..]) = message.get(self.sent.in_header()..) {
            Self::check_open(out, &mut calls)?;
            match Self::call(out.socket.send_bytes(rest, wait), wait)? {
                Call::Sent(bytes) => self.sent.advance(bytes),
                Call::Nothing => {}
                Call::NoRoom => return Ok(Progress::Blocked),
            }
        }
        // An upper layer protocol may hold back what it has taken, which the end of the stream would
        // cut off: the server closes its end, or the session does after the usual time.
        if !out.socket.has_ulp() {
            out.socket.shutdown_send();
        }
        Ok(Progress::Done)
    }

    /// Fails if the link was closed since the call before this one: another user of the socket may
    /// have connected it anew.
    fn check_open(out: &Output<'_, impl Fn() -> bool>, calls: &mut u32) -> Result {
        if *calls > 0 && (out.is_closed)() {
            return Err(EPIPE);
        }
        *calls += 1;
        Ok(())
    }

    /// What a call of the socket has come to.
    fn call(result: Result<usize>, wait: Wait) -> Result<Call> {
        match result {
            Ok(bytes) => Ok(Call::Sent(bytes)),
            Err(EAGAIN | EINTR | ERESTARTSYS) if wait == Wait::No => Ok(Call::NoRoom),
            Err(EAGAIN) => Ok(Call::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Lets go of the requests that are sent whole once `bytes` more are sent.
    fn advance(&mut self, out: &Output<'_, impl Fn() -> bool>, bytes: usize) {
        let mut before = self.sent;
        self.sent.advance(bytes);
        let mut whole = 0;
        while let Some(rq) = self.batch.front() {
            if !before.has_header() && self.sent.has_header() {
                trace::nbd_header_sent(rq, || Cookie::of(rq).into_wire());
            }
            let len = wire_len(rq);
            if !self.sent.pass(len) {
                break;
            }
            trace::nbd_payload_sent(rq, || Cookie::of(rq).into_wire());
            before = Position::default();
            rq.data().set_sent();
            self.batch.pop_front();
            whole += 1;
        }
        out.stats.add_sent(bytes);
        out.stats.add_requests(whole);
    }
}

#[kernel::macros::kunit_tests(nbd_sender)]
mod tests {
    use super::*;

    /// Payloads of the requests of a batch.
    const BATCH: [usize; 6] = [0, 1, 0, 512, 27, 4096];

    fn total() -> usize {
        BATCH.iter().map(|payload| REQUEST_LEN + payload).sum()
    }

    /// A sender of [`BATCH`] as [`Sender`] is one of requests.
    struct Model {
        first: usize,
        sent: Position,
        /// Bytes of the header and of the payload of each request that went out.
        out: [(usize, usize); BATCH.len()],
        /// A byte was sent twice, or before the one in front of it.
        wrong: bool,
    }

    impl Model {
        fn new() -> Self {
            Self {
                first: 0,
                sent: Position::default(),
                out: [(0, 0); BATCH.len()],
                wrong: false,
            }
        }

        /// Sends all that is left, of which the socket takes at most `room` bytes.
        fn send(&mut self, room: usize) {
            let mut left = room;
            let mut from = self.sent;
            let batch = BATCH.iter().zip(self.out.iter_mut());
            for (payload, out) in batch.skip(self.first) {
                self.wrong |= out.0 != from.in_header() || out.1 != from.in_payload();
                let header = REQUEST_LEN.saturating_sub(from.in_header()).min(left);
                left -= header;
                let data = payload.saturating_sub(from.in_payload()).min(left);
                left -= data;
                out.0 += header;
                out.1 += data;
                from = Position::default();
            }
            self.sent.advance(room - left);
            while let Some(payload) = BATCH.get(self.first) {
                if !self.sent.pass(REQUEST_LEN + payload) {
                    break;
                }
                self.first += 1;
            }
        }

        fn is_whole(&self) -> bool {
            let mut requests = BATCH.iter().zip(&self.out);
            self.first == BATCH.len()
                && self.sent.0 == 0
                && !self.wrong
                && requests.all(|(payload, out)| *out == (REQUEST_LEN, *payload))
        }
    }

    #[test]
    fn position_is_in_header_or_payload() {
        for (at, header, payload) in [
            (0, 0, 0),
            (1, 1, 0),
            (REQUEST_LEN - 1, REQUEST_LEN - 1, 0),
            (REQUEST_LEN, REQUEST_LEN, 0),
            (REQUEST_LEN + 1, REQUEST_LEN, 1),
            (REQUEST_LEN + (32 << 20), REQUEST_LEN, 32 << 20),
        ] {
            let mut position = Position::default();
            position.advance(at);
            assert_eq!(position.in_header(), header);
            assert_eq!(position.in_payload(), payload);
            assert_eq!(position.has_header(), at >= REQUEST_LEN);
        }
    }

    #[test]
    fn passes_whole_requests_only() {
        let mut position = Position::default();
        assert!(!position.pass(REQUEST_LEN));
        position.advance(REQUEST_LEN - 1);
        assert!(!position.pass(REQUEST_LEN));
        assert_eq!(position.in_header(), REQUEST_LEN - 1);
        position.advance(1);
        assert!(!position.pass(REQUEST_LEN + 1));
        assert!(position.pass(REQUEST_LEN));
        assert_eq!(position.in_header(), 0);
        assert!(!position.pass(REQUEST_LEN));
        // Two requests and a part of the third in one send.
        position.advance(2 * REQUEST_LEN + 100 + 5);
        assert!(position.pass(REQUEST_LEN + 100));
        assert!(position.pass(REQUEST_LEN));
        assert!(!position.pass(REQUEST_LEN));
        assert_eq!((position.in_header(), position.in_payload()), (5, 0));
    }

    #[test]
    fn cut_once_anywhere() {
        for cut in 0..=total() {
            let mut model = Model::new();
            model.send(cut);
            assert_eq!(model.is_whole(), cut == total());
            model.send(usize::MAX / 2);
            assert!(model.is_whole());
        }
    }

    #[test]
    fn cut_into_equal_parts() {
        for part in Iterator::chain(1..100, [511, 512, 4095, 4096, 5000]) {
            let mut model = Model::new();
            let mut sends = 0;
            while !model.is_whole() && sends <= total() {
                model.send(part);
                sends += 1;
            }
            assert_eq!(sends, total().div_ceil(part));
        }
    }

    #[test]
    fn cut_at_random() {
        let mut seed = 0x2560_9513u32;
        for _ in 0..200 {
            let mut model = Model::new();
            let mut sends = 0;
            while !model.is_whole() && sends < 100_000 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Now and then the socket takes nothing.
                model.send((seed >> 16) as usize % 200);
                sends += 1;
            }
            assert!(model.is_whole());
        }
    }
}
