// SPDX-License-Identifier: GPL-2.0

//! A device: its configuration and its session.
//!
//! Locks, outermost first. What a lock guards is moved out under the lock and dropped after it is
//! released.
//!
//! 1. `Driver::table`, the table of devices; held while a device is added or removed
//! 2. `disk->open_mutex` of the block layer, around `DiskOps::open` and `release`
//! 3. `Session::applied`, held while the parameters of a running disk change; the queue is frozen
//!    under it
//! 4. [`Device::debug`], held while the debugfs directory is created or removed; its readers are
//!    waited for under it
//! 5. [`Device::config`], the configuration; never taken by the submission or completion of a
//!    request, and never held while requests are waited for
//! 6. `Session::inner`, the state of a session; submission takes it only for a link error, or if no
//!    connection is open, so that no memory is allocated under it
//! 7. `Connection::links`, the links of a connection; a spinlock
//! 8. `Link::send_side`, the sending side of a link; a spinlock
//! 9. [`Device::session`], the installed session; a spinlock, held to clone the reference
//!
//! No other lock is taken under these: the mutexes `Session::files`, for the sysfs files, and
//! `WorkqueuePool::queues`; the spinlocks `Alive::count`, `Connection::last_error` and
//! `Link::receive_side`. The last is the only one that callbacks of sockets take, under the socket
//! lock in a softirq, and so disables interrupts.
//!
//! The two hooks of a link have mutexes, which are taken inside of `Session::inner` and outside of
//! the lock of the socket's wait queue and of its `sk_callback_lock`. Under the lock of the wait
//! queue a work item is queued, and nothing else. The previous settings of a socket are under a
//! mutex that is taken outside of the socket lock.
//!
//! The socket lock is never taken under a spinlock. Requests have no lock; their state is one
//! atomic word.

mod configure;
mod start;

use crate::{
    driver::{
        AliveMark,
        DeviceInfo,
        Driver, //
    },
    error::Reason,
    params::Params,
    request::{
        Disk,
        DiskOps, //
    },
    session::{
        Session,
        SessionOwner, //
    },
    state::{
        self,
        LastClose, //
    },
    NbdModule, //
};
use kernel::{
    block::{
        mq::{
            tag_set::Flag,
            GenDiskBuilder,
            RegisteredDisk,
            TagSet, //
        },
        SECTOR_SHIFT,
        SECTOR_SIZE, //
    },
    debugfs::owned::{
        Dir,
        Root, //
    },
    fmt,
    net::socket::Socket,
    new_mutex,
    new_spinlock,
    new_wait_queue,
    new_work,
    prelude::*,
    sync::{
        aref::ARef,
        wait::{
            WaitMode,
            WaitQueue, //
        },
        Arc,
        Mutex,
        SpinLock, //
    },
    task::{
        Task,
        Thread, //
    },
    time::{
        jiffies,
        jiffies_since,
        msecs_to_jiffies,
        Jiffies, //
    },
    types::ScopeGuard,
    workqueue::{
        impl_has_work,
        Work, //
    }, //
};

pub(crate) type State = state::State<ARef<Task>, Socket, Arc<Session>>;
pub(crate) type Setup = state::Setup<ARef<Task>, Socket>;

/// The major number of nbd devices.
pub(crate) const MAJOR: u32 = 43;

/// Requests in flight per connection.
const QUEUE_DEPTH: u32 = 128;
/// The largest request, in bytes.
const MAX_REQUEST: u32 = 32 << 20;
/// The request size that suits servers best, in bytes.
const OPTIMAL_REQUEST: u32 = 128 << 10;

/// How long a netlink message waits for openers that close the device soon, such as udev, in
/// milliseconds.
pub(crate) const START_WAIT_MS: u32 = 1000;

/// How long a disconnect waits for such openers after the session has ended, in milliseconds.
pub(crate) const RELEASE_WAIT_MS: u32 = 700;

/// The configuration of a device.
struct Config {
    /// How often the device and its partitions are open.
    openers: u32,
    /// When the device was last opened, in jiffies.
    opened: Jiffies,
    state: State,
    /// The thread that had left `NBD_DO_IT` when its session ended, and why the session ended.
    pending_result: Option<(Arc<Thread>, Reason)>,
}

impl Config {
    /// Counts one more opener.
    pub(crate) fn open(&mut self) {
        self.openers += 1;
        self.opened = jiffies();
    }

    /// Whether the openers may be programs that close the device soon, such as udev.
    fn is_briefly_open(&self) -> bool {
        let held = self.openers > 0 && self.state.is_stopped();
        self.state.is_held() && (!held || jiffies_since(self.opened) < msecs_to_jiffies(PROBE_MS))
    }
}

/// How long programs that probe every device keep it open, in milliseconds.
const PROBE_MS: u32 = 1000;

/// The debugfs directory of a device. Dropping it removes the directory and waits for readers,
/// which take the lock of the device's configuration.
pub(crate) type DebugDir = Dir<ARef<Disk>, NbdModule>;

