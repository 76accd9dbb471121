// SPDX-License-Identifier: GPL-2.0

//! A session: the time in which connections serve a device's requests.
//!
//! How it is made, what requests find in it, and what is changed while it runs. What happens when
//! connections are lost is in `recovery`, how it ends in
//! `end`, and the way of requests through it in `submit`.

mod connections;
mod end;
mod life;
mod recovery;
mod submit;
mod sysfs;

use crate::{
    connection::Connection,
    driver::DeviceInfo,
    link::Link,
    log::Topic,
    params::Params,
    protocol::Flags,
    request::{Disk, DiskOps},
    state::Setup,
    workqueues::Workqueues,
    NbdModule, //
};
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
        atomic::{Atomic, Relaxed},
        wait::WaitQueue,
        Arc, Mutex,
    },
    task::{Pid, Process, Thread},
    workqueue::{impl_has_work, Work}, //
};
use life::SessionState;
use sysfs::{Backend, Pid as PidAttribute};

/// Who made a session.
pub(crate) enum Origin {
    /// `NBD_DO_IT`: the session ends when all connections are lost, and with the thread.
    Ioctl { thread: Arc<Thread> },
    /// A netlink message: the session lasts until a disconnect, since a reconnect may bring new
    /// connections.
    Netlink {
        /// What the backend is called, for reconnects to check.
        backend: Option<Arc<KVec<u8>>>,
    },
}

/// What user space sees of a session.
struct Files {
    _pid: AttributeFile<DiskOps, PidAttribute>,
    _backend: Option<AttributeFile<DiskOps, Backend>>,
}

/// Whether the task in `NBD_DO_IT` is there.
enum Attendance {
    Present,
    /// It had to leave the kernel for a while, and comes back or exits.
    Away,
    /// The session has ended.
    Over,
}

/// How far a session is.
struct Life {
    state: SessionState,
    attendance: Attendance,
}

/// A session.
#[pin_data]
pub(crate) struct Session {
    /// The thread that asked for the session.
    pid: Pid,
    origin: Origin,
    flags: Flags,
    /// In seconds; 0 means that a slow server is never disconnected.
    timeout: Atomic<u32>,
    /// In seconds; how long requests wait when no connection is open.
    dead_conn_timeout: Atomic<u32>,
    connections: KVec<Arc<Connection>>,
    workqueues: Arc<Workqueues>,
    info: Arc<DeviceInfo>,
    /// The connection that the next request falls back to.
    fallback: Atomic<u32>,
    hw_queues: u32,
    /// Links that were lost and not yet told about.
    pending_link_dead: Atomic<u32>,
    #[pin]
    life: Mutex<Life>,
    /// The state has changed, or what somebody waits for in it.
    #[pin]
    changed: WaitQueue,
    #[pin]
    published: Mutex<Option<(Files, ModuleRef<NbdModule>)>>,
    /// The parameters that the disk has, held while they are changed.
    #[pin]
    applied: Mutex<Params>,
    #[pin]
    end_work: Work<Session, 0>,
    /// Runs while anything has its time.
    #[pin]
    clock_work: Work<Session, 1>,
    /// Tells about lost links.
    #[pin]
    notify_work: Work<Session, 2>,
    /// Runs while the task in `NBD_DO_IT` is away.
    #[pin]
    absence_work: Work<Session, 3>,
    /// Last: when the device is gone, so may be the module.
    disk: ARef<Disk>,
}

impl_has_work! {
    impl HasWork<Session, 0> for Session { self.end_work }
    impl HasWork<Session, 1> for Session { self.clock_work }
    impl HasWork<Session, 2> for Session { self.notify_work }
    impl HasWork<Session, 3> for Session { self.absence_work }
}

/// What has a session: the configuration of a device.
pub(crate) trait SessionOwner {
    /// The parameters of the session that runs.
    fn running_params(&self) -> Option<Params>;

    /// Puts back the block size of the session that runs: the disk could not have the one that
    /// `failed`.
    fn revert_block_size(&self, failed: u32, block_size: u32);

    /// Has no more requests go to the session. Returns it, to be dropped by the caller.
    fn unpublish(&self) -> Option<Arc<Session>>;

    /// The end of `session` is made. Returns the owner's reference to it, to be dropped by the
    /// caller.
    fn stopped(&self, disk: &Disk, session: &Session) -> Option<Arc<Session>>;
}

/// How long a server may take to close its end after it was told to, in milliseconds.
const DISCONNECT_MS: u32 = 1000;

