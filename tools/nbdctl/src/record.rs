// SPDX-License-Identifier: GPL-2.0

//! What the driver does not keep of a session: the server's URI, the export as it was, who keeps
//! the device connected, and since when a connection is missing. A file for each device in
//! /run/nbdctl, which a reboot empties.

use crate::error::{Error, Kind, Result};
use crate::export::Flags;
use crate::sysfs::{Attributes, Device};
use rustix::fs::{flock, major, minor, FlockOperation};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

const DIRECTORY: &str = "/run/nbdctl";

/// Connections that a keeper misses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub count: u32,
    /// In seconds since 1970.
    pub since: u64,
    /// Why the last attempt to connect has failed.
    pub problem: Option<String>,
}

/// The record of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// With the backend: which session this is the record of. See `pid` in sysfs.
    pub session_pid: u32,
    pub backend: Option<String>,
    pub uri: String,
    /// None if nobody knows.
    pub flags: Option<Flags>,
    pub connections: u32,
    pub missing: Option<Missing>,
}

/// Now, in seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

impl Record {
    /// That of a session in which no connection is missing.
    pub fn new(session: &Attributes, uri: &str, flags: Option<Flags>, connections: u32) -> Self {
        Self {
            session_pid: session.pid,
            backend: session.backend.clone(),
            uri: uri.to_owned(),
            flags,
            connections,
            missing: None,
        }
    }

    fn is_of(&self, session: &Attributes) -> bool {
        self.session_pid == session.pid && self.backend == session.backend
    }
}

/// The directory of the records.
#[derive(Clone, Debug)]
pub struct Records(PathBuf);

impl Default for Records {
    fn default() -> Self {
        Self(DIRECTORY.into())
    }
}

/// Makes this process the keeper of a device, until it is dropped or the process ends.
#[derive(Debug)]
pub struct KeeperLock(#[expect(dead_code, reason = "it holds the lock")] File);

impl Records {
    fn path(&self, device: Device) -> PathBuf {
        self.0.join(format!("{device}.json"))
    }

    fn lock_path(&self, device: Device) -> PathBuf {
        self.0.join(format!("{device}.lock"))
    }

    fn failed(&self, e: impl std::fmt::Display) -> Error {
        Error::new(Kind::Failed, format!("{}: {e}", self.0.display()))
    }

    fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.0).map_err(|e| self.failed(e))
    }

    /// The record of a session. One of an earlier session of the device is none.
    pub fn load(&self, device: Device, session: &Attributes) -> Option<Record> {
        let text = fs::read_to_string(self.path(device)).ok()?;
        serde_json::from_str::<Record>(&text)
            .ok()
            .filter(|record| record.is_of(session))
    }

    /// Replaces the record of a device.
    pub fn store(&self, device: Device, record: &Record) -> Result<()> {
        self.create()?;
        let _lock = self.lock_all()?;
        self.write(device, record)
    }

    /// Changes the record of a session; nothing is done if there is none.
    pub fn update(
        &self,
        device: Device,
        session: &Attributes,
        change: impl FnOnce(&mut Record),
    ) -> Result<()> {
        self.create()?;
        let _lock = self.lock_all()?;
        let Some(mut record) = self.load(device, session) else {
            return Ok(());
        };
        let before = record.clone();
        change(&mut record);
        if record == before {
            Ok(())
        } else {
            self.write(device, &record)
        }
    }

    /// Removes the record of a session. That of a later session of the device stays.
    pub fn remove(&self, device: Device, session: &Attributes) {
        // Without a directory there is no record, which is as good.
        let Ok(_lock) = self.lock_all() else { return };
        if self.load(device, session).is_some() {
            let _ = fs::remove_file(self.path(device));
        }
    }

    /// Several processes may change a record.
    fn lock_all(&self) -> Result<File> {
        let directory = File::open(&self.0).map_err(|e| self.failed(e))?;
        flock(&directory, FlockOperation::LockExclusive).map_err(|e| self.failed(e))?;
        Ok(directory)
    }

    /// Readers see the record before or after, never half of it.
    fn write(&self, device: Device, record: &Record) -> Result<()> {
        let text = serde_json::to_string(record).map_err(|e| self.failed(e))?;
        let new = self.0.join(format!("{device}.new"));
        File::create(&new)
            .and_then(|mut file| writeln!(file, "{text}"))
            .and_then(|()| fs::rename(&new, self.path(device)))
            .map_err(|e| self.failed(e))
    }

    /// Makes this process the keeper. Fails if another one is.
    pub fn lock(&self, device: Device) -> Result<KeeperLock> {
        self.create()?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.lock_path(device))
            .map_err(|e| self.failed(e))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(KeeperLock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(
                Kind::Failed,
                format!("{device}: another nbdctl keeps it connected"),
            )
            .hint("nbdctl status shows which one")),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// The process that keeps the device connected: who holds the lock, without taking it for a
    /// moment oneself.
    pub fn keeper(&self, device: Device) -> Option<u32> {
        let file = fs::metadata(self.lock_path(device)).ok()?;
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let id = format!(
            "{:02x}:{:02x}:{}",
            major(file.dev()),
            minor(file.dev()),
            file.ino()
        );
        lock_owner(&locks, &id)
    }
}

