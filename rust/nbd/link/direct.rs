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
    read_ahead::LONG_PAYLOAD,
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
    cpu::nr_cpu_ids,
    net::data_ready::{
        Arrived,
        ArrivedBuffers,
        DataReady,
        SkbBytes, //
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

impl Piece for SkbBytes<'_> {
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn copy_to(&mut self, dest: &mut [u8]) -> usize {
        SkbBytes::copy_to(self, dest)
    }
}

/// The replies of a link in the context of a callback. What fails, or ends the wait of a task, is
/// left to the work.
struct Direct<'a> {
    link: &'a Link,
    /// How many more replies may be handled.
    left: u32,
    /// Of a payload of which more bytes are missing, the rest is left to the work.
    longest: usize,
}

impl Replies<SkbBytes<'_>> for Direct<'_> {
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

    fn fill(&mut self, partial: &mut Partial, bytes: &mut SkbBytes<'_>) -> usize {
        let mut dest = Dest::new(partial.left);
        dest.push_rest(&mut partial.claim);
        let count = bytes.fill(dest);
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
            Some(partial) => partial.left <= self.longest,
            None => self.left > 0 && !self.link.is_watched(),
        }
    }
}

impl Receiver {
    /// Feeds what has arrived.
    fn feed(&mut self, bytes: &mut SkbBytes<'_>, direct: &mut Direct<'_>) -> Fed {
        feed(&mut self.ahead, &mut self.partial, bytes, direct)
    }
}

impl Link {
    /// Has `read` receive payloads of up to `longest` bytes, if nothing else receives. It returns
    /// whether it has read everything, and whether the rest is for the work. Returns whether there
    /// is nothing left to read.
    fn receive_here(
        self: ArcBorrow<'_, Self>,
        longest: usize,
        read: impl FnOnce(&mut Receiver, &mut Direct<'_>) -> (bool, Fed),
    ) -> bool {
        let taken = self.receive_side.lock().take_for_callback();
        let Some(mut receiver) = taken else {
            return false;
        };
        let mut direct = Direct {
            link: &self,
            left: MAX_REPLIES,
            longest,
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
        this.receive_here(LONG_PAYLOAD, |receiver, direct| {
            let mut fed = Fed::All;
            let all = arrived.read(|bytes| {
                if fed == Fed::All {
                    fed = receiver.feed(bytes, direct);
                }
            });
            (all, fed)
        })
    }

    fn data_ready_unlocked(this: ArcBorrow<'_, Self>, mut arrived: ArrivedBuffers<'_>) -> bool {
        // A single CPU cannot run the work while the server sends.
        let longest = if nr_cpu_ids() > 1 {
            LONG_PAYLOAD
        } else {
            usize::MAX
        };
        this.receive_here(longest, |receiver, direct| {
            let mut fed = Fed::All;
            while fed == Fed::All {
                let Some(mut buffer) = arrived.take() else {
                    break;
                };
                fed = buffer.read(|bytes| receiver.feed(bytes, direct));
                if !buffer.is_empty() {
                    receiver.taken = Some(buffer);
                }
            }
            (fed == Fed::All && !direct.link.socket().has_data(), fed)
        })
    }
}
