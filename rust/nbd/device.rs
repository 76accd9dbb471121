// SPDX-License-Identifier: GPL-2.0

//! A device: its configuration, and the session that runs.
//!
//! Locks, outermost first. What a lock guards is moved out under it and dropped after it.
//!
//! 1. `disk->open_mutex`, of the block layer, around [`DiskOperations::open`] and `release`
//! 2. `Session::applied`, while parameters of a running disk change; freezes the queue
//! 3. [`Device::config`], the configuration; never held on the way of a request, nor while
//!    anything waits for requests
//! 4. `Session::life`, how far a session is; taken on the way of a request only when a connection
//!    is lost, so that nothing is allocated under it
//! 5. `Connection::tx`, the sending side of a connection; a spinlock
//! 6. [`Device::session`], the published session; a spinlock, held for a clone
//!
//! A socket's lock is taken with none of the spinlocks held. Requests have no lock: their state is
//! one atomic word.

use crate::{
    kernel::{
        block::mq::{DiskBuilder, DiskOperations, GenDisk, RegisteredDisk},
        net::socket::Socket,
        ratelimit::RateLimit,
        task::Process,
        workqueue::OwnedQueue, //
    },
    params::Params,
    queue::Queue,
    session::Session,
    state::{self, Endpoint, Identity, Refusal},
    NbdModule,
};
use kernel::{
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex, SpinLock,
    },
    task::Pid, //
};

/// The block layer's side of a device.
pub(crate) type Disk = GenDisk<DiskOps>;
pub(crate) type State = state::State<Process, Socket, Arc<Session>>;
pub(crate) type Setup = state::Setup<Process, Socket>;

/// The major number of nbd devices.
pub(crate) const MAJOR: u32 = 43;

/// Requests in flight per connection.
const QUEUE_DEPTH: u32 = 128;
/// The largest request, in bytes.
const MAX_REQUEST: u32 = 32 << 20;
/// The request size that suits servers best, in bytes.
const OPTIMAL_REQUEST: u32 = 128 << 10;

/// How many minors a device has, and where they begin.
#[derive(Clone, Copy)]
pub(crate) struct Minors {
    /// Log2 of the minors per device; 0 without partitions.
    pub(crate) shift: u32,
}

impl Identity for Process {
    fn is(&self, other: &Self) -> bool {
        Process::is(self, other)
    }

    fn is_alive(&self) -> bool {
        Process::is_alive(self)
    }

    fn pid(&self) -> Pid {
        Process::pid(self)
    }

    fn comm(&self) -> [u8; 16] {
        Process::comm(self)
    }
}

impl Endpoint for Socket {
    fn shutdown(&self) {
        Socket::shutdown(self);
    }
}

/// The configuration of a device.
struct Config {
    /// Who has the device or a partition of it open.
    openers: u32,
    state: State,
}

/// A device.
#[pin_data]
pub(crate) struct Device {
    index: u32,
    #[pin]
    config: Mutex<Config>,
    /// The session that takes requests.
    #[pin]
    session: SpinLock<Option<Arc<Session>>>,
    /// Where sessions are ended.
    enders: Arc<OwnedQueue>,
    #[pin]
    messages: RateLimit,
    connections_made: Atomic<u64>,
    requests_sent: Atomic<u32>,
}

impl Device {
    /// Makes a device and its disk. Sleeps.
    pub(crate) fn add(
        index: u32,
        minors: Minors,
        hw_queues: u32,
        enders: Arc<OwnedQueue>,
    ) -> Result<RegisteredDisk<DiskOps>> {
        let device = Arc::pin_init(
            pin_init!(Self {
                index,
                config <- new_mutex!(Config {
                    openers: 0,
                    state: State::Idle(Params::default()),
                }),
                session <- new_spinlock!(None),
                enders,
                messages <- RateLimit::new(),
                connections_made: Atomic::new(0),
                requests_sent: Atomic::new(0),
            }),
            GFP_KERNEL,
        )?;
        DiskBuilder {
            name: fmt!("nbd{index}"),
            major: MAJOR,
            first_minor: index << minors.shift,
            minors: 1 << minors.shift,
            hw_queues,
            queue_depth: QUEUE_DEPTH,
            max_bytes: MAX_REQUEST,
            io_opt: OPTIMAL_REQUEST,
        }
        .build(device)
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// A number that no other connection of the device ever has.
    pub(crate) fn new_connection_id(&self) -> u64 {
        self.connections_made.fetch_add(1, Relaxed).wrapping_add(1)
    }

    /// A number for a request that no other of the last 2^32 had.
    pub(crate) fn new_cookie(&self) -> u32 {
        self.requests_sent.fetch_add(1, Relaxed)
    }

    pub(crate) fn enders(&self) -> &OwnedQueue {
        &self.enders
    }

    /// The session that takes requests.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().clone()
    }

    /// Has no more requests go to the session. Returns it, to be dropped by the caller.
    pub(crate) fn unpublish(&self) -> Option<Arc<Session>> {
        self.session.lock().take()
    }

    /// Whether one more message that users can cause may be logged now.
    pub(crate) fn may_log(&self) -> bool {
        self.messages.allow(c"nbd")
    }

    /// Says once in a while what was refused, why, and what to do. Returns the errno.
    fn refuse(&self, disk: &Disk, what: &str, refusal: &Refusal) -> Error {
        if self.may_log() {
            dev_err!(disk.device(), "{} refused: {}\n", what, refusal);
        }
        refusal.errno()
    }

