// SPDX-License-Identifier: GPL-2.0

//! A device: its configuration, and the session that runs.
//!
//! Locks, outermost first. What a lock guards is moved out under it and dropped after it.
//!
//! 1. `Driver::table`, which devices there are; held while one is added or removed
//! 2. `disk->open_mutex`, of the block layer, around `DiskOps::open` and `release`
//! 3. `Session::applied`, while parameters of a running disk change; freezes the queue
//! 4. [`Device::debug`], while the debugfs directory comes or goes; waits for its readers
//! 5. [`Device::config`], the configuration; never held on the way of a request, nor while
//!    anything waits for requests
//! 6. `Session::life`, how far a session is; taken on the way of a request only when a connection
//!    is lost or none is open, so that nothing is allocated under it
//! 7. `Connection::links`, which link a connection has; a spinlock
//! 8. `Link::send_side`, the sending side of a link; a spinlock
//! 9. [`Device::session`], the published session; a spinlock, held for a clone
//!
//! `Link::receiver` is outside of `Session::life`: the receiver's work alone takes it, and holds it
//! while it runs. Under these nothing else is locked: the mutexes `Session::published`, its files,
//! and `WorkqueuePool::queues`; the spinlocks `Alive::count` and `Connection::last_error`.
//!
//! A link's hook has a mutex, which is taken inside of `Session::life` and around the lock of the
//! socket's wait queue; under that lock a work item is queued, and nothing else. What a socket had
//! before is under a mutex around the socket's lock.
//!
//! A socket's lock is taken with none of the spinlocks held. Requests have no lock: their state is
//! one atomic word.

mod configure;
mod start;

use crate::{
    driver::{AliveMark, DeviceInfo, Driver},
    error::Reason,
    params::Params,
    request::{Disk, DiskOps},
    session::{Session, SessionOwner},
    state::{self, LastClose},
    NbdModule, //
};
use kernel::{
    block::mq::{DiskBuilder, RegisteredDisk},
    debugfs::owned::{Dir, Root},
    fmt,
    net::socket::Socket,
    new_mutex,
    new_spinlock,
    new_wait_queue,
    new_work,
    prelude::*,
    sync::{
        aref::ARef,
        wait::{WaitMode, WaitQueue},
        Arc, Mutex, SpinLock,
    },
    task::{Process, Thread},
    time::{jiffies, jiffies_since, msecs_to_jiffies, Jiffies},
    types::ScopeGuard,
    workqueue::{impl_has_work, Work}, //
};

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

/// How long a netlink message waits for those who hold a device for a moment, as udev does, in
/// milliseconds.
pub(crate) const PATIENCE_MS: u32 = 1000;

/// How long a disconnect waits for them, after the server, in milliseconds.
pub(crate) const LINGER_MS: u32 = 700;

/// The configuration of a device.
struct Config {
    /// Who has the device or a partition of it open.
    openers: u32,
    /// When the device was opened last, in jiffies.
    opened: Jiffies,
    state: State,
    /// The thread that was away from `NBD_DO_IT` when its session ended, and why that did.
    unclaimed: Option<(Arc<Thread>, Reason)>,
}

impl Config {
    /// One more has the device open.
    pub(crate) fn open(&mut self) {
        self.openers += 1;
        self.opened = jiffies();
    }

    /// Whether those who hold the device may be there for a moment only, as udev is.
    fn is_held_for_a_moment(&self) -> bool {
        let held = self.openers > 0 && self.state.is_stopped();
        self.state.is_held() && (!held || jiffies_since(self.opened) < msecs_to_jiffies(MOMENT_MS))
    }
}

/// The longest time for which programs that look at every device hold it, in milliseconds.
const MOMENT_MS: u32 = 1000;

/// The directory of a device; it goes away with the value. Dropping it waits for readers, which
/// take the device's configuration lock.
pub(crate) type DebugDir = Dir<ARef<Disk>, NbdModule>;

/// Makes that directory. Sleeps.
pub(crate) type ShowDebug = fn(&Arc<Root>, &Disk) -> Result<DebugDir>;

/// A device.
#[pin_data]
pub(crate) struct Device {
    info: Arc<DeviceInfo>,
    #[pin]
    config: Mutex<Config>,
    /// The session that takes requests.
    #[pin]
    session: SpinLock<Option<Arc<Session>>>,
    /// A device is not starting, or not held after its session, any more.
    #[pin]
    settled: WaitQueue,
    /// There while the device is not idle.
    #[pin]
    debug: Mutex<Option<DebugDir>>,
    make_debug: ShowDebug,
    /// Removes the device.
    #[pin]
    remove_work: Work<Device, 0>,
    /// Drops the device where the unloading of the module waits for it.
    #[pin]
    free_work: Work<Device, 1>,
    /// Last.
    _alive: AliveMark,
}

