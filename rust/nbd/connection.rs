// SPDX-License-Identifier: GPL-2.0

//! One socket of a session, with its sender and its receiver.

use crate::{
    device::Disk,
    kernel::{
        block::mq::{OwnedRequest, RequestList},
        net::socket::{Socket, Wait},
        workqueue::OwnedQueue, //
    },
    queue::Queue,
    receive::Receiver,
    send::{Progress, Sender},
    session::Loss,
};
use core::mem;
use kernel::{
    new_spinlock,
    new_work,
    prelude::*,
    sync::{aref::ARef, Arc, SpinLock},
    workqueue::{impl_has_work, Work, WorkItem}, //
};

/// Sends that a task makes for others before it hands them to the worker.
const MAX_ROUNDS: u32 = 8;

/// The sending side.
enum Tx {
    Open {
        queue: RequestList<Queue>,
        sender: Slot,
    },
    /// The message that ends the connection is to be sent, or was: nothing is queued any more.
    Closing {
        queue: RequestList<Queue>,
        sender: Slot,
    },
    Closed,
}

/// Where the sender is.
enum Slot {
    /// Nobody sends.
    Ready(KBox<Sender>),
    /// Whoever took it sends, and looks for more when done.
    Busy,
    /// The socket had no room: it waits for the worker.
    Blocked(KBox<Sender>),
}

