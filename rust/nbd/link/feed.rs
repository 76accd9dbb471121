// SPDX-License-Identifier: GPL-2.0

//! Cuts bytes that arrive in any pieces into replies.

use super::read_ahead::ReadAhead;
use crate::protocol::REPLY_LEN;

/// A piece of the stream, read from its first byte on.
pub(super) trait Piece {
    /// Whether no byte is left.
    fn is_empty(&self) -> bool;

    /// Moves bytes to `dest` until it is full or no byte is left. Returns their number, which is 0
    /// if the piece cannot be read here.
    fn copy_to(&mut self, dest: &mut [u8]) -> usize;
}

/// What a header is followed by.
pub(super) enum Follows<P> {
    /// The payload of the reply.
    Payload(P),
    /// The next reply.
    Reply,
    /// This is not known here: the header is left unread.
    Unread,
}

/// What is done with replies.
pub(super) trait Replies<S: Piece> {
    /// A reply whose payload is incomplete.
    type Partial;

    /// Handles a header, and finishes its reply if no payload follows.
    fn header(&mut self, header: &[u8; REPLY_LEN]) -> Follows<Self::Partial>;

    /// Moves bytes to a payload. Returns their number, which is 0 if the piece cannot be read here.
    fn fill(&mut self, partial: &mut Self::Partial, piece: &mut S) -> usize;

    /// Finishes a reply if its payload is complete, or hands it back.
    fn finish(&mut self, partial: Self::Partial) -> Option<Self::Partial>;

    /// Counts bytes that were read, before they finish a reply.
    fn count(&mut self, bytes: usize);

    /// Whether what follows may be read here, which is the rest of `partial` if there is one.
    fn goes_on(&self, partial: Option<&Self::Partial>) -> bool;
}

/// Whether more is to be read in the same context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fed {
    /// The piece was read to its end, and the next one may follow.
    All,
    /// What is left, and what follows, is for another context.
    Deferred,
}

/// Reads from `piece`. Its first bytes are the rest of the payload of `partial`, before which
/// nothing is in `ahead`, or otherwise the rest of a header whose first bytes are in `ahead`.
pub(super) fn feed<S: Piece, R: Replies<S>>(
    ahead: &mut ReadAhead,
    partial: &mut Option<R::Partial>,
    piece: &mut S,
    replies: &mut R,
) -> Fed {
    while !piece.is_empty() {
        let count = match partial.take() {
            Some(mut one) => {
                let count = replies.fill(&mut one, piece);
                replies.count(count);
                *partial = replies.finish(one);
                count
            }
            None => {
                let missing = REPLY_LEN.saturating_sub(ahead.bytes().len());
                let count = piece.copy_to(ahead.room().get_mut(..missing).unwrap_or_default());
                ahead.add(count);
                replies.count(count);
                if let Some(header) = ahead.bytes().first_chunk() {
                    match replies.header(header) {
                        Follows::Payload(one) => *partial = Some(one),
                        Follows::Reply => {}
                        Follows::Unread => return Fed::Deferred,
                    }
                    ahead.consume(REPLY_LEN);
                }
                count
            }
        };
        if count == 0 || !replies.goes_on(partial.as_ref()) {
            return Fed::Deferred;
        }
    }
    Fed::All
}

#[kernel::macros::kunit_tests(nbd_feed)]
mod tests {
    use super::*;
    use kernel::prelude::*;

    /// The first byte of a header that is left unread.
    const UNREAD: u8 = 0xee;

    /// A payload of this length and more is left to another context.
    const LONG: usize = 60;

    /// The lengths of the payloads, of which 0 is a reply without one.
    const PAYLOADS: [usize; 8] = [0, 1, 16, 0, 0, 59, 15, 17];

    impl Piece for &[u8] {
        fn is_empty(&self) -> bool {
            (**self).is_empty()
        }

        fn copy_to(&mut self, dest: &mut [u8]) -> usize {
            let count = self.len().min(dest.len());
            let (now, rest) = self.split_at(count);
            for (to, from) in dest.iter_mut().zip(now) {
                *to = *from;
            }
            *self = rest;
            count
        }
    }

    struct Payload {
        bytes: [u8; 128],
        len: usize,
        done: usize,
    }

    /// Checks replies: the second byte of a header is the number of the reply, and its third the
    /// length of its payload, each byte of which is the number plus its place.
    #[derive(Default)]
    struct Checker {
        count: usize,
        bytes: usize,
        wrong: bool,
        /// Whether each reply is the last one to be read here.
        watched: bool,
        stop: bool,
    }

    impl Checker {
        fn done(&mut self) {
            self.count += 1;
            self.stop = self.watched;
        }
    }

    impl Replies<&[u8]> for Checker {
        type Partial = Payload;

        fn header(&mut self, header: &[u8; REPLY_LEN]) -> Follows<Payload> {
            let [first, number, len, rest @ ..] = *header;
            if first == UNREAD {
                return Follows::Unread;
            }
            self.wrong |= usize::from(number) != self.count || rest.iter().any(|b| *b != number);
            if len == 0 {
                self.done();
                return Follows::Reply;
            }
            Follows::Payload(Payload {
                bytes: [0; 128],
                len: len.into(),
                done: 0,
            })
        }

        fn fill(&mut self, payload: &mut Payload, piece: &mut &[u8]) -> usize {
            let room = payload.bytes.get_mut(payload.done..payload.len);
            let count = piece.copy_to(room.unwrap_or_default());
            payload.done += count;
            count
        }

