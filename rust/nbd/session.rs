// SPDX-License-Identifier: GPL-2.0

//! A session: the time in which connections serve the requests of a device.
//!
//! This file creates and starts a session, and changes its parameters while it runs. `submit` hands
//! requests to connections, `recovery` handles link errors and reconnects, and `end` ends the
//! session.

mod change;
mod connections;
mod end;
mod recovery;
mod state;
mod submit;
mod sysfs;

use crate::{
    connection::Connection,
    driver::DeviceInfo,
    link::Link,
    log::Topic,
    params::Params,
    protocol::Flags,
    refusal::MAX_CONNECTIONS,
    request::{
        Disk,
        DiskOps, //
    },
    state::Setup,
    workqueues::Workqueues,
    NbdModule, //
};
use connections::Places;
use kernel::{
    block::mq::AttributeFile,
    module::ModuleRef,
    net::socket::Socket,
    new_mutex,
    new_wait_queue,
    new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        wait::WaitQueue,
        Arc,
        Mutex, //
    },
    task::{
        Pid,
        Task,
        Thread, //
    },
    time::{
        Instant,
        Monotonic, //
    },
    workqueue::{
        impl_has_work,
        Work, //
    }, //
};
pub(crate) use state::Phase;
use state::{
    DoIt,
    SessionState, //
};
use sysfs::{
    Backend,
    Connections,
    Pid as PidAttribute,
    Shown,
    State, //
};

/// What has started a session.
pub(crate) enum Origin {
    /// `NBD_DO_IT`: the session ends when the last link fails, or with the thread.
    Ioctl { thread: Arc<Thread> },
    /// A netlink message: the session stays without a link, since a reconnect may bring one.
    Netlink {
        /// The backend identifier, which reconnects must repeat.
        backend: Option<Arc<KVec<u8>>>,
    },
}

/// The files of a session in sysfs.
struct Files {
    _pid: AttributeFile<DiskOps, PidAttribute>,
    _backend: Option<AttributeFile<DiskOps, Backend>>,
    state: AttributeFile<DiskOps, State<Session>>,
    connections: AttributeFile<DiskOps, Connections<Session>>,
}

/// What the lock of a session's state guards.
struct SessionInner {
    state: SessionState,
    do_it: DoIt,
}

/// A session.
#[pin_data]
pub(crate) struct Session {
    /// The thread that has started the session.
    pid: Pid,
    origin: Origin,
    created: Instant<Monotonic>,
    flags: Flags,
    /// In seconds; 0 means that a slow server is never disconnected.
    timeout: Atomic<u32>,
    /// How long requests wait while no connection is open, in seconds.
    dead_conn_timeout: Atomic<u32>,
    places: Places<Arc<Connection>>,
    workqueues: Arc<Workqueues>,
    info: Arc<DeviceInfo>,
    /// Counts the requests that their own connection did not take, so that the open ones take
    /// turns.
    fallback: Atomic<u32>,
    hw_queues: u32,
    /// Link errors for which no `NBD_CMD_LINK_DEAD` was sent yet.
    pending_link_dead: Atomic<u32>,
    #[pin]
    inner: Mutex<SessionInner>,
    /// Woken when the state changes, or a condition that a task waits for may have become true.
    #[pin]
    changed: WaitQueue,
    #[pin]
    files: Mutex<Option<(Files, ModuleRef<NbdModule>)>>,
    /// The parameters of the disk. Held while they are changed.
    #[pin]
    applied: Mutex<Params>,
    #[pin]
    end_work: Work<Session, 0>,
    /// Runs while any time limit is pending.
    #[pin]
    clock_work: Work<Session, 1>,
    /// Tells users what has changed.
    #[pin]
    notify_work: Work<Session, 2>,
    /// Runs while the task has left `NBD_DO_IT`.
    #[pin]
    do_it_exit_work: Work<Session, 3>,
    /// Sends the `NBD_CMD_SESSION_END` message.
    #[pin]
    notify_end_work: Work<Session, 4>,
    /// Must be dropped last: the module may be unloaded once the device is gone.
    disk: ARef<Disk>,
}

impl_has_work! {
    impl HasWork<Session, 0> for Session { self.end_work }
    impl HasWork<Session, 1> for Session { self.clock_work }
    impl HasWork<Session, 2> for Session { self.notify_work }
    impl HasWork<Session, 3> for Session { self.do_it_exit_work }
    impl HasWork<Session, 4> for Session { self.notify_end_work }
}

/// The owner of a session, which is the configuration of a device.
pub(crate) trait SessionOwner {
    /// Returns the parameters of the running session.
    fn running_params(&self) -> Option<Params>;

