// SPDX-License-Identifier: GPL-2.0

//! A session: the time in which connections serve a device's requests.
//!
//! However a session ends, one path ends it, [`WorkItem::run`] of [`Session`]: it closes the
//! connections, waits for their workers, finishes every request, and only then reports that the
//! device is stopped.

use crate::{
    connection::Connection,
    device::DiskOps,
    device::{Disk, Setup},
    kernel::{
        block::{
            mq::{Op, OwnedRequest, PidFile, Request, TimeoutAction},
            BlkStatus, //
        },
        workqueue::OwnedQueue, //
    },
    params::Params,
    protocol::{is_supported, Flags},
    queue::Queue,
    receive::ReceiveError,
};
use kernel::{
    fmt,
    new_condvar,
    new_mutex,
    new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc, CondVar, CondVarTimeoutResult, Mutex,
    },
    task::Pid,
    time::msecs_to_jiffies,
    workqueue::{impl_has_work, Work, WorkItem}, //
};

/// The most work items that a workqueue runs at a time; its share of one memory node is enough for
/// as many connections as there can be.
const RECEIVERS: u32 = 2048;

/// How long a server may take to close its end after it was told to, in milliseconds.
const GOODBYE_MS: u32 = 1000;

/// Why a connection was lost.
pub(crate) enum Loss {
    Receive(ReceiveError),
    Send(Error),
    TimedOut,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Receive(error) => error.fmt(f),
            Self::Send(error) => write!(f, "send failed ({})", error.to_errno()),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The last connection was lost.
    Lost,
    /// The last connection was lost because the server took too long.
    TimedOut,
    /// A user asked for it.
    Requested,
    /// The task that runs the session got a signal.
    Interrupted,
}

impl Reason {
    /// What `NBD_DO_IT` returns.
    pub(crate) fn result(self) -> Result<i32> {
        match self {
            Self::Lost | Self::Requested => Ok(0),
            Self::TimedOut => Err(ETIMEDOUT),
            Self::Interrupted => Err(EINTR),
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Lost => "all connections were lost",
            Self::TimedOut => "the server took too long",
            Self::Requested => "disconnected on request",
            Self::Interrupted => "its task got a signal",
        }
    }
}

/// Where a session is in its life.
enum Life {
    /// So many connections are open.
    Live(u32),
    /// As above, and the servers were told to close them.
    Goodbye(u32),
    /// The end is being made.
    Ending(Reason),
    /// All connections are closed, all requests finished.
    Ended(Reason),
}

/// A session.
#[pin_data]
pub(crate) struct Session {
    disk: ARef<Disk>,
    /// The thread that asked for the session.
    pid: Pid,
    flags: Flags,
    /// In seconds; 0 means that a slow server is never disconnected.
    timeout: Atomic<u32>,
    connections: KVec<Arc<Connection>>,
    receivers: Arc<OwnedQueue>,
    senders: Arc<OwnedQueue>,
    /// The connection that the next request falls back to.
    fallback: Atomic<u32>,
    hw_queues: u32,
    #[pin]
    life: Mutex<Life>,
    #[pin]
    changed: CondVar,
    /// While it exists, `/sys/block/nbdN/pid` does.
    #[pin]
    pid_file: Mutex<Option<PidFile<DiskOps>>>,
    /// The parameters that the disk has, held while they are changed.
    #[pin]
    applied: Mutex<Params>,
    #[pin]
    end_work: Work<Session>,
}

impl_has_work! {
    impl HasWork<Session> for Session { self.end_work }
}

impl Session {
    /// Makes a session of `setup`. Nothing is served before [`Self::launch`]. Sleeps.
    ///
    /// Fails with `EINVAL` if the server does not take as many connections as there are sockets.
    pub(crate) fn new(disk: &Disk, mut setup: Setup) -> Result<Arc<Self>> {
        let params = setup.params();
        let count = u32::try_from(setup.socket_count())?;
        if count > 1 && !params.flags().multi_conn() {
            dev_err!(
                disk.device(),
                "not started: the server does not support multiple connections, but {} sockets \
                 were set; set one\n",
                count
            );
            return Err(EINVAL);
        }
        let device = disk.data();
        // Receivers stay for the whole session: senders must not wait for them.
        let receivers = OwnedQueue::new_unbound_reclaim(c"nbd-receive", device.index(), RECEIVERS)?;
        let receivers = Arc::new(receivers, GFP_KERNEL)?;
        let senders = OwnedQueue::new_unbound_reclaim(c"nbd-send", device.index(), count)?;
        let senders = Arc::new(senders, GFP_KERNEL)?;

        let mut connections = KVec::with_capacity(setup.socket_count(), GFP_KERNEL)?;
        for index in 0..count {
            let Some(socket) = setup.pop_socket() else {
                break;
            };
            let id = device.new_connection_id();
            let connection = Connection::new(disk, id, index, &receivers, &senders, socket)?;
            connections.push(connection, GFP_KERNEL)?;
        }

        let hw_queues = disk.set_hw_queues(count);
        params.prepare(disk)?;
        let session = Arc::pin_init(
            pin_init!(Self {
                disk: disk.into(),
                pid: current!().pid(),
                flags: params.flags(),
                timeout: Atomic::new(params.timeout()),
                connections,
                receivers,
                senders,
                fallback: Atomic::new(0),
                hw_queues,
                life <- new_mutex!(Life::Live(count)),
                changed <- new_condvar!(),
                pid_file <- new_mutex!(None),
                applied <- new_mutex!(params),
                end_work <- new_work!("nbd_end"),
            }),
            GFP_KERNEL,
        )?;
        Ok(session)
    }

