// SPDX-License-Identifier: GPL-2.0

//! One socket of a connection, from the time it was given to its loss.

use crate::{
    device::Disk,
    kernel::{
        net::socket::Socket,
        task::Process,
        time::{jiffies, jiffies_since},
        workqueue::OwnedQueue, //
    },
    life::Loss,
    receive::Receiver,
};
use kernel::{
    new_mutex,
    new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc, Mutex,
    },
    time::Jiffies,
    workqueue::{impl_has_work, Work, WorkItem}, //
};

/// A socket whose peer sees the end of the stream when it is dropped, whoever else has it open.
struct Stream(Socket);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}

/// What went over a link. Only whoever sends writes what concerns sending, and only the receiver
/// what concerns receiving.
pub(crate) struct Traffic {
    requests: Atomic<u64>,
    replies: Atomic<u64>,
    sent: Atomic<u64>,
    received: Atomic<u64>,
    /// When bytes moved last, in jiffies. Written by both: either is right.
    moved: Atomic<Jiffies>,
}

impl Traffic {
    fn new() -> Self {
        Self {
            requests: Atomic::new(0),
            replies: Atomic::new(0),
            sent: Atomic::new(0),
            received: Atomic::new(0),
            moved: Atomic::new(jiffies()),
        }
    }

    /// Adds without a locked operation: there is one writer at a time.
    fn add(counter: &Atomic<u64>, n: usize) {
        counter.store(counter.load(Relaxed).wrapping_add(n as u64), Relaxed);
    }

    /// So many requests are sent whole.
    pub(crate) fn add_requests(&self, n: usize) {
        Self::add(&self.requests, n);
    }

    /// One more reply has begun to arrive.
    pub(crate) fn add_reply(&self) {
        Self::add(&self.replies, 1);
    }

    /// Whether every request that was sent has its reply. Only a hint: either may be counted late.
    pub(crate) fn all_replied(&self) -> bool {
        self.requests.load(Relaxed) == self.replies.load(Relaxed)
    }

    /// So many bytes are sent.
    pub(crate) fn add_sent(&self, bytes: usize) {
        Self::add(&self.sent, bytes);
        self.moved.store(jiffies(), Relaxed);
    }

    /// So many bytes are received.
    pub(crate) fn add_received(&self, bytes: usize) {
        Self::add(&self.received, bytes);
        self.moved.store(jiffies(), Relaxed);
    }

    /// For how long no byte has moved, in jiffies.
    pub(crate) fn idle_for(&self) -> Jiffies {
        jiffies_since(self.moved.load(Relaxed))
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

/// A socket that serves requests, with its receiver. The connection that it belongs to gets another
/// one when it is lost.
#[pin_data]
pub(crate) struct Link {
    /// Never used twice for a device: what tells this link from those before and after it.
    generation: u64,
    disk: ARef<Disk>,
    socket: Stream,
    giver: Process,
    traffic: Traffic,
    /// The receiver's work has it for as long as it runs; nobody else wants it.
    #[pin]
    receiver: Mutex<Receiver>,
    #[pin]
    receive_work: Work<Link>,
}

impl_has_work! {
    impl HasWork<Link> for Link { self.receive_work }
}

impl Link {
    /// Makes a link of a socket that the current process gave. Sleeps.
    pub(crate) fn new(disk: &Disk, socket: Socket) -> Result<Arc<Self>> {
        socket.set_block_io();
        let socket = Stream(socket);
        Arc::pin_init(
            pin_init!(Self {
                generation: disk.data().new_generation(),
                disk: disk.into(),
                socket,
                giver: Process::current(),
                traffic: Traffic::new(),
                receiver <- new_mutex!(Receiver::new()),
                receive_work <- new_work!("nbd_receive"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket.0
    }

    /// The process that gave the socket.
    pub(crate) fn giver(&self) -> &Process {
        &self.giver
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Starts the receiver. Does not sleep.
    pub(crate) fn launch(self: &Arc<Self>, receivers: &OwnedQueue) {
        // If it is queued already, a reconnect has come between the start of the session and this.
        let _ = receivers.enqueue(self.clone());
    }

    /// Has the session replay the link's requests elsewhere, or end.
    pub(crate) fn lose(&self, loss: Loss) {
        match self.disk.data().session() {
            Some(session) => session.lost(self, loss),
            // The end of the session sees to everything.
            None => self.socket().shutdown(),
        }
    }
}

impl WorkItem for Link {
    type Pointer = Arc<Self>;

    /// Receives until the link ends.
    fn run(this: Arc<Self>) {
        let error = this.receiver.lock().run(&this.disk, &this);
        this.lose(Loss::Receive(error));
    }
}