/// Creates the debugfs directory. Context: may sleep.
pub(crate) type CreateDebug = fn(&Arc<Root>, &Disk) -> Result<DebugDir>;

/// A device.
#[pin_data]
pub(crate) struct Device {
    info: Arc<DeviceInfo>,
    #[pin]
    config: Mutex<Config>,
    /// The session that new requests go to.
    #[pin]
    session: SpinLock<Option<Arc<Session>>>,
    /// Woken when a device is no longer starting, or no longer held after its session.
    #[pin]
    state_changed: WaitQueue,
    /// Present while the device is not idle.
    #[pin]
    debug: Mutex<Option<DebugDir>>,
    create_debug: CreateDebug,
    /// Removes the device.
    #[pin]
    remove_work: Work<Device, 0>,
    /// Drops the device on a workqueue that is flushed when the module is unloaded.
    #[pin]
    free_work: Work<Device, 1>,
    /// Must be dropped last.
    _alive: AliveMark,
}

/// A device that was taken out of use. Unless a session is started with it, dropping this cleans
/// the device, and makes it idle or removes it, as its state requires. Dropping it may sleep.
pub(crate) struct StartGuard(ScopeGuard<ARef<Disk>, fn(ARef<Disk>)>);

/// A device that was claimed for a session of this setup.
pub(crate) type ClaimedDevice = (StartGuard, Setup);

impl_has_work! {
    impl HasWork<Device, 0> for Device { self.remove_work }
    impl HasWork<Device, 1> for Device { self.free_work }
}

impl Device {
    /// Opens the device. Fails with `ENXIO` if it is being removed. Context: may sleep, under
    /// `disk->open_mutex`.
    pub(crate) fn open(&self, disk: &Disk) -> Result {
        let mut config = self.config.lock();
        if config.state.is_removing() {
            return Err(ENXIO);
        }
        // This removes the partitions of the ended session, unless one is open.
        if config.state.is_stopped() && crate::partitions() {
            disk.need_partition_scan();
        }
        config.open();
        Ok(())
    }