        fn finish(&mut self, payload: Payload) -> Option<Payload> {
            if payload.done < payload.len {
                return Some(payload);
            }
            let bytes = payload.bytes.get(..payload.len).unwrap_or_default();
            let number = self.count;
            let good = |(at, byte): (usize, &u8)| *byte == (number + at) as u8;
            self.wrong |= payload.done != payload.len || !bytes.iter().enumerate().all(good);
            self.done();
            None
        }

        fn count(&mut self, bytes: usize) {
            self.bytes += bytes;
        }

        fn goes_on(&self, partial: Option<&Payload>) -> bool {
            !self.stop && partial.is_none_or(|one| one.len - one.done < LONG)
        }
    }

    /// Adds a reply to the stream.
    fn push(stream: &mut KVec<u8>, first: u8, number: usize, payload: usize) -> Result {
        stream.push(first, GFP_KERNEL)?;
        stream.push(number as u8, GFP_KERNEL)?;
        stream.push(payload as u8, GFP_KERNEL)?;
        for _ in 3..REPLY_LEN {
            stream.push(number as u8, GFP_KERNEL)?;
        }
        for at in 0..payload {
            stream.push((number + at) as u8, GFP_KERNEL)?;
        }
        Ok(())
    }

    fn total() -> usize {
        PAYLOADS.iter().map(|payload| REPLY_LEN + payload).sum()
    }

    fn stream() -> Result<KVec<u8>> {
        let mut stream = KVec::new();
        for (number, payload) in PAYLOADS.into_iter().enumerate() {
            push(&mut stream, 0, number, payload)?;
        }
        Ok(stream)
    }

    struct Receiver {
        ahead: ReadAhead,
        partial: Option<Payload>,
        checker: Checker,
    }

    impl Receiver {
        fn new() -> Self {
            Self {
                ahead: ReadAhead::new(),
                partial: None,
                checker: Checker::default(),
            }
        }

        /// Reads from the stream, and returns what is left with the result.
        fn read<'a>(&mut self, mut piece: &'a [u8]) -> (&'a [u8], Fed) {
            self.checker.stop = false;
            let fed = feed(
                &mut self.ahead,
                &mut self.partial,
                &mut piece,
                &mut self.checker,
            );
            (piece, fed)
        }

        fn is_whole(&self) -> bool {
            !self.checker.wrong
                && self.checker.count == PAYLOADS.len()
                && self.checker.bytes == total()
                && self.ahead.bytes().is_empty()
                && self.partial.is_none()
        }
    }

    #[test]
    fn cut_twice_anywhere() -> Result {
        let stream = stream()?;
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut receiver = Receiver::new();
                let (head, rest) = stream.split_at(first);
                let (middle, tail) = rest.split_at(second - first);
                for piece in [head, middle, tail] {
                    assert!(receiver.read(piece) == (&[], Fed::All));
                }
                assert!(receiver.is_whole());
            }
        }
        Ok(())
    }

    #[test]
    fn cut_into_equal_parts() -> Result {
        let stream = stream()?;
        for part in 1..=stream.len() {
            let mut receiver = Receiver::new();
            for piece in stream.chunks(part) {
                assert!(receiver.read(piece) == (&[], Fed::All));
            }
            assert!(receiver.is_whole());
        }
        Ok(())
    }

    #[test]
    fn watched_stops_after_each_reply() -> Result {
        let stream = stream()?;
        for part in [1, 7, 16, 17, stream.len()] {
            let mut receiver = Receiver::new();
            receiver.checker.watched = true;
            let mut stops = 0;
            for mut piece in stream.chunks(part) {
                while !piece.is_empty() {
                    let count = receiver.checker.count;
                    let (rest, fed) = receiver.read(piece);
                    let finished = receiver.checker.count - count;
                    assert!((fed == Fed::Deferred) == (finished == 1));
                    assert!(finished <= 1);
                    stops += finished;
                    piece = rest;
                }
            }
            assert_eq!(stops, PAYLOADS.len());
            assert!(receiver.is_whole());
        }
        Ok(())
    }

    #[test]
    fn long_payload_is_left_to_another_context() -> Result {
        let mut stream = KVec::new();
        push(&mut stream, 0, 0, LONG)?;
        for cut in 0..REPLY_LEN {
            let mut receiver = Receiver::new();
            let (head, tail) = stream.split_at(cut);
            assert!(receiver.read(head) == (&[], Fed::All));
            let (rest, fed) = receiver.read(tail);
            assert_eq!(fed, Fed::Deferred);
            // Not a byte of the payload was read.
            assert_eq!(rest.len(), LONG);
            assert!(receiver.partial.is_some_and(|one| one.done == 0));
            assert!(receiver.ahead.bytes().is_empty());
        }
        Ok(())
    }

    #[test]
    fn unread_header_is_kept() -> Result {
        let mut stream = KVec::new();
        push(&mut stream, 0, 0, 3)?;
        push(&mut stream, UNREAD, 1, 0)?;
        push(&mut stream, 0, 2, 0)?;
        for cut in 0..=2 * REPLY_LEN + 3 {
            let mut receiver = Receiver::new();
            let (head, tail) = stream.split_at(cut);
            let mut rest = head;
            for piece in [head, tail] {
                rest = piece;
                if !rest.is_empty() && receiver.ahead.bytes().len() < REPLY_LEN {
                    rest = receiver.read(rest).0;
                }
            }
            assert_eq!(receiver.checker.count, 1);
            assert_eq!(receiver.ahead.bytes().first(), Some(&UNREAD));
            assert_eq!(receiver.ahead.bytes().len(), REPLY_LEN);
            assert_eq!(rest.len(), REPLY_LEN);
        }
        Ok(())
    }
}