    /// Restores the block size of the running session after the disk could not be given `failed`.
    fn revert_block_size(&self, failed: u32, block_size: u32);

    /// Removes the session, so that it gets no more requests. The caller drops the returned
    /// reference.
    fn uninstall(&self) -> Option<Arc<Session>>;

    /// Reports that `session` has ended. The caller drops the returned reference of the owner.
    fn stopped(&self, disk: &Disk, session: &Session) -> Option<Arc<Session>>;
}

/// How long a server may take to close its end after a disconnect, in milliseconds.
const DISCONNECT_MS: u32 = 1000;

impl Session {
    /// Creates a session of `setup`. It serves nothing before [`Self::launch`].
    ///
    /// Fails with `EINVAL` if the server does not support as many connections as there are sockets.
    ///
    /// Context: may sleep.
    pub(crate) fn new(
        disk: &Disk,
        info: &Arc<DeviceInfo>,
        mut setup: Setup<ARef<Task>, Socket>,
        origin: Origin,
    ) -> Result<Arc<Self>> {
        let params = setup.params();
        let count = u32::try_from(setup.socket_count())?;
        if count > 1 && !params.flags().multi_conn() {
            if info.may_log(Topic::Refusal) {
                dev_err!(
                    disk.device(),
                    "not started: the server does not support multiple connections, but {} \
                     sockets were set; set one\n",
                    count
                );
            }
            return Err(EINVAL);
        }
        let workqueues = info.driver().session_workqueues()?;
        // Only a server that supports multiple connections can get more.
        let places = Places::new(match params.flags().multi_conn() {
            true => MAX_CONNECTIONS,
            false => setup.socket_count(),
        })?;
        for index in 0..count {
            let Some(socket) = setup.pop_socket() else {
                break;
            };
            let link = Link::new(disk, info, &workqueues, socket)?;
            places.add(index, Connection::new(index, link)?);
        }

        // If memory is short, the disk keeps the queues that it has.
        let _ = disk.tag_set().update_hw_queue_count(count);
        let hw_queues = disk.tag_set().hw_queue_count();
        params.prepare(disk)?;
        let session = Arc::pin_init(
            pin_init!(Self {
                disk: disk.into(),
                pid: current!().pid(),
                origin,
                created: Instant::now(),
                flags: params.flags(),
                timeout: Atomic::new(params.timeout()),
                dead_conn_timeout: Atomic::new(params.dead_conn_timeout()),
                places,
                workqueues,
                info: info.clone(),
                fallback: Atomic::new(0),
                hw_queues,
                pending_link_dead: Atomic::new(0),
                inner <- new_mutex!(SessionInner {
                    state: SessionState::Live(count),
                    do_it: DoIt::new(),
                }),
                changed <- new_wait_queue!("nbd_session"),
                files <- new_mutex!(None),
                applied <- new_mutex!(params),
                end_work <- new_work!("nbd_end"),
                clock_work <- new_work!("nbd_clock"),
                notify_work <- new_work!("nbd_notify"),
                do_it_exit_work <- new_work!("nbd_do_it_exit"),
                notify_end_work <- new_work!("nbd_notify_end"),
            }),
            GFP_KERNEL,
        )?;
        Ok(session)
    }

    /// Creates the sysfs files, after the session was installed in the device, and takes a
    /// reference to the module. Fails with `ENODEV` if the module is being unloaded. Context: may
    /// sleep.
    pub(crate) fn create_files(self: &Arc<Self>) -> Result {
        let module = ModuleRef::try_get().ok_or(ENODEV)?;
        let pid = AttributeFile::create(&self.disk, PidAttribute::new(self.pid))?;
        let backend = match &self.origin {
            Origin::Ioctl { .. } => None,
            Origin::Netlink { backend } => {
                let backend = Backend::new(backend.clone());
                Some(AttributeFile::create(&self.disk, backend)?)
            }
        };
        let files = Files {
            _pid: pid,
            _backend: backend,
            state: AttributeFile::create(&self.disk, State::new(self.clone()))?,
            connections: AttributeFile::create(&self.disk, Connections::new(self.clone()))?,
        };
        *self.files.lock() = Some((files, module));
        Ok(())
    }

    /// Calls `f`, which makes this session the running one. Fails with `EPIPE` if the session is
    /// ending already, since a flush request may have found a broken link. Context: may sleep.
    pub(crate) fn set_running(&self, f: impl FnOnce()) -> Result {
        // The end takes this lock, too, and so finds the session running.
        let _applied = self.applied.lock();
        if self.inner.lock().state.is_ending() {
            return Err(EPIPE);
        }
        f();
        Ok(())
    }

