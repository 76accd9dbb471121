// SPDX-License-Identifier: GPL-2.0

//! One of a session's ways to the server: a link, or none until a reconnect brings one.

use crate::{
    kernel::{
        block::mq::{OwnedRequest, RequestList},
        net::socket::Wait,
        trace, //
    },
    life::Loss,
    link::Link,
    protocol::encode_request,
    queue::Queue,
    send::{Progress, Sender},
    workers::Workers,
};
use core::mem;
use kernel::{
    new_spinlock,
    new_work,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, SpinLock,
    },
    workqueue::{impl_has_work, Work, WorkItem}, //
};

/// Sends that a task makes for others before it hands them to the worker.
const MAX_ROUNDS: u32 = 8;

/// A link with its sending side: what is queued, and who sends it. Dropping it has the server see
/// the end of the stream once nobody uses the link any more.
pub(crate) struct Channel {
    link: Arc<Link>,
    queue: RequestList<Queue>,
    sender: Slot,
}

impl Channel {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            sender: Slot::Ready(Sender::new(link.clone())),
            link,
            queue: RequestList::new(),
        }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

/// The sending side.
enum Tx {
    Open(Channel),
    /// The message that ends the connection is to be sent, or was: nothing is queued any more.
    Closing(Channel),
    Closed,
}

/// Where the sender is.
enum Slot {
    /// Nobody sends.
    Ready(Sender),
    /// Whoever took it sends, and looks for more when done.
    Busy,
    /// The socket had no room: it waits for the worker.
    Blocked(Sender),
}