/// The process that has an exclusive flock(2), from /proc/locks, see proc_locks(5).
fn lock_owner(locks: &str, id: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // One that waits for the lock has "->" before its kind.
        match fields.as_slice() {
            [_, "FLOCK", "ADVISORY", "WRITE", pid, file, ..] if *file == id => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(name: &str) -> Records {
        let path = std::env::temp_dir().join(format!("nbdctl-rec-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Records(path)
    }

    fn session(pid: u32) -> Attributes {
        Attributes {
            size: 512,
            block_size: 512,
            read_only: false,
            pid,
            backend: Some("b".into()),
        }
    }

    fn record() -> Record {
        Record::new(&session(7), "nbd://host", Some(Flags(5)), 2)
    }

    #[test]
    fn a_record_is_of_one_session() {
        let records = records("one");
        assert_eq!(records.load(Device(1), &session(7)), None);
        records.store(Device(1), &record()).unwrap();
        assert_eq!(records.load(Device(1), &session(7)), Some(record()));
        assert_eq!(records.load(Device(1), &session(8)), None);
        assert_eq!(records.load(Device(2), &session(7)), None);
        records.remove(Device(1), &session(7));
        assert_eq!(records.load(Device(1), &session(7)), None);
    }

    #[test]
    fn the_record_of_another_session_stays() {
        let records = records("other");
        records.remove(Device(1), &session(7));
        records.store(Device(1), &record()).unwrap();
        records.remove(Device(1), &session(6));
        assert_eq!(records.load(Device(1), &session(7)), Some(record()));
    }

    #[test]
    fn updates() {
        let records = records("updates");
        records
            .update(Device(1), &session(7), |_| unreachable!())
            .unwrap();
        records.store(Device(1), &record()).unwrap();
        let missing = Missing {
            count: 1,
            since: 9,
            problem: Some("refused".into()),
        };
        records
            .update(Device(1), &session(7), |r| {
                r.missing = Some(missing.clone());
            })
            .unwrap();
        assert_eq!(
            records.load(Device(1), &session(7)).unwrap().missing,
            Some(missing)
        );
    }

    #[test]
    fn one_keeper() {
        let records = records("keeper");
        let lock = records.lock(Device(1)).unwrap();
        assert!(records
            .lock(Device(1))
            .unwrap_err()
            .to_string()
            .contains("another nbdctl"));
        drop(lock);
        assert!(records.lock(Device(1)).is_ok());
    }

    #[test]
    fn the_owner_of_a_lock() {
        let locks = "1: POSIX  ADVISORY  WRITE 9 00:19:44 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 8 00:19:44 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 12 00:19:44 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 00:19:45 0 EOF\n";
        assert_eq!(lock_owner(locks, "00:19:44"), Some(12));
        assert_eq!(lock_owner(locks, "00:19:45"), None);
    }
}