    /// Closes the device. Context: may sleep, under `disk->open_mutex`.
    pub(crate) fn close(&self, disk: &Disk) {
        if let Some(session) = self.configured_session() {
            session.task_closed();
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
                self.state_changed.wake_all();
                self.update_debug(disk);
            }
            LastClose::Clean => drop(StartGuard::new(disk)),
            LastClose::Disconnect(session) => {
                if let Err(refusal) = session.disconnect_and_wait() {
                    self.info.refuse(disk, "a quick close", &refusal);
                }
            }
        }
    }

    /// Creates a device and its disk. Context: may sleep.
    pub(crate) fn add(
        driver: &Arc<Driver>,
        index: u32,
        hw_queues: u32,
        create_debug: CreateDebug,
    ) -> Result<RegisteredDisk<DiskOps>> {
        let device = Arc::pin_init(
            try_pin_init!(Self {
                info: DeviceInfo::new(driver, index)?,
                config <- new_mutex!(Config {
                    openers: 0,
                    opened: 0,
                    state: State::Idle(Params::default()),
                    pending_result: None,
                }),
                session <- new_spinlock!(None),
                state_changed <- new_wait_queue!("nbd_device"),
                debug <- new_mutex!(None),
                create_debug,
                remove_work <- new_work!("nbd_remove"),
                free_work <- new_work!("nbd_free"),
                _alive: driver.mark(),
            }),
            GFP_KERNEL,
        )?;
        // A CPU that goes offline does not wait for requests, which may wait for a reconnect.
        let flags = Flag::Blocking | Flag::NoDefaultScheduler | Flag::Stacking;
        let tag_set = Arc::pin_init(TagSet::new(hw_queues, QUEUE_DEPTH, 1, flags), GFP_KERNEL)?;
        let minors = driver.minors();
        GenDiskBuilder::new()
            .numbers(MAJOR, minors.first(index), minors.count())
            .logical_block_size(SECTOR_SIZE)?
            .physical_block_size(SECTOR_SIZE)?
            .max_hw_sectors(MAX_REQUEST >> SECTOR_SHIFT)
            .max_segments(u16::MAX, u32::MAX)
            .io_opt(OPTIMAL_REQUEST)
            .build(fmt!("nbd{index}"), tag_set, device)
    }

    /// Returns the part of the device that its sessions and links use.
    pub(crate) fn info(&self) -> &Arc<DeviceInfo> {
        &self.info
    }

    /// Returns the session that new requests go to. Context: does not sleep.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().clone()
    }

    /// Waits while another task starts or cleans the device, for [`START_WAIT_MS`] at most.
    /// Context: may sleep.
    pub(crate) fn wait_if_starting(&self) {
        self.wait_while(|config| config.state.is_starting(), START_WAIT_MS);
    }

    /// Waits until the device is free if its openers may close it soon, for [`RELEASE_WAIT_MS`] at
    /// most. Context: may sleep.
    pub(crate) fn wait_if_held(&self) {
        self.wait_while(Config::is_briefly_open, RELEASE_WAIT_MS);
    }

    /// Waits while `is_so` holds, for `patience` milliseconds at most, or until the task is killed.
    /// Context: may sleep.
    fn wait_while(&self, is_so: impl Fn(&Config) -> bool, patience: u32) {
        let patience = msecs_to_jiffies(patience);
        self.state_changed
            .wait_until(WaitMode::Killable, patience, || !is_so(&self.config.lock()));
    }

    /// Returns the session that the current thread runs and has left to handle a signal. If that
    /// session has ended meanwhile, returns the reason.
    pub(crate) fn resume_do_it(&self) -> Option<Result<Arc<Session>, Reason>> {
        let mut config = self.config.lock();
        if let Ok(Some(session)) = config.state.session() {
            if session.resume_do_it() {
                return Some(Ok(session));
            }
        }
        match &config.pending_result {
            // If the device was set up again since, the reason is of no interest any more.
            Some((thread, reason)) if config.state.is_stopped() && thread.is_current() => {
                let reason = *reason;
                let thread = config.pending_result.take();
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
    pub(crate) fn is_removing(&self) -> bool {
        self.config.lock().state.is_removing()
    }

    /// Returns the session of the configuration, which exists from its start to its end.
    pub(crate) fn configured_session(&self) -> Option<Arc<Session>> {
        self.config.lock().state.session().ok().flatten()
    }

    /// Prints the state.
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

    /// Returns the parameters in any state.
    pub(crate) fn params(&self) -> Params {
        self.config.lock().state.params()
    }

    /// Returns the running session, which the caller ends for `what`.
    pub(crate) fn running(&self, disk: &Disk, what: &str) -> Result<Option<Arc<Session>>> {
        let session = self.config.lock().state.session();
        session.map_err(|refusal| self.info.refuse(disk, what, &refusal))
    }

    /// Removes from a disk without a session what a session has left: data, size, policies and
    /// limits. Context: may sleep.
    pub(crate) fn clean(disk: &Disk) {
        disk.invalidate();
        // Clients set this for a read-only server, and few of them clear it for the next one.
        disk.clear_user_read_only();
        if Params::reset(disk).is_err() {
            dev_warn!(disk.device(), "could not reset the queue's limits\n");
        }
        if crate::partitions() {
            disk.need_partition_scan();
        }
    }

    /// Cleans a device that was taken out of use, and makes it idle or has it removed. Context: may
    /// sleep.
    fn finish(&self, disk: &Disk) {
        Self::clean(disk);
        let leaves = {
            let mut config = self.config.lock();
            let openers = config.openers;
            let leaves = config.state.finish_clean(openers);
            if leaves {
                // The work is queued under the lock, since a task that finds the device in this
                // state flushes the workqueue. It cannot be queued already, as a device is removed
                // once.
                let _ = self
                    .info
                    .driver()
                    .event_wq()
                    .enqueue::<Arc<Self>, 0>(Arc::from(disk.data()));
            }
            leaves
        };
        if !leaves {
            self.update_debug(disk);
            disk.notify_change();
        }
        self.state_changed.wake_all();
    }

    /// Creates or removes the debugfs directory according to the state. Context: may sleep.
    pub(crate) fn update_debug(&self, disk: &Disk) {
        // The directory is removed before the lock is released, as a new one has the same name.
        let mut debug = self.debug.lock();
        if self.config.lock().state.is_unused() {
            *debug = None;
        } else if debug.is_none() {
            *debug = (self.create_debug)(self.info.driver().debug(), disk).ok();
        }
    }

    /// Removes the device. Context: may sleep.
    pub(crate) fn remove(&self) {
        // The directory is removed before another device can have its name.
        *self.debug.lock() = None;
        self.info.driver().remove(self.info.index());
    }

    /// Drops a device whose disk was freed, on a workqueue that is flushed when the module is
    /// unloaded. Context: does not sleep.
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
        // The previous size is valid. If another one was requested meanwhile, that one stays.
        let _ = self.config.lock().state.update(|params| {
            if params.block_size() == failed {
                params.with_block_size(block_size as usize)
            } else {
                Ok(params)
            }
        });
    }

    fn uninstall(&self) -> Option<Arc<Session>> {
        self.session.lock().take()
    }

    fn stopped(&self, disk: &Disk, session: &Session) -> Option<Arc<Session>> {
        // The task in `NBD_DO_IT` is an opener itself.
        let own = u32::from(!session.is_netlink());
        let (session, _unclaimed) = {
            let mut config = self.config.lock();
            let pending_result = session.end_do_it();
            let pending_result = core::mem::replace(&mut config.pending_result, pending_result);
            // Other openers keep the size and get errors. With a size of 0 they would read an end
            // of file.
            if config.openers <= own {
                disk.set_capacity(0);
            }
            (config.state.stopped(), pending_result)
        };
        self.start_clean(disk, 0);
        session
    }
}
