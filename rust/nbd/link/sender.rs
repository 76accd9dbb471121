// SPDX-License-Identifier: GPL-2.0

//! The sender of a link, which writes queued requests to the socket.

use super::{
    socket::LinkSocket,
    stats::LinkStats, //
};
use crate::{
    protocol::{
        encode_disconnect,
        wire_len,
        Cookie,
        REQUEST_LEN, //
    },
    request::Queue,
    trace, //
};
use kernel::{
    block::mq::{
        ActiveRequest,
        RequestCursor,
        RequestList, //
    },
    bvec::{
        BvecSource,
        HeaderSlots,
        Headers,
        PageRing, //
    },
    net::socket::Wait,
    prelude::*, //
};

/// The pieces of one send, which are on the stack. They hold a header and 128 KiB of scattered
/// pages, with some to spare.
const MAX_PIECES: usize = 40;

/// The bytes of one send that may wait for room. Only when the call returns is it known that bytes
/// have moved, and some kinds of sockets wait again for every few bytes.
const MAX_WAITING: usize = 64 << 10;

/// The pages of a link that may hold data which the server has not read, and for how many bytes
/// that is.
const MAX_RING_PAGES: usize = 256;

/// The result of a send.
#[derive(PartialEq, Eq)]
pub(super) enum Progress {
    /// Everything was sent.
    Done,
    /// The socket has no room and the caller may not wait.
    Blocked,
}

/// The result of a call of the socket.
enum Call {
    Sent(usize),
    /// No byte was sent in the time of one call. The caller tries again.
    Nothing,
    /// There is no room and the caller may not wait.
    NoRoom,
}

/// The socket that a sender writes to.
pub(super) struct Output<'a, F: Fn() -> bool> {
    pub(super) socket: &'a LinkSocket,
    pub(super) stats: &'a LinkStats,
    /// Whether nothing may be sent any more.
    pub(super) is_closed: F,
}

/// A position in a batch of requests: the number of bytes after the start of its first request.
#[derive(Clone, Copy, Default)]
struct Position(usize);

impl Position {
    /// Bytes of the first request's header before this position.
    fn in_header(self) -> usize {
        self.0.min(REQUEST_LEN)
    }

    /// Bytes of the first request's payload before this position.
    fn in_payload(self) -> usize {
        self.0.saturating_sub(REQUEST_LEN)
    }

    /// Whether the whole header of the first request is before this position.
    fn has_header(self) -> bool {
        self.0 >= REQUEST_LEN
    }

    /// Moves the position forward.
    fn advance(&mut self, bytes: usize) {
        self.0 += bytes;
    }

