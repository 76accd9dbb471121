// SPDX-License-Identifier: GPL-2.0

//! Receiving in the callbacks of the socket, where bytes arrive.

use super::{
    feed::{
        feed,
        Fed,
        Follows,
        Piece,
        Replies, //
    },
    receive_side::After,
    Link,
    Partial,
    Receiver, //
};
use crate::{
    protocol::{
        Reply,
        REPLY_LEN, //
    },
    NbdModule, //
};
use kernel::{
    block::{
        mq::Op,
        BlkStatus, //
    },
    bvec::BvecDest,
    net::{
        data_ready::{
            Arrived,
            DataReady,
            SkbBytes, //
        },
        socket::Wait, //
    },
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// The pieces of a request that are filled at a time, which are on the stack.
const MAX_PIECES: usize = 16;

type Dest<'a> = BvecDest<'a, MAX_PIECES>;

/// The number of replies after which a callback leaves the rest to the work. It runs in a softirq,
/// or in a thread of the server, while other threads of the server may send more.
const MAX_REPLIES: u32 = 128;

/// What has arrived.
trait Source: Piece {
    /// Moves bytes to `dest` until it is full or no byte is left. Returns their number, which is 0
    /// if the bytes cannot be read here.
    fn fill(&mut self, dest: Dest<'_>) -> usize;
}

impl Piece for SkbBytes<'_> {
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn copy_to(&mut self, dest: &mut [u8]) -> usize {
        SkbBytes::copy_to(self, dest)
    }
}

impl Source for SkbBytes<'_> {
    fn fill(&mut self, dest: Dest<'_>) -> usize {
        SkbBytes::fill(self, dest)
    }
}

/// What the socket has, received by calls.
struct Calls<'a> {
    link: &'a Link,
}

impl Piece for Calls<'_> {
    fn is_empty(&self) -> bool {
        !self.link.socket().has_data()
    }

    fn copy_to(&mut self, bytes: &mut [u8]) -> usize {
        let mut dest = Dest::new(bytes.len());
        dest.push_bytes(bytes);
        self.fill(dest)
    }
}

impl Source for Calls<'_> {
    fn fill(&mut self, mut dest: Dest<'_>) -> usize {
        let socket = self.link.socket();
        // The other task may fault while it copies, and a user can delay that at will.
        if socket.is_receiving() {
            return 0;
        }
        // The work finds out about the end of the stream and errors.
        socket.receive(&mut dest, Wait::No).unwrap_or(0)
    }
}

/// The replies of a link in the context of a callback. What fails, or ends the wait of a task, is
/// left to the work.
struct Direct<'a> {
    link: &'a Link,
    /// How many more replies may be handled.
    left: u32,
}

impl<S: Source> Replies<S> for Direct<'_> {
    type Partial = Partial;

    fn header(&mut self, header: &[u8; REPLY_LEN]) -> Follows<Partial> {
        let Ok(Reply {
            cookie,
            result: Ok(()),
        }) = Reply::decode(header)
        else {
            return Follows::Unread;
        };
        let Some(claim) = Receiver::claim(self.link, cookie) else {
            return Follows::Unread;
        };
        self.left = self.left.saturating_sub(1);
        if claim.op() == Op::Read {
            return Follows::Payload(Partial::new(claim, cookie));
        }
        Receiver::finish(self.link, claim, cookie, BlkStatus::OK);
        Follows::Reply
    }

    fn fill(&mut self, partial: &mut Partial, source: &mut S) -> usize {
        let mut dest = Dest::new(partial.left);
        dest.push_rest(&mut partial.claim);
        let count = source.fill(dest);
        partial.advance(count);
        count
    }

    fn finish(&mut self, partial: Partial) -> Option<Partial> {
        if partial.left > 0 {
            return Some(partial);
        }
        partial.finish(self.link);
        None
    }

    fn count(&mut self, bytes: usize) {
        self.link.stats().add_received(bytes);
    }

    fn goes_on(&self, partial: Option<&Partial>) -> bool {
        match partial {
            Some(partial) => !partial.is_long(),
            None => self.left > 0 && !self.link.is_watched(),
        }
    }
}

impl Receiver {
    /// Feeds what has arrived.
    fn feed(&mut self, source: &mut impl Source, direct: &mut Direct<'_>) -> Fed {
        feed(&mut self.ahead, &mut self.partial, source, direct)
    }
}

impl Link {
    /// Has `read` receive, if nothing else does. It returns whether it has read everything, and
    /// whether the rest is for the work. Returns whether there is nothing left to read.
    fn receive_here(
        self: ArcBorrow<'_, Self>,
        read: impl FnOnce(&mut Receiver, &mut Direct<'_>) -> (bool, Fed),
    ) -> bool {
        let taken = self.receive_side.lock().take_for_callback();
        let Some(mut receiver) = taken else {
            return false;
        };
        let mut direct = Direct {
            link: &self,
            left: MAX_REPLIES,
        };
        let (all, fed) = read(&mut receiver, &mut direct);
        let defer = !all || fed == Fed::Deferred;
        let after = self.receive_side.lock().put_from_callback(receiver, defer);
        if after == After::Queue {
            Arc::from(self).receive_later();
        }
        all
    }
}

impl DataReady for Link {
    type Module = NbdModule;

    fn data_ready(this: ArcBorrow<'_, Self>, arrived: Arrived<'_>) -> bool {
        this.receive_here(|receiver, direct| {
            let mut fed = Fed::All;
            let all = arrived.read(|piece| {
                if fed == Fed::All {
                    fed = receiver.feed(piece, direct);
                }
            });
            (all, fed)
        })
    }

    fn data_ready_unlocked(this: ArcBorrow<'_, Self>) -> bool {
        let mut calls = Calls { link: &this };
        this.receive_here(|receiver, direct| {
            let fed = receiver.feed(&mut calls, direct);
            (fed == Fed::All, fed)
        })
    }
}