    /// Adds a socket of the current process.
    pub(crate) fn set_socket(&self, disk: &Disk, fd: u32) -> Result {
        let socket = Socket::from_fd(fd).inspect_err(|error| {
            if self.may_log() {
                dev_err!(
                    disk.device(),
                    "NBD_SET_SOCK refused: descriptor {} is no TCP or AF_UNIX stream socket ({})\n",
                    fd,
                    error.to_errno()
                );
            }
        })?;
        let retired = {
            let mut config = self.config.lock();
            let openers = config.openers;
            config.state.retire(openers)
        };
        if let Some(params) = retired {
            Self::clean(disk);
            self.config.lock().state.idle(params);
        }
        let added = {
            let mut config = self.config.lock();
            let openers = config.openers;
            config.state.add_socket(Process::current(), openers, socket)
        };
        match added {
            Ok(None) => Ok(()),
            Ok(Some(stale)) => {
                dev_info!(
                    disk.device(),
                    "dropped a setup of {} socket(s) whose owner has exited\n",
                    stale.socket_count()
                );
                Ok(())
            }
            Err((refusal, _socket)) => Err(self.refuse(disk, "NBD_SET_SOCK", &refusal)),
        }
    }

    /// Changes the parameters.
    pub(crate) fn update(
        &self,
        disk: &Disk,
        what: &str,
        f: impl FnOnce(Params) -> Result<Params>,
    ) -> Result {
        let updated = self.config.lock().state.update(f);
        match updated {
            Ok(None) => Ok(()),
            Ok(Some(session)) => session.refresh(),
            Err(refusal) => Err(self.refuse(disk, what, &refusal)),
        }
    }

    /// The parameters of the running session.
    pub(crate) fn running_params(&self) -> Option<Params> {
        self.config.lock().state.running_params()
    }

    /// Makes a session of the setup and starts it.
    pub(crate) fn start(&self, disk: &Disk) -> Result<Arc<Session>> {
        let setup = self.config.lock().state.start();
        let setup = setup.map_err(|refusal| self.refuse(disk, "NBD_DO_IT", &refusal))?;
        let params = setup.params();
        let session = Session::new(disk, setup).and_then(|session| {
            session.create_pid_file()?;
            Ok(session)
        });
        match session {
            Ok(session) => {
                {
                    let mut config = self.config.lock();
                    config.state.started(params, session.clone());
                    *self.session.lock() = Some(session.clone());
                }
                session.launch();
                Ok(session)
            }
            Err(error) => {
                Self::clean(disk);
                self.config.lock().state.idle(params);
                if self.may_log() {
                    dev_err!(
                        disk.device(),
                        "NBD_DO_IT failed ({}), the setup was dropped; set it up again\n",
                        error.to_errno()
                    );
                }
                Err(error)
            }
        }
    }

    /// The running session, to be ended by the caller for `what`.
    pub(crate) fn running(&self, disk: &Disk, what: &str) -> Result<Option<Arc<Session>>> {
        let session = self.config.lock().state.session();
        session.map_err(|refusal| self.refuse(disk, what, &refusal))
    }

    /// Takes from a disk without session what is left of one: data, size, policies
    /// and limits.
    fn clean(disk: &Disk) {
        disk.invalidate();
        // Clients set it for a server that is read-only; few clear it for the next one.
        disk.clear_user_read_only();
        if Params::reset(disk).is_err() {
            dev_warn!(disk.device(), "could not reset the queue's limits\n");
        }
        if crate::partitions() {
            disk.need_partition_scan();
        }
    }

    /// Drops the sockets of a setup; their peers see the end of the streams.
    pub(crate) fn clear_setup(&self) {
        let setup = self.config.lock().state.clear();
        drop(setup);
    }

    /// The session's end is made. Returns it, to be dropped by the caller.
    pub(crate) fn stopped(&self, disk: &Disk) -> Option<Arc<Session>> {
        let mut config = self.config.lock();
        // Others still see the size that they opened the device with, and get errors.
        if config.openers <= 1 {
            disk.set_capacity(0);
        }
        config.state.stopped()
    }
}

/// What user space can do to a device.
pub(crate) struct DiskOps;

impl DiskOperations for DiskOps {
    type Data = Device;
    type Queue = Queue;
    type OwnerModule = NbdModule;

    fn open(disk: &Disk) -> Result {
        let device = disk.data();
        let first = {
            let mut config = device.config.lock();
            config.openers += 1;
            config.openers == 1
        };
        if first && crate::partitions() {
            disk.need_partition_scan();
        }
        Ok(())
    }

    fn release(disk: &Disk) {
        let device = disk.data();
        let left = {
            let mut config = device.config.lock();
            config.openers = config.openers.saturating_sub(1);
            if config.openers == 0 {
                config.state.last_closed()
            } else {
                None
            }
        };
        if let Some(State::Stopped(_)) = left {
            Device::clean(disk);
            disk.notify_change();
        }
    }

    fn ioctl(disk: &Disk, cmd: u32, arg: usize) -> Result<i32> {
        crate::ioctl::ioctl(disk, cmd, arg)
    }

    fn pid(disk: &Disk) -> Pid {
        disk.data().session().map_or(0, |session| session.pid())
    }
}
