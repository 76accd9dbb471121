// SPDX-License-Identifier: GPL-2.0

//! A link: one socket of a connection, from the time it was given to its end.

use crate::{
    driver::DeviceInfo,
    receive::Receiver,
    request::Disk,
    send::SendSide,
    workqueues::Workqueues, //
};
use core::cell::Cell;
use kernel::{
    net::{
        ready::ReadyHook,
        socket::{BlockSocket, Socket},
    },
    new_mutex,
    new_spinlock,
    new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Full, Relaxed},
        Arc, Mutex, SpinLock,
    },
    task::Process,
    time::{jiffies, jiffies_since, Instant, Jiffies, Monotonic},
    workqueue::{impl_has_work, Work}, //
};

/// What went over a link. Only whoever sends writes what concerns sending, and only the receiver
/// what concerns receiving.
pub(crate) struct LinkStats {
    requests: Atomic<u64>,
    replies: Atomic<u64>,
    sent: Atomic<u64>,
    received: Atomic<u64>,
    /// When bytes moved last, in jiffies. Written by both: either is right.
    moved: Atomic<Jiffies>,
}

impl LinkStats {
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

/// A socket that serves requests, with its sender and its receiver. The connection that it belongs
/// to gets another one when it is lost.
#[pin_data(PinnedDrop)]
pub(crate) struct Link {
    /// Never used twice for a device: what tells this link from those before and after it.
    generation: u64,
    info: Arc<DeviceInfo>,
    disk: ARef<Disk>,
    #[pin]
    socket: BlockSocket,
    made: Instant<Monotonic>,
    /// The process that gave the socket.
    added_by: Process,
    stats: LinkStats,
    /// Tasks that want to know when a request of the link has finished.
    watchers: Atomic<u32>,
    workqueues: Arc<Workqueues>,
    #[pin]
    pub(crate) send_side: SpinLock<SendSide>,
    /// The receiver's work has it for as long as it runs; nobody else wants it. `None` once it is
    /// over.
    #[pin]
    pub(crate) receiver: Mutex<Option<Receiver>>,
    /// WorkqueuePair the receiver's work when there is something to receive.
    #[pin]
    ready: ReadyHook<Link>,
    #[pin]
    receive_work: Work<Link, 0>,
    #[pin]
    send_work: Work<Link, 1>,
    #[pin]
    shutdown_work: Work<Link, 2>,
    #[pin]
    give_back_work: Work<Link, 3>,
}

impl_has_work! {
    impl HasWork<Link, 0> for Link { self.receive_work }
    impl HasWork<Link, 1> for Link { self.send_work }
    impl HasWork<Link, 2> for Link { self.shutdown_work }
    impl HasWork<Link, 3> for Link { self.give_back_work }
}

impl Link {
    /// Makes a link of a socket that the current process gave. May sleep.
    pub(crate) fn new(
        disk: &Disk,
        info: &Arc<DeviceInfo>,
        workqueues: &Arc<Workqueues>,
        socket: Socket,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                generation: info.new_generation(),
                info: info.clone(),
                disk: disk.into(),
                socket <- BlockSocket::new(socket),
                made: Instant::now(),
                added_by: Process::current(),
                stats: LinkStats::new(),
                watchers: Atomic::new(0),
                workqueues: workqueues.clone(),
                send_side <- new_spinlock!(SendSide::new()),
                receiver <- new_mutex!(Some(Receiver::new())),
                ready <- ReadyHook::new(),
                receive_work <- new_work!("nbd_receive"),
                send_work <- new_work!("nbd_send"),
                shutdown_work <- new_work!("nbd_shutdown"),
                give_back_work <- new_work!("nbd_give_back"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.generation == other.generation
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn socket(&self) -> &BlockSocket {
        &self.socket
    }

    /// When the link was made.
    pub(crate) fn made(&self) -> Instant<Monotonic> {
        self.made
    }

    /// The process that gave the socket.
    pub(crate) fn added_by(&self) -> &Process {
        &self.added_by
    }

    pub(crate) fn stats(&self) -> &LinkStats {
        &self.stats
    }

    /// Starts the receiver. May sleep.
    pub(crate) fn launch(self: &Arc<Self>) {
        self.ready.attach(&self.socket, self.clone());
        // Whoever has shut the socket down meanwhile may have found nothing attached.
        if self.is_shut() {
            self.ready.detach();
        }
        // For what came before.
        self.receive_later();
    }

    /// Has a worker receive. Context: any.
    pub(crate) fn receive_later(self: &Arc<Self>) {
        // If it is queued already, it will find what there is.
        let _ = self
            .workqueues
            .receivers
            .enqueue::<Arc<Self>, 0>(self.clone());
    }

    /// Has the receiver told of the socket no more: it looks once more. May sleep.
    pub(crate) fn receive_last(self: &Arc<Self>) {
        self.ready.detach();
        self.receive_later();
    }

    /// Has a worker go on sending. Does not sleep.
    pub(crate) fn send_later(self: &Arc<Self>) {
        // If it is queued already, it will find the sender.
        let _ = self
            .workqueues
            .senders
            .enqueue::<Arc<Self>, 1>(self.clone());
    }

    /// Has a worker shut the socket down, which ends the receiver: that takes the socket's lock, and
    /// whoever else has the socket may have that for long. Does not sleep.
    pub(crate) fn shut_down(self: &Arc<Self>) {
        // If it is queued already, it does all that this would.
        let _ = self
            .workqueues
            .senders
            .enqueue::<Arc<Self>, 2>(self.clone());
    }

    /// Has a worker give the socket back, once it is shut down. No request waits for that worker, as
    /// it may for those of the session, and whoever drops the link finds that done. Does not sleep.
    pub(crate) fn give_back_later(self: &Arc<Self>) {
        // If it is queued already, it does all that this would.
        let _ = self
            .info
            .driver()
            .end_wq()
            .enqueue::<Arc<Self>, 3>(self.clone());
    }

    /// How many requests are in flight. May sleep.
    pub(crate) fn in_flight(&self) -> u32 {
        let in_flight = Cell::new(0);
        self.disk.for_each_started(|rq| {
            if rq.published(|data| data.generation() == self.generation()) == Some(true) {
                in_flight.set(in_flight.get() + 1);
            }
        });
        in_flight.get()
    }

    /// Whether any request is in flight. May sleep.
    pub(crate) fn has_requests(&self) -> bool {
        self.in_flight() > 0
    }

    /// From now on the receiver says when a request has finished, until [`Self::unwatch`]. Whoever
    /// looks for requests in flight after this hears of the end of any that is found.
    pub(crate) fn watch(&self) {
        // Fully ordered, as is the change of a request's phase before the receiver looks.
        self.watchers.fetch_add(1, Full);
    }

    pub(crate) fn unwatch(&self) {
        self.watchers.fetch_sub(1, Full);
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watchers.load(Relaxed) > 0
    }
}

#[pinned_drop]
impl PinnedDrop for Link {
    /// The peer sees the end of the stream, whoever else has the socket. One that was in use is shut
    /// by now; another is dropped by the task that made it.
    fn drop(self: Pin<&mut Self>) {
        if !self.is_shut() {
            self.socket.shutdown();
        }
    }
}