    /// Publishes `pid`. Sleeps.
    pub(crate) fn create_pid_file(&self) -> Result {
        *self.pid_file.lock() = Some(PidFile::create(&self.disk)?);
        Ok(())
    }

    /// Starts serving requests, after the session was made known to the device.
    pub(crate) fn launch(&self) {
        let mut applied = self.applied.lock();
        if let Some(params) = self.disk.data().running_params() {
            *applied = params;
        }
        {
            // Whoever ends the session waits for the receivers that were started under the lock.
            let life = self.life.lock();
            if !matches!(&*life, Life::Live(_)) {
                return;
            }
            for connection in &self.connections {
                connection.launch();
            }
        }
        applied.apply_size(&self.disk);
        dev_info!(
            self.disk.device(),
            "session started by task {} with {} connection(s)\n",
            self.pid,
            self.connections.len()
        );
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The connections of a hardware queue: every so many, since there may be fewer queues.
    fn of_queue(&self, hctx: u32) -> impl Iterator<Item = &Arc<Connection>> {
        let (first, step) = (hctx as usize, self.hw_queues.max(1) as usize);
        self.connections.iter().skip(first).step_by(step)
    }

    /// Hands a request to a connection: one of its hardware queue, or another that is open.
    pub(crate) fn submit(&self, hctx: u32, rq: OwnedRequest<Queue>, last: bool) {
        let writes = !matches!(rq.op(), Op::Read | Op::Flush);
        let own = self.of_queue(hctx).count();
        // A queue with one connection has its batch sent by the push that ends it.
        let mut sent = false;
        if !is_supported(rq.op()) || (writes && self.flags.read_only()) {
            rq.end(BlkStatus::IOERR);
        } else {
            let pick = (rq.unique_tag() as usize).checked_rem(own).unwrap_or(0);
            let pushed = match self.of_queue(hctx).nth(pick) {
                Some(connection) => connection.push(rq, last && own == 1),
                None => Err(rq),
            };
            match pushed {
                Ok(()) => sent = own == 1,
                Err(rq) => self.fall_back(rq),
            }
        }
        if last && !sent {
            self.flush(hctx);
        }
    }

    /// Hands a request to a connection that is open, each in turn, or fails it.
    fn fall_back(&self, mut rq: OwnedRequest<Queue>) {
        let first = self.fallback.fetch_add(1, Relaxed) as usize;
        let first = first.checked_rem(self.connections.len()).unwrap_or(0);
        let (before, after) = self.connections.split_at(first);
        for connection in [after, before].into_iter().flatten() {
            // Nobody announces the end of a batch to a connection that is not the queue's own.
            match connection.push(rq, true) {
                Ok(()) => return,
                Err(back) => rq = back,
            }
        }
        rq.end(BlkStatus::IOERR);
    }

    /// Sends what [`Self::submit`] queued without `last`.
    pub(crate) fn flush(&self, hctx: u32) {
        for connection in self.of_queue(hctx) {
            connection.flush();
        }
    }

    /// `connection`, which was open, is closed: its requests go to another, or the session ends.
    pub(crate) fn lost(self: &Arc<Self>, connection: &Connection, loss: Loss) {
        if !self.connections.iter().any(|c| c.id() == connection.id()) {
            // It was of an earlier session, whose end has seen to everything.
            return;
        }
        let left = {
            let mut life = self.life.lock();
            let (left, asked) = match &*life {
                Life::Live(open) => (open.saturating_sub(1), false),
                Life::Goodbye(open) => (open.saturating_sub(1), true),
                Life::Ending(_) | Life::Ended(_) => return,
            };
            let reason = match loss {
                _ if asked => Reason::Requested,
                Loss::TimedOut => Reason::TimedOut,
                Loss::Receive(_) | Loss::Send(_) => Reason::Lost,
            };
            match (left, asked) {
                (0, _) => self.end(&mut life, reason),
                (_, false) => *life = Life::Live(left),
                (_, true) => *life = Life::Goodbye(left),
            }
            left
        };
        dev_info!(
            self.disk.device(),
            "connection {} lost: {}; {} of {} left\n",
            connection.index(),
            loss,
            left,
            self.connections.len()
        );
        self.disk.for_each_started(|rq| {
            if let Some(claim) = rq.claim(None, |data| data.is_on(connection)) {
                claim.requeue();
            }
        });
    }

    /// Has the end made, once.
    fn end(self: &Arc<Self>, life: &mut Life, reason: Reason) {
        *life = Life::Ending(reason);
        // It cannot be queued already: a session begins to end once.
        let _ = self.disk.data().enders().enqueue(self.clone());
    }

    /// Ends the session, and waits until that is done: bounded, since it waits for no peer. Sleeps.
    pub(crate) fn stop(self: &Arc<Self>, reason: Reason) -> Reason {
        let mut life = self.life.lock();
        loop {
            match &*life {
                Life::Live(_) | Life::Goodbye(_) => self.end(&mut life, reason),
                Life::Ending(_) => self.changed.wait(&mut life),
                Life::Ended(reason) => return *reason,
            }
        }
    }

    /// Tells the servers to close the connections, and ends the session when they have, or when
    /// they take too long. Sleeps, for little more than a second.
    pub(crate) fn disconnect(self: &Arc<Self>) {
        {
            let mut life = self.life.lock();
            if let Life::Live(open) = *life {
                *life = Life::Goodbye(open);
            }
        }
        for connection in &self.connections {
            connection.say_goodbye();
        }
        let mut left = msecs_to_jiffies(GOODBYE_MS);
        let mut life = self.life.lock();
        while !matches!(&*life, Life::Ended(_)) {
            match self.changed.wait_interruptible_timeout(&mut life, left) {
                CondVarTimeoutResult::Woken { jiffies } => left = jiffies,
                CondVarTimeoutResult::Timeout | CondVarTimeoutResult::Signal { .. } => break,
            }
        }
        drop(life);
        self.stop(Reason::Requested);
    }

    /// Waits until the session has ended, and ends it when the current task gets a signal.
    pub(crate) fn wait(self: &Arc<Self>) -> Reason {
        let mut life = self.life.lock();
        loop {
            if let Life::Ended(reason) = &*life {
                return *reason;
            }
            if self.changed.wait_interruptible(&mut life) {
                drop(life);
                return self.stop(Reason::Interrupted);
            }
        }
    }

    /// A request took longer than the timeout.
    pub(crate) fn timed_out(&self, rq: &Request<Queue>) -> TimeoutAction {
        let slow = |connection: &&Arc<Connection>| {
            rq.published(|data| data.is_on(connection)) == Some(true)
        };
        let Some(connection) = self.connections.iter().find(slow) else {
            return TimeoutAction::Rearm;
        };
        if self.timeout.load(Relaxed) == 0 {
            if self.disk.data().may_log() {
                dev_warn!(
                    self.disk.device(),
                    "a request waits for the server for a long time; there is no timeout\n"
                );
            }
            return TimeoutAction::Rearm;
        }
        // It may be half received: the receiver gives it up when the socket is shut down.
        connection.lose(Loss::TimedOut);
        TimeoutAction::Done
    }

    fn is_ended(&self) -> bool {
        matches!(&*self.life.lock(), Life::Ended(_))
    }

    /// Gives the disk the parameters that were changed while the session runs. Sleeps; for another
    /// block size, until no request is in flight.
    pub(crate) fn refresh(&self) -> Result {
        let mut applied = self.applied.lock();
        let Some(new) = self.disk.data().running_params() else {
            return Ok(());
        };
        let old = core::mem::replace(&mut *applied, new);
        self.timeout.store(new.timeout(), Relaxed);
        if old.timeout() != new.timeout() {
            new.apply_timeout(&self.disk);
        }
        if old.block_size() != new.block_size() {
            new.apply_limits(&self.disk)?;
        }
        if old.size() != new.size() && !self.is_ended() {
            new.apply_size(&self.disk);
        }
        Ok(())
    }
}

impl WorkItem for Session {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let device = this.disk.data();
        for connection in &this.connections {
            connection.close();
        }
        this.senders.flush();
        this.receivers.flush();
        let published = device.unpublish();
        // No queue function runs in between, so that no request is on its way to a connection.
        this.disk.quiesced(|| {
            this.disk.for_each_started(|rq| {
                if let Some(claim) = rq.claim(None, |_| true) {
                    claim.end(BlkStatus::IOERR);
                }
            })
        });
        // Requests that were requeued are failed when they come again.
        this.disk.drain();
        let pid_file = this.pid_file.lock().take();
        drop(pid_file);
        // Who changes the size of the disk does so before this, or sees that the session has ended.
        let applied = this.applied.lock();
        let stopped = device.stopped(&this.disk);
        {
            let mut life = this.life.lock();
            if let Life::Ending(reason) = *life {
                dev_info!(this.disk.device(), "session ended: {}\n", reason.describe());
                *life = Life::Ended(reason);
            }
        }
        drop(applied);
        this.changed.notify_all();
        drop((published, stopped));
    }
}