/// A device that was taken out of use. Unless a session is started with it, dropping this cleans the
/// device, and makes it idle or has it removed, as its state says. That sleeps.
pub(crate) struct StartGuard(ScopeGuard<ARef<Disk>, fn(ARef<Disk>)>);

/// A device that was claimed for a session of this setup.
pub(crate) type ClaimedDevice = (StartGuard, Setup);

impl_has_work! {
    impl HasWork<Device, 0> for Device { self.remove_work }
    impl HasWork<Device, 1> for Device { self.free_work }
}

impl Device {
    /// Somebody opens the device. Sleeps. Fails with `ENXIO` if it is being removed.
    pub(crate) fn open(&self, disk: &Disk) -> Result {
        let mut config = self.config.lock();
        if config.state.is_leaving() {
            return Err(ENXIO);
        }
        // The partitions of the ended session go, if nobody has one open.
        if config.state.is_stopped() && crate::partitions() {
            disk.need_partition_scan();
        }
        config.open();
        Ok(())
    }

    /// Somebody closes the device. Sleeps.
    pub(crate) fn close(&self, disk: &Disk) {
        if let Some(session) = self.configured() {
            session.closed();
        }
        let todo = {
            let mut config = self.config.lock();
            config.openers = config.openers.saturating_sub(1);
            if config.openers == 0 {
                config.state.last_closed()
            } else {
                LastClose::Nothing
            }
        };
        match todo {
            LastClose::Nothing => {}
            LastClose::Drop(setup) => {
                drop(setup);
                self.settled.wake_all();
                self.show_debug(disk);
            }
            LastClose::Clean => drop(StartGuard::new(disk)),
            LastClose::Disconnect(session) => {
                if let Err(refusal) = session.disconnect_whole() {
                    self.info.refuse(disk, "a quick close", &refusal);
                }
            }
        }
    }

    /// Makes a device and its disk. Sleeps.
    pub(crate) fn add(
        driver: &Arc<Driver>,
        index: u32,
        hw_queues: u32,
        make_debug: ShowDebug,
    ) -> Result<RegisteredDisk<DiskOps>> {
        let device = Arc::pin_init(
            try_pin_init!(Self {
                info: DeviceInfo::new(driver, index)?,
                config <- new_mutex!(Config {
                    openers: 0,
                    opened: 0,
                    state: State::Idle(Params::default()),
                    unclaimed: None,
                }),
                session <- new_spinlock!(None),
                settled <- new_wait_queue!("nbd_device"),
                debug <- new_mutex!(None),
                make_debug,
                remove_work <- new_work!("nbd_remove"),
                free_work <- new_work!("nbd_free"),
                _alive: driver.mark(),
            }),
            GFP_KERNEL,
        )?;
        DiskBuilder {
            name: fmt!("nbd{index}"),
            major: MAJOR,
            first_minor: driver.minors().first(index),
            minors: driver.minors().count(),
            hw_queues,
            queue_depth: QUEUE_DEPTH,
            max_bytes: MAX_REQUEST,
            io_opt: OPTIMAL_REQUEST,
        }
        .build(device)
    }

    /// What sessions and links of the device know of it.
    pub(crate) fn info(&self) -> &Arc<DeviceInfo> {
        &self.info
    }

