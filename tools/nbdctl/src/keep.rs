// SPDX-License-Identifier: GPL-2.0

//! Keeps a device connected.

use crate::backoff::Backoff;
use crate::connect::{self, Request};
use crate::error::{Error, Kind, Result};
use crate::export::{Expected, Flags};
use crate::links::{Links, Now};
use crate::log;
use crate::negotiate;
use crate::netlink::{Changes, Driver, Event, Listener, SocketChange};
use crate::output::Elapsed;
use crate::process::{is_ready, RootFollower, Signals};
use crate::record::{unix_time, KeeperLock, Record, Records};
use crate::session::{missing, Connection};
use crate::status::known_flags;
use crate::sysfs::{Attributes, Device, Sysfs};
use rustix::event::PollFlags;
use sd_notify::NotifyState;
use std::io::Write;
use std::time::{Duration, Instant};

/// The pause before the first attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Older drivers do not tell that a session has ended: how often to look.
const LOOK: Duration = Duration::from_secs(1);

/// A keeper whose session has ended takes this long to notice at most.
const PREDECESSOR: Duration = Duration::from_secs(3);

/// What a keeper works with.
struct Context<'a> {
    request: &'a Request,
    retry_max: Duration,
    driver: Driver,
    listener: Listener,
    signals: Signals,
    sysfs: Sysfs,
    records: Records,
    root: Option<RootFollower>,
}

/// A session that is kept.
struct Keeper<'a> {
    context: &'a Context<'a>,
    device: Device,
    session: Attributes,
    uri: String,
    flags: Option<Flags>,
    links: Links,
    _lock: KeeperLock,
}

fn now() -> Now {
    let mut chance = [0_u8; 1];
    // Without random numbers all delays are the longest ones.
    if rustix::rand::getrandom(&mut chance, rustix::rand::GetRandomFlags::NONBLOCK).is_err() {
        chance = [255];
    }
    Now {
        instant: Instant::now(),
        unix: unix_time(),
        chance: chance[0],
    }
}

/// Tells systemd, if it is there.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        log::warn(format_args!("cannot notify systemd: {e}"));
    }
}

/// Runs until the session ends or a signal comes.
pub fn run(request: &Request, retry_max: Duration, root: bool) -> Result<()> {
    if root {
        crate::process::become_root_storage()?;
    }
    let signals = Signals::new()?;
    crate::process::stay_in_memory();
    let driver = Driver::open()?;
    // Before there is a connection that could die unheard.
    let listener = driver.listen()?;
    let context = Context {
        request,
        retry_max,
        driver,
        listener,
        signals,
        sysfs: Sysfs::default(),
        records: Records::default(),
        root: root.then(RootFollower::new).transpose()?,
    };
    let Some(mut keeper) = context.attach()? else {
        return Ok(());
    };
    tell(&[NotifyState::Ready]);
    // For a script that waits; that nobody does is no failure.
    let _ = writeln!(std::io::stdout(), "/dev/{}", keeper.device);
    keeper.keep();
    Ok(())
}