impl Slot {
    fn take_ready(&mut self) -> Option<KBox<Sender>> {
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

/// A socket whose peer sees the end of the stream when it is dropped, whoever else has it open.
struct Stream(Socket);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}

/// A connection of a session.
///
/// While it is open, requests are pushed to it and go out in order. Whoever closes it first has it
/// counted as lost. A request that was pushed before that is seen by whoever looks through the
/// started requests afterwards, so that none is forgotten.
#[pin_data]
pub(crate) struct Connection {
    /// Never used twice for a device.
    id: u64,
    /// Its place in the session, for messages.
    index: u32,
    disk: ARef<Disk>,
    receivers: Arc<OwnedQueue>,
    senders: Arc<OwnedQueue>,
    socket: Stream,
    #[pin]
    tx: SpinLock<Tx>,
    /// Here until the receiver's work takes it.
    #[pin]
    receiver: SpinLock<Option<KBox<Receiver>>>,
    #[pin]
    send_work: Work<Connection, 0>,
    #[pin]
    receive_work: Work<Connection, 1>,
}

impl_has_work! {
    impl HasWork<Connection, 0> for Connection { self.send_work }
    impl HasWork<Connection, 1> for Connection { self.receive_work }
}

impl Connection {
    /// Allocates all that the connection will ever need. Sleeps.
    pub(crate) fn new(
        disk: &Disk,
        id: u64,
        index: u32,
        receivers: &Arc<OwnedQueue>,
        senders: &Arc<OwnedQueue>,
        socket: Socket,
    ) -> Result<Arc<Self>> {
        socket.set_block_io();
        let socket = Stream(socket);
        let sender = KBox::new(Sender::new()?, GFP_KERNEL)?;
        let receiver = KBox::new(Receiver::new()?, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                id,
                index,
                disk: disk.into(),
                receivers: receivers.clone(),
                senders: senders.clone(),
                socket,
                tx <- new_spinlock!(Tx::Open {
                    queue: RequestList::new(),
                    sender: Slot::Ready(sender),
                }),
                receiver <- new_spinlock!(Some(receiver)),
                send_work <- new_work!("nbd_send"),
                receive_work <- new_work!("nbd_receive"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket.0
    }

    /// Starts the receiver. Does not sleep.
    pub(crate) fn launch(self: &Arc<Self>) {
        // It cannot be queued already: this is the only place that queues it.
        let _ = self.receivers.enqueue::<Arc<Self>, 1>(self.clone());
    }

    /// Queues a request. With `last`, it is sent at once, with all that were queued before;
    /// otherwise [`Self::flush`] must follow. Hands the request back if the connection is closed.
    /// Sleeps, but never for the peer.
    pub(crate) fn push(
        self: &Arc<Self>,
        rq: OwnedRequest<Queue>,
        last: bool,
    ) -> Result<(), OwnedRequest<Queue>> {
        rq.data().set_connection(self);
        let cookie = self.disk.data().new_cookie();
        let sender = match &mut *self.tx.lock() {
            Tx::Open { queue, sender } => {
                queue.push_back(rq.publish(cookie));
                if last {
                    sender.take_ready()
                } else {
                    None
                }
            }
            Tx::Closing { .. } | Tx::Closed => return Err(rq),
        };
        if let Some(sender) = sender {
            self.run(sender, Wait::No);
        }
        Ok(())
    }

    /// Sends what is queued, unless somebody does already.
    pub(crate) fn flush(self: &Arc<Self>) {
        let sender = match &mut *self.tx.lock() {
            Tx::Open { sender, .. } | Tx::Closing { sender, .. } => sender.take_ready(),
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
                Tx::Open { queue, sender } => Tx::Closing { queue, sender },
                other => other,
            };
        }
        self.flush();
    }

    /// Closes the connection: nothing is sent any more, and the receiver ends. Returns whether it
    /// was open. Sleeps only for the socket's lock.
    pub(crate) fn close(&self) -> bool {
        let old = mem::replace(&mut *self.tx.lock(), Tx::Closed);
        self.socket().shutdown();
        !matches!(old, Tx::Closed)
    }

    /// Closes the connection for `loss` and has the session replay its requests elsewhere, or end.
    pub(crate) fn lose(&self, loss: Loss) {
        if !self.close() {
            return;
        }
        if let Some(session) = self.disk.data().session() {
            session.lost(self, loss);
        }
    }

    /// Sends with `sender` until there is nothing more to send, the socket has no room, or the
    /// connection is closed.
    fn run(self: &Arc<Self>, mut sender: KBox<Sender>, wait: Wait) {
        let mut rounds = 0;
        loop {
            rounds += 1;
            let next;
            (next, sender) = match self.next(sender, wait, rounds) {
                Some(next) => next,
                None => return,
            };
            let result = match next {
                Next::Send => sender.send(self.socket(), wait),
                Next::SendDisconnect => {
                    // A peer without room for it learns from the end of the stream.
                    let _ = sender.send_disconnect(self.socket());
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
                    self.lose(Loss::Send(error));
                    return;
                }
            }
        }
    }

    /// Finds out what `sender` does next; gives it away when that is nothing.
    fn next(
        self: &Arc<Self>,
        mut sender: KBox<Sender>,
        wait: Wait,
        rounds: u32,
    ) -> Option<(Next, KBox<Sender>)> {
        let mut tx = self.tx.lock();
        let (queue, slot, closing) = match &mut *tx {
            Tx::Open { queue, sender } => (queue, sender, false),
            Tx::Closing { queue, sender } => (queue, sender, true),
            Tx::Closed => {
                drop(tx);
                return Some((Next::Stop, sender));
            }
        };
        if sender.is_idle() {
            if queue.is_empty() {
                if closing {
                    return Some((Next::SendDisconnect, sender));
                }
                *slot = Slot::Ready(sender);
                return None;
            }
            sender.load(queue.take());
        }
        if wait == Wait::No && rounds > MAX_ROUNDS {
            *slot = Slot::Blocked(sender);
            let _ = self.senders.enqueue::<Arc<Self>, 0>(self.clone());
            return None;
        }
        Some((Next::Send, sender))
    }

    /// Leaves `sender` to the worker, who may wait.
    fn hand_over(self: &Arc<Self>, sender: KBox<Sender>) {
        let mut tx = self.tx.lock();
        match &mut *tx {
            Tx::Open { sender: slot, .. } | Tx::Closing { sender: slot, .. } => {
                *slot = Slot::Blocked(sender);
                // Under the lock, so that no work is queued once the connection is closed. If it
                // is queued already, it will find the sender.
                let _ = self.senders.enqueue::<Arc<Self>, 0>(self.clone());
            }
            Tx::Closed => {
                drop(tx);
                drop(sender);
            }
        }
    }
}

impl WorkItem<0> for Connection {
    type Pointer = Arc<Self>;

    /// Goes on sending where a task found no room.
    fn run(this: Arc<Self>) {
        let sender = match &mut *this.tx.lock() {
            Tx::Open { sender, .. } | Tx::Closing { sender, .. } => {
                match mem::replace(sender, Slot::Busy) {
                    Slot::Blocked(blocked) => Some(blocked),
                    other => {
                        *sender = other;
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

impl WorkItem<1> for Connection {
    type Pointer = Arc<Self>;

    /// Receives until the connection ends.
    fn run(this: Arc<Self>) {
        let receiver = this.receiver.lock().take();
        if let Some(mut receiver) = receiver {
            let error = receiver.run(&this.disk, &this);
            this.lose(Loss::Receive(error));
        }
    }
}