    /// Starts to serve requests, after the session was installed in the device. Context: may sleep.
    pub(crate) fn launch(&self, owner: &impl SessionOwner) {
        {
            // The end waits for receivers that were started under this lock.
            let inner = self.inner.lock();
            if !inner.state.takes_links() {
                return;
            }
            for link in self.connections().filter_map(|one| one.link()) {
                link.launch();
            }
        }
        {
            let mut applied = self.applied.lock();
            if self.is_ended() {
                return;
            }
            // The parameters may have changed since the session was created.
            if self.apply(owner, &mut applied).is_err() {
                dev_warn!(self.disk.device(), "could not change the block size\n");
            }
            applied.apply_size(&self.disk);
        }
        if self.info.may_log(Topic::Session) {
            dev_info!(
                self.disk.device(),
                "session started by task {} with {} connection(s)\n",
                self.pid,
                self.count_connections().1
            );
        }
    }

    /// Removes the sysfs files that are left after [`Self::set_running`] has failed. Context: may
    /// sleep.
    pub(crate) fn remove_files(&self) {
        let files = self.files.lock().take();
        drop(files);
    }

    /// Wakes the tasks that poll the sysfs files. Context: may sleep.
    pub(crate) fn notify_files(&self) {
        if let Some((files, _)) = &*self.files.lock() {
            files.state.notify();
            files.connections.notify();
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// When the session was created.
    pub(crate) fn created(&self) -> Instant<Monotonic> {
        self.created
    }

    /// Returns the state for users.
    pub(crate) fn phase(&self) -> Phase {
        self.inner.lock().state.phase()
    }

    /// Returns how many connections are open, and how many there are.
    pub(crate) fn count_connections(&self) -> (u32, usize) {
        let open = self.inner.lock().state.open_connections();
        let all = self.connections().filter(|one| !one.is_removed());
        (open, all.count())
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn info(&self) -> &Arc<DeviceInfo> {
        &self.info
    }

    pub(crate) fn workqueues(&self) -> &Arc<Workqueues> {
        &self.workqueues
    }

    /// Returns the connections in their order, also those that were removed.
    pub(crate) fn connections(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.places.iter()
    }

    /// Whether a netlink message has started the session.
    pub(crate) fn is_netlink(&self) -> bool {
        matches!(self.origin, Origin::Netlink { .. })
    }

    /// Returns the backend identifier, if there is one.
    pub(crate) fn backend(&self) -> Option<&[u8]> {
        match &self.origin {
            Origin::Netlink { backend } => backend.as_ref().map(|name| name.as_slice()),
            Origin::Ioctl { .. } => None,
        }
    }

    /// Returns the name of the state for debugfs.
    pub(crate) fn describe(&self) -> &'static str {
        self.inner.lock().state.describe()
    }

    fn is_ended(&self) -> bool {
        self.inner.lock().state.ended().is_some()
    }

    /// Applies parameters that were changed to the disk.
    ///
    /// Fails with `EBUSY` if requests are in flight for longer than a second. The block size is
    /// then as before.
    ///
    /// Context: may sleep; a change of the block size waits until no request is in flight.
    pub(crate) fn refresh(&self, owner: &impl SessionOwner) -> Result {
        let mut applied = self.applied.lock();
        if self.is_ended() {
            return Ok(());
        }
        let old = *applied;
        let result = self.apply(owner, &mut applied);
        // Partition tables count in blocks, so a new block size needs a partition scan, too.
        if old.size() != applied.size() || old.block_size() != applied.block_size() {
            applied.apply_size(&self.disk);
        }
        result
    }

    /// Applies all parameters but the size.
    fn apply(&self, owner: &impl SessionOwner, applied: &mut Params) -> Result {
        let Some(new) = owner.running_params() else {
            return Ok(());
        };
        let old = core::mem::replace(applied, new);
        self.timeout.store(new.timeout(), Relaxed);
        if old.timeout() != new.timeout() {
            new.apply_timeout(&self.disk);
        }
        if old.dead_conn_timeout() != new.dead_conn_timeout() {
            // Tasks that wait read this under the lock.
            let _inner = self.inner.lock();
            self.dead_conn_timeout
                .store(new.dead_conn_timeout(), Relaxed);
            self.changed.wake_all();
        }
        if old.block_size() != new.block_size() {
            new.apply_limits(&self.disk).inspect_err(|_| {
                owner.revert_block_size(new.block_size(), old.block_size());
                if let Ok(reverted) = new.with_block_size(old.block_size() as usize) {
                    *applied = reverted;
                }
            })?;
        }
        Ok(())
    }
}

impl Shown for Session {
    fn state(&self) -> &'static str {
        self.phase().name()
    }

    fn connections(&self) -> (u32, usize) {
        self.count_connections()
    }
}