    /// The session that takes requests.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().clone()
    }

    /// Waits for a short while if somebody starts or cleans the device. May sleep.
    pub(crate) fn wait_if_starting(&self) {
        self.wait_while(|config| config.state.is_starting(), PATIENCE_MS);
    }

    /// Waits for a short while until the device is free, if who holds it may not have it for long.
    /// May sleep.
    pub(crate) fn wait_if_held(&self) {
        self.wait_while(Config::is_held_for_a_moment, LINGER_MS);
    }

    /// Waits until the configuration is not so any more, for so many milliseconds at most, or until
    /// the task is killed. May sleep.
    fn wait_while(&self, is_so: impl Fn(&Config) -> bool, patience: u32) {
        let patience = msecs_to_jiffies(patience);
        self.settled
            .wait_until(WaitMode::Killable, patience, || !is_so(&self.config.lock()));
    }

    /// The session that the current thread has left for a while to see to a signal, or why that has
    /// ended meanwhile.
    pub(crate) fn come_back(&self) -> Option<Result<Arc<Session>, Reason>> {
        let mut config = self.config.lock();
        if let Ok(Some(session)) = config.state.session() {
            if session.come_back() {
                return Some(Ok(session));
            }
        }
        match &config.unclaimed {
            // Set up anew since, the device has nothing to say of that session any more.
            Some((thread, reason)) if config.state.is_stopped() && thread.is_current() => {
                let reason = *reason;
                let thread = config.unclaimed.take();
                drop(config);
                drop(thread);
                Some(Err(reason))
            }
            _ => None,
        }
    }

    /// Whether a session runs.
    pub(crate) fn is_connected(&self) -> bool {
        self.running_params().is_some()
    }

    /// Whether the device is being removed.
    pub(crate) fn is_leaving(&self) -> bool {
        self.config.lock().state.is_leaving()
    }

    /// The session of the configuration, which is there from its start to its end.
    pub(crate) fn configured(&self) -> Option<Arc<Session>> {
        self.config.lock().state.session().ok().flatten()
    }

    /// Writes the state for people to read.
    pub(crate) fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (openers, session) = {
            let config = self.config.lock();
            match config.state.session() {
                Ok(Some(session)) => (config.openers, session),
                _ => {
                    config.state.describe(f)?;
                    return writeln!(f, ", {} opener(s)", config.openers);
                }
            }
        };
        writeln!(
            f,
            "{}, session of task {}, {} opener(s)",
            session.describe(),
            session.pid(),
            openers
        )
    }

    /// The parameters, whatever the state.
    pub(crate) fn params(&self) -> Params {
        self.config.lock().state.params()
    }

    /// The running session, to be ended by the caller for `what`.
    pub(crate) fn running(&self, disk: &Disk, what: &str) -> Result<Option<Arc<Session>>> {
        let session = self.config.lock().state.session();
        session.map_err(|refusal| self.info.refuse(disk, what, &refusal))
    }

    /// Takes from a disk without session what is left of one: data, size, policies
    /// and limits.
    pub(crate) fn clean(disk: &Disk) {
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

    /// Cleans a device that was taken out of use, or for a session that could not be made, and
    /// makes it idle, or has it removed. Sleeps.
    fn finish(&self, disk: &Disk) {
        Self::clean(disk);
        let leaves = {
            let mut config = self.config.lock();
            let openers = config.openers;
            let leaves = config.state.retired(openers);
            if leaves {
                // Under the lock: whoever sees a device leave waits for the worker. It cannot be
                // queued already: a device begins to leave once.
                let _ = self
                    .info
                    .driver()
                    .event_wq()
                    .enqueue::<Arc<Self>, 0>(Arc::from(disk.data()));
            }
            leaves
        };
        if !leaves {
            self.show_debug(disk);
            disk.notify_change();
        }
        self.settled.wake_all();
    }

    /// Has a debugfs directory while there is something to say about the device. Sleeps.
    pub(crate) fn show_debug(&self, disk: &Disk) {
        // What goes is gone before the lock is free for another of the same name.
        let mut debug = self.debug.lock();
        if self.config.lock().state.is_unused() {
            *debug = None;
        } else if debug.is_none() {
            *debug = (self.make_debug)(self.info.driver().debug(), disk).ok();
        }
    }

    /// Takes the device away. May sleep.
    pub(crate) fn remove(&self) {
        // Before there can be another of the same name.
        *self.debug.lock() = None;
        self.info.driver().remove(self.info.index());
    }

    /// Drops what the last user of the disk has left, where the unloading of the module waits for
    /// it. Does not sleep.
    pub(crate) fn free(self: Arc<Self>) {
        let info = self.info.clone();
        // It cannot be queued already: a disk is freed once.
        let _ = info.driver().event_wq().enqueue::<Arc<Self>, 1>(self);
    }
}

impl SessionOwner for Device {
    fn running_params(&self) -> Option<Params> {
        self.config.lock().state.running().map(|(_, params)| params)
    }

    fn revert_block_size(&self, failed: u32, block_size: u32) {
        // The old one is valid. Another that somebody has asked for since is left alone.
        let _ = self.config.lock().state.update(|params| {
            if params.block_size() == failed {
                params.with_block_size(block_size as usize)
            } else {
                Ok(params)
            }
        });
    }

    fn unpublish(&self) -> Option<Arc<Session>> {
        self.session.lock().take()
    }

    fn stopped(&self, disk: &Disk, session: &Session) -> Option<Arc<Session>> {
        // The task in `NBD_DO_IT`.
        let own = u32::from(!session.is_of_netlink());
        let (session, _unclaimed) = {
            let mut config = self.config.lock();
            let unclaimed = session.end_attendance();
            let unclaimed = core::mem::replace(&mut config.unclaimed, unclaimed);
            // Others still see the size that they opened the device with, and get errors: without a
            // size they would read the end of the device.
            if config.openers <= own {
                disk.set_capacity(0);
            }
            (config.state.stopped(), unclaimed)
        };
        self.retire(disk, 0);
        session
    }
}
