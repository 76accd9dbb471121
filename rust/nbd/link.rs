// SPDX-License-Identifier: GPL-2.0

//! A link: one socket of a connection, from the time it was given to its end.

mod read_ahead;
mod receive;
mod send;
mod send_side;
mod sender;
mod socket;
mod stats;

pub(crate) use send_side::{Broken, Sent};

use crate::{
    driver::DeviceInfo,
    protocol::Cookie,
    request::{Disk, Queue},
    workqueues::Workqueues, //
};
use core::cell::Cell;
use kernel::{
    block::mq::Claim,
    net::{ready::ReadyHook, socket::Socket},
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
    time::{Instant, Monotonic},
    workqueue::{impl_has_work, Work}, //
};
use read_ahead::ReadAhead;
use send_side::SendSide;
use socket::LinkSocket;
use stats::LinkStats;

/// What the receiver keeps from one of its runs to the next. It must not be on the stack, see
/// [`BvecDest::push_bytes`](kernel::bvec::BvecDest::push_bytes).
pub(crate) struct Receiver {
    ahead: ReadAhead,
    partial: Option<Partial>,
}

/// What the receiver has to tell while it goes on.
pub(crate) enum Told {
    /// A request of a link that is watched has finished.
    Finished,
    /// The server refused a request because it is shutting down: the link is to be left, and the
    /// request to be requeued after that.
    Refused(Claim<Queue>),
}

/// A reply of which the payload is on its way.
struct Partial {
    claim: Claim<Queue>,
    cookie: Cookie,
    /// Bytes of the payload that have arrived.
    done: usize,
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
    socket: LinkSocket,
    made: Instant<Monotonic>,
    /// The process that gave the socket.
    added_by: Process,
    stats: LinkStats,
    /// Tasks that want to know when a request of the link has finished.
    watchers: Atomic<u32>,
    workqueues: Arc<Workqueues>,
    #[pin]
    send_side: SpinLock<SendSide>,
    /// The receiver's work has it for as long as it runs; nobody else wants it. `None` once it is
    /// over.
    #[pin]
    receiver: Mutex<Option<Receiver>>,
    /// Queues the receiver's work when there is something to receive.
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
                           socket <- LinkSocket::new(socket),
                           made: Instant::now(),
                           added_by: Process::current(),
                           stats: LinkStats::new(),
                           watchers: Atomic::new(0),
                           workqueues: workqueues.clone(),
                           send_side <- new_spinlock!(SendSide::new()),
                           receiver <- new_mutex!(Some(Receiver {
            ahead: ReadAhead::new(),
            partial: None,
            })),
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

    pub(crate) fn socket(&self) -> &LinkSocket {
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
            .receivers()
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
            .senders()
            .enqueue::<Arc<Self>, 1>(self.clone());
    }

    /// Has a worker shut the socket down, which ends the receiver: that takes the socket's lock, and
    /// whoever else has the socket may have that for long. Does not sleep.
    pub(crate) fn shut_down(self: &Arc<Self>) {
        // If it is queued already, it does all that this would.
        let _ = self
            .workqueues
            .senders()
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
