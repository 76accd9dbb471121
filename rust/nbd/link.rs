// SPDX-License-Identifier: GPL-2.0

//! A link: the current socket of a connection, with its sender and its receiver.

mod direct;
mod feed;
mod read_ahead;
mod receive;
mod receive_side;
mod send;
mod send_side;
mod sender;
mod socket;
mod stats;

pub(crate) use read_ahead::LONG_PAYLOAD;
pub(crate) use send_side::{
    Broken,
    Sent, //
};

use crate::{
    driver::DeviceInfo,
    protocol::Cookie,
    request::{
        Disk,
        Queue,
        RequestData, //
    },
    trace::{
        self,
        Attempt, //
    },
    workqueues::Workqueues, //
};
use core::cell::Cell;
use kernel::{
    block::mq::{
        Claim,
        Request,
        RequestCursor, //
    },
    net::{
        data_ready::{
            DataReadyHook,
            SkBuff, //
        },
        ready::ReadyHook,
        socket::Socket, //
    },
    new_spinlock,
    new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        new_spinlock_irq,
        Arc,
        SpinLock,
        SpinLockIrq, //
    },
    task::Task,
    time::{
        Instant,
        Jiffies,
        Monotonic, //
    },
    workqueue::{
        impl_has_work,
        Work, //
    }, //
};
use read_ahead::ReadAhead;
use receive_side::ReceiveSide;
use send_side::SendSide;
use socket::LinkSocket;
use stats::LinkStats;

/// What the receiver keeps between two runs. It must not be on the stack, see
/// [`BvecDest::push_bytes`](kernel::bvec::BvecDest::push_bytes).
struct Receiver {
    ahead: ReadAhead,
    partial: Option<Partial>,
    /// What a callback has taken from the socket and left to the work. It comes after `ahead`.
    taken: Option<SkBuff>,
}

impl Receiver {
    fn new() -> Self {
        Self {
            ahead: ReadAhead::new(),
            partial: None,
            taken: None,
        }
    }
}

/// What the receiver reports to its caller while it runs.
pub(crate) enum Report {
    /// A request of a watched link has finished.
    Finished,
    /// The server is shutting down and refused this request. The caller takes the link out of its
    /// connection, and requeues the request after that.
    Refused(Claim<Queue>),
}

/// A reply whose payload is incomplete.
struct Partial {
    /// Its cursor is behind the bytes of the payload that have arrived.
    claim: RequestCursor<Claim<Queue>>,
    cookie: Cookie,
    /// The number of bytes of the payload that are missing.
    left: usize,
}

/// A socket that serves requests, with its sender and its receiver. After a link error its
/// connection can get another link.
#[pin_data(PinnedDrop)]
pub(crate) struct Link {
    /// Never used twice for a device. It distinguishes this link from earlier and later ones.
    generation: u64,
    info: Arc<DeviceInfo>,
    disk: ARef<Disk>,
    #[pin]
    socket: LinkSocket,
    /// The number of the connection that it was installed in last.
    connection: Atomic<u32>,
    /// The process that added the socket.
    added_by: ARef<Task>,
    stats: LinkStats,
    /// The number of tasks that wait for requests of the link to finish.
    watchers: Atomic<u32>,
    workqueues: Arc<Workqueues>,
    #[pin]
    send_side: SpinLock<SendSide>,
    /// A lock for any context, as callbacks of the socket take it.
    #[pin]
    receive_side: SpinLockIrq<ReceiveSide<KBox<Receiver>>>,
    /// Receives where the bytes arrive, if the socket can have that.
    #[pin]
    direct: DataReadyHook<Link>,
    /// Queues the receive work when the socket has something to receive.
    #[pin]
    ready: ReadyHook<Link>,
    #[pin]
    receive_work: Work<Link, 0>,
    #[pin]
    send_work: Work<Link, 1>,
    #[pin]
    shutdown_work: Work<Link, 2>,
    #[pin]
    restore_work: Work<Link, 3>,
}

impl_has_work! {
    impl HasWork<Link, 0> for Link { self.receive_work }
    impl HasWork<Link, 1> for Link { self.send_work }
    impl HasWork<Link, 2> for Link { self.shutdown_work }
    impl HasWork<Link, 3> for Link { self.restore_work }
}