impl Context<'_> {
    fn backoff(&self) -> Backoff {
        Backoff::new(FIRST_PAUSE, self.retry_max)
    }

    /// Finds the session that is to be kept, or starts it. None if a signal comes before that.
    fn attach(&self) -> Result<Option<Keeper<'_>>> {
        let mut backoff = self.backoff();
        let mut said = None;
        loop {
            let device = self
                .request
                .device
                .or_else(|| self.sysfs.find(&self.request.backend));
            let lock = device.map(|d| self.lock(d)).transpose()?;
            let running = device.and_then(|d| Some((d, self.sysfs.session(d)?)));
            let result = match (running, lock) {
                (Some((device, session)), Some(lock)) => {
                    return self.adopt(device, session, lock).map(Some);
                }
                (_, lock) => self.start(lock),
            };
            let error = match result {
                Ok(keeper) => return Ok(Some(keeper)),
                Err(_) if self.signals.is_set() => return Ok(None),
                Err(error) if error.kind == Kind::Server => error.to_string(),
                Err(error) => return Err(error),
            };
            if said.as_ref() != Some(&error) {
                log::warn(format_args!("{error}; trying again"));
                tell(&[NotifyState::Status(&error)]);
                said = Some(error);
            }
            self.signals.wait(None, backoff.delay(now().chance));
            if self.signals.is_set() {
                return Ok(None);
            }
        }
    }

    /// Waits for a keeper of an earlier session of the device to see that it has ended.
    fn lock(&self, device: Device) -> Result<KeeperLock> {
        let deadline = Instant::now() + PREDECESSOR;
        loop {
            match self.records.lock(device) {
                Err(_) if Instant::now() < deadline && !self.signals.is_set() => {
                    self.signals.wait(None, FIRST_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn start(&self, lock: Option<KeeperLock>) -> Result<Keeper<'_>> {
        let started = connect::start(
            &self.driver,
            &self.sysfs,
            &self.records,
            self.request,
            Some(&self.signals),
        )?;
        let device = started.device;
        let lock = match lock {
            Some(lock) => lock,
            None => self.lock(device)?,
        };
        log::info(format_args!("{device}: connected to {}", self.request.uri));
        Ok(Keeper {
            context: self,
            device,
            session: started.session,
            uri: self.request.uri.clone(),
            flags: Some(started.flags),
            links: Links::new(self.request.connections, self.backoff(), now()),
            _lock: lock,
        })
    }

    /// Takes over a session that runs already.
    fn adopt(&self, device: Device, session: Attributes, lock: KeeperLock) -> Result<Keeper<'_>> {
        let backend = &self.request.backend;
        if session.backend.as_ref() != Some(backend) {
            let other = session.backend.as_deref().unwrap_or("none");
            return Err(Error::new(
                Kind::Failed,
                format!("{device}: connected already, with the backend identifier {other:?}"),
            )
            .hint(format!(
                "to keep that session: --backend {other:?}; to end it: nbdctl disconnect"
            )));
        }
        let record = self.records.load(device, &session);
        let told = self.driver.session(device.0)?;
        let flags = known_flags(told.as_ref(), record.as_ref(), &self.sysfs, device);
        let uri = record
            .as_ref()
            .map_or(&self.request.uri, |r| &r.uri)
            .clone();
        if uri != self.request.uri {
            log::warn(format_args!(
                "{device}: was moved to {uri}; use that from now on instead of {}",
                self.request.uri
            ));
        }
        let total = record
            .as_ref()
            .map_or(self.request.connections, |r| r.connections);
        let missing = record.as_ref().and_then(|r| r.missing.clone());
        if record.is_none() {
            let record = Record::new(&session, &uri, flags, total);
            if let Err(e) = self.records.store(device, &record) {
                log::warn(format_args!("{e}"));
            }
        }
        log::info(format_args!("{device}: found connected to {uri}"));
        let mut keeper = Keeper {
            context: self,
            device,
            session,
            uri,
            flags,
            links: Links::new(total, self.backoff(), now()),
            _lock: lock,
        };
        if !keeper.look() {
            // Sockets for which there is no room are dropped by the driver.
            keeper.links.set(total, total, None, now());
        }
        if let Some(missing) = missing {
            keeper.links.continue_since(missing.since);
        }
        Ok(keeper)
    }
}

impl Keeper<'_> {
    fn keep(&mut self) {
        self.report();
        loop {
            if self.context.signals.is_set() {
                tell(&[NotifyState::Stopping]);
                log::info(format_args!(
                    "{}: stays connected, but is not kept any more (nbdctl disconnect {} ends it)",
                    self.device, self.device
                ));
                return;
            }
            if let Some(root) = &self.context.root {
                root.follow();
            }
            if !self.is_running() {
                log::info(format_args!(
                    "{}: disconnected, so there is nothing to keep",
                    self.device
                ));
                self.context.records.remove(self.device, &self.session);
                tell(&[NotifyState::Stopping]);
                return;
            }
            let now = Instant::now();
            match self.links.next_attempt() {
                Some(then) if then <= now => self.attempt(),
                next => self.wait(next.map_or(LOOK, |then| LOOK.min(then - now))),
            }
        }
    }

    /// Looks whether the session is still the same one, and what has become of its size.
    fn is_running(&mut self) -> bool {
        let Some(session) = self.context.sysfs.session(self.device) else {
            return !self.context.sysfs.is_mounted();
        };
        let same = session.pid == self.session.pid && session.backend == self.session.backend;
        if same {
            self.session = session;
        }
        same
    }

    fn wait(&mut self, timeout: Duration) {
        let listener = &self.context.listener;
        let before = self.links.missing().map(|m| m.count);
        self.context
            .signals
            .wait(Some(std::os::fd::AsFd::as_fd(listener)), timeout);
        let count = |event: &Event| match event {
            Event::LinkDead(index) => u32::from(*index == self.device.0),
            Event::Lost => self.links.total(),
        };
        let mut lost = 0;
        while is_ready(listener, PollFlags::IN) {
            match listener.receive() {
                Ok(events) => lost += events.iter().map(count).sum::<u32>(),
                Err(e) => {
                    log::warn(format_args!("{}: {e}", self.device));
                    break;
                }
            }
        }
        // A driver that tells how things are now knows better than its messages.
        if !self.look() {
            for _ in 0..lost {
                self.links.lose_one(now());
            }
        }
        let after = self.links.missing().map(|m| m.count);
        if after > before {
            let (count, total) = (after.unwrap_or(0), self.links.total());
            log::warn(format_args!(
                "{}: {count} of {total} connections lost",
                self.device
            ));
        }
        if after != before {
            self.report();
        }
    }

    /// The connections, if the driver tells, and whether it does so by netlink.
    fn connections(&self) -> Option<(Vec<Connection>, bool)> {
        match self.context.driver.session(self.device.0) {
            Ok(Some(session)) => Some((session.connections, true)),
            _ => Some((self.context.sysfs.connections(self.device)?, false)),
        }
    }

    /// Asks the driver which connections are missing. False if it does not say.
    fn look(&mut self) -> bool {
        let Some((connections, _)) = self.connections() else {
            return false;
        };
        let now = now();
        let total = u32::try_from(connections.len()).unwrap_or(u32::MAX);
        let (count, since) = missing(&connections, now.unix);
        self.links.set(total, count, since, now);
        true
    }

    /// Tries to bring one connection back.
    fn attempt(&mut self) {
        let context = self.context;
        // It may have been moved.
        if let Some(record) = context.records.load(self.device, &self.session) {
            self.uri = record.uri;
        }
        let expected = Expected {
            size: self.session.size,
            block_size: self.session.block_size,
            flags: self.flags,
            connections: self.links.total(),
        };
        let timeout = context.request.connect_timeout;
        let result = negotiate::connect(&self.uri, timeout, Some(&context.signals))
            .and_then(|new| expected.check(&new.export).map(|()| new.socket));
        if context.signals.is_set() {
            return;
        }
        let result = result.and_then(|socket| {
            let vacant = self.connections().and_then(|(connections, by_netlink)| {
                connections
                    .iter()
                    .find(|c| by_netlink && c.state.is_missing())
                    .map(|c| c.index)
            });
            let change = match vacant {
                Some(index) => SocketChange::Place(index, &socket),
                None => SocketChange::Revive(&socket),
            };
            let changes = Changes {
                size: None,
                backend: self.session.backend.as_deref(),
                sockets: vec![change],
            };
            context.driver.reconfigure(self.device.0, &changes)
        });
        match result {
            Ok(()) => {
                let since = self.links.missing().map(|m| m.since);
                self.links.revive_one(now());
                self.look();
                if let (None, Some(since)) = (self.links.missing(), since) {
                    let took = Duration::from_secs(unix_time().saturating_sub(since));
                    log::info(format_args!(
                        "{}: connected again after {}",
                        self.device,
                        Elapsed(took)
                    ));
                }
                self.report();
            }
            Err(e) => {
                if self.links.fail(&e.to_string(), now()) {
                    log::warn(format_args!(
                        "{}: cannot connect again: {e}; trying on",
                        self.device
                    ));
                    self.report();
                }
            }
        }
    }

    /// Writes the state down, for `status` and for a successor, and tells systemd.
    fn report(&self) {
        let missing = self.links.missing().cloned();
        let total = self.links.total();
        let text = match &missing {
            None => format!("{}: connected to {}", self.device, self.uri),
            Some(m) => {
                let problem = m.problem.as_deref().unwrap_or("connecting again");
                format!(
                    "{}: {} of {total} connections missing: {problem}",
                    self.device, m.count
                )
            }
        };
        tell(&[NotifyState::Status(&text)]);
        let updated = self
            .context
            .records
            .update(self.device, &self.session, |record| {
                record.missing = missing;
                record.connections = total;
            });
        if let Err(e) = updated {
            log::warn(format_args!("{e}"));
        }
    }
}