impl Session {
    /// Makes a session of `setup`. Nothing is served before [`Self::launch`]. Sleeps.
    ///
    /// Fails with `EINVAL` if the server does not take as many connections as there are sockets.
    pub(crate) fn new(
        disk: &Disk,
        info: &Arc<DeviceInfo>,
        mut setup: Setup<Process, Socket>,
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
        let mut connections = KVec::with_capacity(setup.socket_count(), GFP_KERNEL)?;
        for index in 0..count {
            let Some(socket) = setup.pop_socket() else {
                break;
            };
            let link = Link::new(disk, info, &workqueues, socket)?;
            connections.push(Connection::new(index, link)?, GFP_KERNEL)?;
        }

        let hw_queues = disk.set_hw_queues(count);
        params.prepare(disk)?;
        let session = Arc::pin_init(
            pin_init!(Self {
                disk: disk.into(),
                pid: current!().pid(),
                origin,
                flags: params.flags(),
                timeout: Atomic::new(params.timeout()),
                dead_conn_timeout: Atomic::new(params.dead_conn_timeout()),
                connections,
                workqueues,
                info: info.clone(),
                fallback: Atomic::new(0),
                hw_queues,
                pending_link_dead: Atomic::new(0),
                life <- new_mutex!(Life {
                    state: SessionState::Live(count),
                    attendance: Attendance::Present,
                }),
                changed <- new_wait_queue!("nbd_session"),
                published <- new_mutex!(None),
                applied <- new_mutex!(params),
                end_work <- new_work!("nbd_end"),
                clock_work <- new_work!("nbd_clock"),
                notify_work <- new_work!("nbd_notify"),
                absence_work <- new_work!("nbd_absence"),
            }),
            GFP_KERNEL,
        )?;
        Ok(session)
    }

    /// Makes the session visible in sysfs, after it was made known to the device, and keeps the
    /// module loaded. Sleeps. Fails with `ENODEV` if the module is being unloaded.
    pub(crate) fn publish(&self) -> Result {
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
        };
        *self.published.lock() = Some((files, module));
        Ok(())
    }

    /// Makes the session the running one by `f`. Sleeps. Fails with `EPIPE` if its end has begun: a
    /// flush may have found that the server is gone.
    pub(crate) fn begin(&self, f: impl FnOnce()) -> Result {
        // Whoever makes the end holds it, and sees the session running.
        let _applied = self.applied.lock();
        if self.life.lock().state.is_ending() {
            return Err(EPIPE);
        }
        f();
        Ok(())
    }

    /// Starts serving requests, after the session was made known to the device.
    pub(crate) fn launch(&self, owner: &impl SessionOwner) {
        {
            // Whoever ends the session waits for the receivers that were started under the lock.
            let life = self.life.lock();
            if !life.state.takes_links() {
                return;
            }
            for link in self.connections.iter().filter_map(|one| one.link()) {
                link.launch();
            }
        }
        {
            let mut applied = self.applied.lock();
            if self.is_ended() {
                return;
            }
            // What was changed since the session was made.
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
                self.connections.len()
            );
        }
    }

    /// Takes the files in sysfs away, of a session that [`Self::begin`] has refused. Sleeps.
    pub(crate) fn withdraw(&self) {
        let published = self.published.lock().take();
        drop(published);
    }

    /// What somebody waits for may have changed. Does not sleep.
    pub(crate) fn wake_all(&self) {
        self.changed.wake_all();
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
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

    pub(crate) fn connections(&self) -> &[Arc<Connection>] {
        &self.connections
    }

    /// Whether a netlink message made the session.
    pub(crate) fn is_of_netlink(&self) -> bool {
        matches!(self.origin, Origin::Netlink { .. })
    }

    /// What the backend is called, if the session knows.
    pub(crate) fn backend(&self) -> Option<&[u8]> {
        match &self.origin {
            Origin::Netlink { backend } => backend.as_ref().map(|name| name.as_slice()),
            Origin::Ioctl { .. } => None,
        }
    }

    /// How far the session is, for people to read.
    pub(crate) fn describe(&self) -> &'static str {
        self.life.lock().state.describe()
    }

    fn is_ended(&self) -> bool {
        self.life.lock().state.ended().is_some()
    }

    /// Gives the disk the parameters that were changed while the session runs. Sleeps; for another
    /// block size, until no request is in flight.
    ///
    /// Fails with `EBUSY` if that takes longer than a second; the block size is then as before.
    pub(crate) fn refresh(&self, owner: &impl SessionOwner) -> Result {
        let mut applied = self.applied.lock();
        if self.is_ended() {
            return Ok(());
        }
        let old = *applied;
        let result = self.apply(owner, &mut applied);
        // Partition tables count in blocks.
        if old.size() != applied.size() || old.block_size() != applied.block_size() {
            applied.apply_size(&self.disk);
        }
        result
    }

    /// Gives the disk all parameters but the size.
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
            // Whoever waits looks at it under the lock.
            let _life = self.life.lock();
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