impl Link {
    /// Creates a link of a socket that the current process added. Context: may sleep.
    pub(crate) fn new(
        disk: &Disk,
        info: &Arc<DeviceInfo>,
        workqueues: &Arc<Workqueues>,
        socket: Socket,
    ) -> Result<Arc<Self>> {
        let receiver = KBox::new(Receiver::new(), GFP_KERNEL)?;
        Arc::pin_init(
            try_pin_init!(Self {
                generation: info.new_generation(),
                info: info.clone(),
                disk: disk.into(),
                socket <- LinkSocket::new(socket),
                connection: Atomic::new(0),
                added_by: ARef::from(&**current!()),
                stats: LinkStats::new(),
                watchers: Atomic::new(0),
                workqueues: workqueues.clone(),
                send_side <- new_spinlock!(SendSide::new()),
                receive_side <- new_spinlock_irq!(ReceiveSide::new(receiver)),
                direct <- DataReadyHook::new(info.driver().callbacks()),
                ready <- ReadyHook::new(),
                receive_work <- new_work!("nbd_receive"),
                send_work <- new_work!("nbd_send"),
                shutdown_work <- new_work!("nbd_shutdown"),
                restore_work <- new_work!("nbd_restore"),
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

    /// Whether a request with this data was last pushed to the link.
    pub(crate) fn has(&self, data: &RequestData) -> bool {
        data.generation() == self.generation
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn socket(&self) -> &LinkSocket {
        &self.socket
    }

    /// When the link was created.
    pub(crate) fn created(&self) -> Instant<Monotonic> {
        self.stats.created()
    }

    /// Tells the link, which is not in use yet, in which connection it is installed.
    pub(crate) fn set_connection(&self, index: u32) {
        self.connection.store(index, Relaxed);
    }

    /// Returns what the trace events say of a request that the link had.
    fn attempt(&self, data: &RequestData, cookie: Cookie) -> Attempt {
        let (sent_ns, latency_ns) = data.took(self.stats.age());
        Attempt {
            handle: cookie.into_wire(),
            index: self.info.index(),
            connection: self.connection.load(Relaxed),
            sent_ns,
            latency_ns,
        }
    }

    /// Has the block layer give the request to a connection again. Context: does not sleep.
    pub(crate) fn requeue(&self, claim: Claim<Queue>) {
        trace::nbd_requeue(&claim, || self.attempt(claim.data(), Cookie::of(&claim)));
        claim.requeue();
    }

    /// The process that added the socket.
    pub(crate) fn added_by(&self) -> &Task {
        &self.added_by
    }

    pub(crate) fn stats(&self) -> &LinkStats {
        &self.stats
    }

    /// Returns for how many more jiffies the server may leave `rq` unanswered if it has `limit` to
    /// answer a request. Its time begins when it has the whole request. One that waits for the
    /// link, is being transferred, or was not read yet may take any time while the link moves
    /// bytes. Context: does not sleep; only the timeout of requests calls it.
    pub(crate) fn patience(&self, rq: &Request<Queue>, limit: Jiffies) -> Jiffies {
        let data = rq.data();
        // What is sent after the first question may be unread by the second, and is not counted.
        let sent = self.stats.sent();
        let read = sent.saturating_sub(self.socket.unread() as u64);
        if data.end() <= read {
            let taken = if rq.is_in_use() {
                self.stats.idle_for()
            } else {
                data.sent_for()
            };
            return limit.saturating_sub(taken);
        }
        data.set_unread();
        // If the server has read everything, it is not what the link waits for.
        if read < sent && self.stats.reads_on(read) {
            // Only the next look tells whether it still does.
            return limit.div_ceil(4);
        }
        limit.saturating_sub(self.stats.idle_for())
    }

    /// Starts the receiver. Context: may sleep, under `Session::inner`.
    pub(crate) fn launch(self: &Arc<Self>) {
        self.ready.attach(&self.socket, self.clone());
        self.direct.attach(&self.socket, self.clone());
        // A shutdown may have found no hook to detach.
        if self.is_shut() {
            self.ready.detach();
        }
        // Bytes may have arrived before the hook was attached.
        self.receive_later();
    }

    /// Queues the receive work. Context: any.
    pub(crate) fn receive_later(self: &Arc<Self>) {
        // If it is queued already, it receives everything.
        let _ = self
            .workqueues
            .receivers()
            .enqueue::<Arc<Self>, 0>(self.clone());
    }

    /// Whether bytes that arrive can be received by callbacks of the socket. Context: may sleep.
    fn is_direct(&self) -> bool {
        self.direct.is_attached() && !self.socket.has_ulp()
    }

    /// Detaches the hooks and queues the receive work once more. Context: may sleep, also for the
    /// socket lock.
    pub(crate) fn receive_last(self: &Arc<Self>) {
        self.direct.detach();
        self.ready.detach();
        self.receive_later();
    }

    /// Queues the work that continues to send. Context: does not sleep.
    pub(crate) fn send_later(self: &Arc<Self>) {
        // If it is queued already, it takes this sender.
        let _ = self
            .workqueues
            .senders()
            .enqueue::<Arc<Self>, 1>(self.clone());
    }

    /// Queues the work that shuts the socket down, which ends the receiver. A work item does this
    /// since it takes the socket lock, which another user of the socket may hold for a long time.
    /// Context: does not sleep.
    pub(crate) fn shut_down(self: &Arc<Self>) {
        // If it is queued already, nothing else has to be done.
        let _ = self
            .workqueues
            .senders()
            .enqueue::<Arc<Self>, 2>(self.clone());
    }

    /// Queues the work that restores the settings of the socket, after it was shut down. It runs on
    /// the workqueue for ends, as requests may wait for those of the session. Context: does not
    /// sleep.
    pub(crate) fn restore_later(self: &Arc<Self>) {
        // If it is queued already, nothing else has to be done.
        let _ = self
            .info
            .driver()
            .end_wq()
            .enqueue::<Arc<Self>, 3>(self.clone());
    }

    /// Returns the number of requests in flight. Context: may sleep.
    pub(crate) fn in_flight(&self) -> u32 {
        let in_flight = Cell::new(0);
        self.disk.for_each_started(|rq| {
            if rq.published(|data| self.has(data)) == Some(true) {
                in_flight.set(in_flight.get() + 1);
            }
        });
        in_flight.get()
    }

    /// Whether any request is in flight. Context: may sleep.
    pub(crate) fn has_requests(&self) -> bool {
        self.in_flight() > 0
    }

    /// Has the receiver report finished requests until [`Self::unwatch`]. A caller that looks for
    /// requests in flight after this gets a report when a request that it has found finishes.
    pub(crate) fn watch(&self) {
        // This is fully ordered, as is the change of a request's phase before the receiver reads
        // it.
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
    /// Shows the peer the end of the stream, even if another process has the socket. A link that
    /// was in use is shut before this. Another one is dropped by the task that created it.
    fn drop(self: Pin<&mut Self>) {
        if !self.is_shut() {
            self.socket.shutdown();
        }
    }
}