impl Slot {
    fn take_ready(&mut self) -> Option<Sender> {
        match mem::replace(self, Self::Busy) {
            Self::Ready(sender) => Some(sender),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// What a sender does next.
enum Next {
    Send,
    SendDisconnect,
    Stop,
}

/// A connection of a session.
///
/// While it is open, requests are pushed to it and go out in order. Whoever closes it first has it
/// counted as lost. A request that was pushed before that is seen by whoever looks through the
/// started requests afterwards, so that none is forgotten.
#[pin_data]
pub(crate) struct Connection {
    /// Its place in the session, for messages.
    index: u32,
    workers: Arc<Workers>,
    /// Requests that had to be sent again elsewhere.
    replayed: Atomic<u64>,
    /// Why the last link was lost.
    #[pin]
    last_loss: SpinLock<Option<Loss>>,
    #[pin]
    tx: SpinLock<Tx>,
    #[pin]
    send_work: Work<Connection>,
}

impl_has_work! {
    impl HasWork<Connection> for Connection { self.send_work }
}

impl Connection {
    /// Makes an open connection. Sleeps.
    pub(crate) fn new(index: u32, workers: &Arc<Workers>, channel: Channel) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                index,
                workers: workers.clone(),
                replayed: Atomic::new(0),
                last_loss <- new_spinlock!(None),
                tx <- new_spinlock!(Tx::Open(channel)),
                send_work <- new_work!("nbd_send"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The link, if the connection is not closed.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        match &*self.tx.lock() {
            Tx::Open(channel) | Tx::Closing(channel) => Some(channel.link.clone()),
            Tx::Closed => None,
        }
    }

    /// Whether requests can be pushed, for now.
    pub(crate) fn is_open(&self) -> bool {
        matches!(&*self.tx.lock(), Tx::Open(_))
    }

    /// Whether the connection is open and the server has nothing to do on it, as far as one can
    /// tell.
    pub(crate) fn is_idle(&self) -> bool {
        match &*self.tx.lock() {
            Tx::Open(channel) => {
                channel.queue.is_empty()
                    && matches!(channel.sender, Slot::Ready(_))
                    && channel.link.traffic().all_replied()
            }
            Tx::Closing(_) | Tx::Closed => false,
        }
    }

    pub(crate) fn count_replay(&self) {
        self.replayed.fetch_add(1, Relaxed);
    }

    /// Remembers why a link was lost.
    pub(crate) fn record(&self, loss: Loss) {
        *self.last_loss.lock() = Some(loss);
    }

    /// Why the last link was lost, if one was.
    pub(crate) fn last_loss(&self) -> Option<Loss> {
        *self.last_loss.lock()
    }

    /// How far the connection is, for people to read.
    pub(crate) fn describe(&self) -> &'static str {
        match &*self.tx.lock() {
            Tx::Open(_) => "open",
            Tx::Closing(_) => "closing",
            Tx::Closed => "closed",
        }
    }

    pub(crate) fn replayed(&self) -> u64 {
        self.replayed.load(Relaxed)
    }

    /// Opens a closed connection again; hands the channel back if it is not closed.
    pub(crate) fn open(&self, channel: Channel) -> Result<(), Channel> {
        let mut tx = self.tx.lock();
        match &*tx {
            Tx::Closed => {
                *tx = Tx::Open(channel);
                Ok(())
            }
            Tx::Open(_) | Tx::Closing(_) => Err(channel),
        }
    }

    /// Queues a request. With `last`, it is sent at once, with all that were queued before;
    /// otherwise [`Self::flush`] must follow. Hands the request back if the connection is closed.
    /// Sleeps, but never for the peer.
    pub(crate) fn push(
        self: &Arc<Self>,
        mut rq: OwnedRequest<Queue>,
        cookie: u32,
        last: bool,
    ) -> Result<(), OwnedRequest<Queue>> {
        let mut header = encode_request(&rq, cookie);
        let sender = match &mut *self.tx.lock() {
            Tx::Open(channel) => {
                rq.data().set_link(&channel.link);
                trace::nbd_send_request(&mut header, || rq.disk().data().index(), &rq);
                rq.set_header(header);
                channel.queue.push_back(rq.publish(cookie));
                if last {
                    channel.sender.take_ready()
                } else {
                    None
                }
            }
            Tx::Closing(_) | Tx::Closed => return Err(rq),
        };
        if let Some(sender) = sender {
            self.run(sender, Wait::No);
        }
        Ok(())
    }

    /// Sends what is queued, unless somebody does already.
    pub(crate) fn flush(self: &Arc<Self>) {
        let sender = match &mut *self.tx.lock() {
            Tx::Open(channel) if channel.queue.is_empty() => None,
            Tx::Open(channel) | Tx::Closing(channel) => channel.sender.take_ready(),
            Tx::Closed => None,
        };
        if let Some(sender) = sender {
            self.run(sender, Wait::No);
        }
    }

    /// Queues no more requests, and tells the server so after those that are queued.
    pub(crate) fn say_goodbye(self: &Arc<Self>) {
        {
            let mut tx = self.tx.lock();
            *tx = match mem::replace(&mut *tx, Tx::Closed) {
                Tx::Open(channel) => Tx::Closing(channel),
                other => other,
            };
        }
        self.flush();
    }

    /// Takes the channel away, if it is `link`'s: nothing is sent on it any more. The caller shuts
    /// the socket down, which ends the receiver. Does not sleep.
    pub(crate) fn close(&self, link: &Link) -> Option<Channel> {
        let mut tx = self.tx.lock();
        match &*tx {
            Tx::Open(channel) | Tx::Closing(channel)
                if channel.link.generation() == link.generation() => {}
            _ => return None,
        }
        match mem::replace(&mut *tx, Tx::Closed) {
            Tx::Open(channel) | Tx::Closing(channel) => Some(channel),
            Tx::Closed => None,
        }
    }

    /// Closes the connection for good: the caller makes sure that none opens it again. Sleeps only
    /// for the socket's lock.
    pub(crate) fn shut(&self) {
        let old = mem::replace(&mut *self.tx.lock(), Tx::Closed);
        if let Tx::Open(channel) | Tx::Closing(channel) = old {
            channel.link.socket().shutdown();
        }
    }

    /// Sends with `sender` until there is nothing more to send, the socket has no room, or the
    /// link is closed.
    fn run(self: &Arc<Self>, mut sender: Sender, wait: Wait) {
        let mut rounds = 0;
        loop {
            rounds += 1;
            let next;
            (next, sender) = match self.next(sender, wait, rounds) {
                Some(next) => next,
                None => return,
            };
            let result = match next {
                Next::Send => sender.send(wait),
                Next::SendDisconnect => {
                    sender.send_disconnect();
                    return;
                }
                Next::Stop => return,
            };
            match result {
                Ok(Progress::Done) => {}
                Ok(Progress::Blocked) => {
                    self.hand_over(sender);
                    return;
                }
                Err(error) => {
                    // What the sender holds must be published until the session has looked.
                    sender.link().lose(Loss::Send(error));
                    return;
                }
            }
        }
    }

    /// Finds out what `sender` does next; gives it away when that is nothing.
    fn next(
        self: &Arc<Self>,
        mut sender: Sender,
        wait: Wait,
        rounds: u32,
    ) -> Option<(Next, Sender)> {
        let mut tx = self.tx.lock();
        let (channel, closing) = match &mut *tx {
            Tx::Open(channel) => (channel, false),
            Tx::Closing(channel) => (channel, true),
            Tx::Closed => {
                drop(tx);
                return Some((Next::Stop, sender));
            }
        };
        if !sender.is_for(&channel.link) {
            drop(tx);
            return Some((Next::Stop, sender));
        }
        if sender.is_idle() {
            if channel.queue.is_empty() {
                if closing {
                    return Some((Next::SendDisconnect, sender));
                }
                channel.sender = Slot::Ready(sender);
                return None;
            }
            sender.load(channel.queue.take());
        }
        if wait == Wait::No && rounds > MAX_ROUNDS {
            channel.sender = Slot::Blocked(sender);
            let _ = self.workers.senders.enqueue(self.clone());
            return None;
        }
        Some((Next::Send, sender))
    }

    /// Leaves `sender` to the worker, who may wait.
    fn hand_over(self: &Arc<Self>, sender: Sender) {
        let mut tx = self.tx.lock();
        match &mut *tx {
            Tx::Open(channel) | Tx::Closing(channel) if sender.is_for(&channel.link) => {
                channel.sender = Slot::Blocked(sender);
                // Under the lock, so that no work is queued once the connection is closed. If it
                // is queued already, it will find the sender.
                let _ = self.workers.senders.enqueue(self.clone());
            }
            _ => {
                drop(tx);
                drop(sender);
            }
        }
    }
}

impl WorkItem for Connection {
    type Pointer = Arc<Self>;

    /// Goes on sending where a task found no room.
    fn run(this: Arc<Self>) {
        let sender = match &mut *this.tx.lock() {
            Tx::Open(channel) | Tx::Closing(channel) => {
                match mem::replace(&mut channel.sender, Slot::Busy) {
                    Slot::Blocked(blocked) => Some(blocked),
                    other => {
                        channel.sender = other;
                        None
                    }
                }
            }
            Tx::Closed => None,
        };
        if let Some(sender) = sender {
            Connection::run(&this, sender, Wait::Some);
        }
    }
}