    /// If the first request, of `len` bytes, is before this position, makes the position relative
    /// to the next request. Returns whether it is.
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

/// The permission to write to the socket of a link. There is one for each link, so that a request
/// that was sent in part is always continued where it stopped.
pub(crate) struct Sender {
    /// Allocated by the first send that finds memory. Without it the headers are sent one by one.
    headers: Option<Headers>,
    ring: PageRing,
    /// The first request, which may have been sent in part. Its cursor is behind the data that was
    /// sent.
    first: Option<RequestCursor<ActiveRequest<Queue>>>,
    /// The requests behind the first one.
    batch: RequestList<Queue>,
    /// How much of the first request was sent. Without one, how much of the message that ends the
    /// connection.
    sent: Position,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            headers: None,
            ring: PageRing::new(MAX_RING_PAGES),
            first: None,
            batch: RequestList::new(),
            sent: Position::default(),
        }
    }

    /// Whether everything that was loaded was sent.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Loads the next batch. The sender must be [empty](Self::is_empty).
    pub(super) fn load(&mut self, batch: RequestList<Queue>) {
        self.batch = batch;
        self.next_request();
        self.sent = Position::default();
    }

    /// Goes to the next request of the batch.
    fn next_request(&mut self) {
        self.first = self.batch.pop_front().map(RequestCursor::new);
    }

    /// Sends what was loaded. Several requests are sent in one call of the socket, each with its
    /// header and payload. After an error nothing more can be sent on the socket.
    ///
    /// Context: may sleep; waits for the peer as `wait` says.
    pub(super) fn send(
        &mut self,
        out: &Output<'_, impl Fn() -> bool>,
        wait: Wait,
    ) -> Result<Progress> {
        let mut calls = 0;
        while let Some(first) = &self.first {
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
                    let slots = headers.slots();
                    let mut source = BvecSource::<MAX_PIECES>::new(limit);
                    Self::add_pieces(&mut source, slots, first, &self.batch, self.sent);
                    out.socket.send(&source, &mut self.ring, wait)
                }
                None => Self::send_part(&mut self.ring, first, self.sent, out, limit, wait),
            };
            match Self::call(result, wait)? {
                Call::Sent(bytes) => self.advance(out, bytes),
                Call::Nothing => {}
                Call::NoRoom => return Ok(Progress::Blocked),
            }
        }
        Ok(Progress::Done)
    }

    /// Adds `first` from the position `sent` on and `batch`, or as much as has room.
    fn add_pieces<'a>(
        source: &mut BvecSource<'a, MAX_PIECES>,
        mut slots: HeaderSlots<'a>,
        first: &'a RequestCursor<ActiveRequest<Queue>>,
        batch: &'a RequestList<Queue>,
        sent: Position,
    ) {
        let mut room = source.push_header(&mut slots, first.header(), sent.in_header())
            && source.push_rest(first);
        for rq in batch.iter() {
            if !room {
                break;
            }
            room = source.push_header(&mut slots, rq.header(), 0) && source.push_request(rq);
        }
    }

    /// Sends the rest of the header of `first`, or of its payload. Without memory for headers the
    /// two cannot be sent in one call.
    fn send_part(
        ring: &mut PageRing,
        first: &RequestCursor<ActiveRequest<Queue>>,
        sent: Position,
        out: &Output<'_, impl Fn() -> bool>,
        limit: usize,
        wait: Wait,
    ) -> Result<usize> {
        if let Some(rest @ [_, ..]) = first.header().as_bytes().get(sent.in_header()..) {
            return out.socket.send_bytes(rest, wait);
        }
        let mut source = BvecSource::<MAX_PIECES>::new(limit);
        source.push_rest(first);
        out.socket.send(&source, ring, wait)
    }

    /// Sends the message that ends the connection, and ends the stream, since some servers close
    /// their end only then. Context: may sleep; waits for the peer as `wait` says.
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
        // An upper layer protocol may hold back bytes, which the end of the stream would cut off.
        // The server closes its end after the message, or the session closes the link after its
        // time.
        if !out.socket.has_ulp() {
            out.socket.shutdown_send();
        }
        Ok(Progress::Done)
    }

    /// Fails if the link was closed since the previous call of the socket, since another user of
    /// the socket may have connected it again.
    fn check_open(out: &Output<'_, impl Fn() -> bool>, calls: &mut u32) -> Result {
        if *calls > 0 && (out.is_closed)() {
            return Err(EPIPE);
        }
        *calls += 1;
        Ok(())
    }

    /// Converts the result of a call of the socket.
    fn call(result: Result<usize>, wait: Wait) -> Result<Call> {
        match result {
            Ok(bytes) => Ok(Call::Sent(bytes)),
            Err(EAGAIN | EINTR | ERESTARTSYS) if wait == Wait::No => Ok(Call::NoRoom),
            Err(EAGAIN) => Ok(Call::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Releases the requests that are sent whole after `bytes` more were sent.
    fn advance(&mut self, out: &Output<'_, impl Fn() -> bool>, bytes: usize) {
        out.stats.add_sent(bytes, out.socket.unread());
        let mut before = self.sent;
        self.sent.advance(bytes);
        let mut whole = 0;
        while let Some(first) = &mut self.first {
            if !before.has_header() && self.sent.has_header() {
                trace::nbd_header_sent(first, || Cookie::of(first).into_wire());
            }
            if !self.sent.pass(wire_len(first)) {
                first.advance(self.sent.in_payload() - before.in_payload());
                break;
            }
            trace::nbd_payload_sent(first, || Cookie::of(first).into_wire());
            before = Position::default();
            first.data().set_sent(out.stats.sent());
            if trace::needs_times() {
                first.data().set_sent_at(out.stats.age());
            }
            self.next_request();
            whole += 1;
        }
        out.stats.add_requests(whole);
    }
}

#[kernel::macros::kunit_tests(nbd_sender)]
mod tests {
    use super::*;

    /// The payloads of the requests of a batch, in bytes.
    const BATCH: [usize; 6] = [0, 1, 0, 512, 27, 4096];

    fn total() -> usize {
        BATCH.iter().map(|payload| REQUEST_LEN + payload).sum()
    }

    /// Sends [`BATCH`] as [`Sender`] sends requests.
    struct Model {
        first: usize,
        sent: Position,
        /// The bytes of the header and of the payload that were sent of each request.
        out: [(usize, usize); BATCH.len()],
        /// A byte was sent twice or out of order.
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

        /// Sends what is left. The socket takes at most `room` bytes.
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
                // Sometimes the socket takes nothing.
                model.send((seed >> 16) as usize % 200);
                sends += 1;
            }
            assert!(model.is_whole());
        }
    }
}
