// SPDX-License-Identifier: GPL-2.0

//! What sysfs and debugfs tell of the devices.

use crate::error::{Error, Kind, Result};
use crate::export::Flags;
use crate::session::{parse_debugfs, Connection};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const SYS_BLOCK: &str = "/sys/block";
const DEBUGFS: &str = "/sys/kernel/debug/nbd";

/// Bytes of a sector, the unit of `size`.
const SECTOR: u64 = 512;

/// The name of a device, as `nbd0`, `/dev/nbd0` or `0` on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device(pub u32);

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "nbd{}", self.0)
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let name = text.strip_prefix("/dev/").unwrap_or(text);
        let number = name.strip_prefix("nbd").unwrap_or(name);
        let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        number
            .parse()
            .ok()
            .filter(|_| plain)
            .map(Device)
            .ok_or_else(|| "not the name of a network block device, as /dev/nbd0".to_owned())
    }
}

/// A session as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub size: u64,
    pub block_size: u64,
    pub read_only: bool,
    /// The thread that has started the session.
    pub pid: u32,
    /// None if the session was given none, or was not made by netlink.
    pub backend: Option<String>,
}

/// The files, below a directory that is another one in tests.
#[derive(Clone, Debug)]
pub struct Sysfs {
    block: PathBuf,
    debugfs: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self {
            block: SYS_BLOCK.into(),
            debugfs: DEBUGFS.into(),
        }
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim_end_matches('\n').to_owned())
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    read(path)?.trim().parse().ok()
}

impl Sysfs {
    /// All devices, in order.
    pub fn devices(&self) -> Vec<Device> {
        let names = fs::read_dir(&self.block).into_iter().flatten().flatten();
        let mut devices: Vec<Device> = names
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .filter(|n| n.starts_with("nbd"))?
                    .parse()
                    .ok()
            })
            .collect();
        devices.sort_unstable();
        devices
    }

    pub fn exists(&self, device: Device) -> bool {
        self.directory(device).is_dir()
    }

    /// False while sysfs is moved from an initramfs to the root file system.
    pub fn is_mounted(&self) -> bool {
        self.block.is_dir()
    }

    fn directory(&self, device: Device) -> PathBuf {
        self.block.join(device.to_string())
    }

    /// The session of a device. None if there is none.
    pub fn session(&self, device: Device) -> Option<Attributes> {
        let directory = self.directory(device);
        Some(Attributes {
            pid: number(&directory.join("pid"))?,
            size: number::<u64>(&directory.join("size"))? * SECTOR,
            block_size: number(&directory.join("queue/logical_block_size"))?,
            read_only: number::<u8>(&directory.join("ro"))? != 0,
            backend: read(&directory.join("backend")).filter(|b| !b.is_empty()),
        })
    }

    /// The session of a device; says why there is none.
    pub fn require(&self, device: Device) -> Result<Attributes> {
        let missing = |what: &str| Err(Error::new(Kind::NoDevice, format!("{device}: {what}")));
        match self.session(device) {
            Some(session) => Ok(session),
            None if self.exists(device) => missing("the device is not connected"),
            None => missing("there is no such device"),
        }
    }

    /// The device whose session has this backend identifier.
    pub fn find(&self, backend: &str) -> Option<Device> {
        self.devices().into_iter().find(|d| {
            self.session(*d)
                .is_some_and(|s| s.backend.as_deref() == Some(backend))
        })
    }

    /// The connections as debugfs shows them. None where it cannot be read, or the driver does not
    /// have the file.
    pub fn connections(&self, device: Device) -> Option<Vec<Connection>> {
        let text = read(&self.debugfs.join(device.to_string()).join("connections"))?;
        Some(parse_debugfs(&text)).filter(|c| !c.is_empty())
    }

    /// The flags of the server as debugfs shows them: "Hex: 0x0000006d", and then their names.
    pub fn flags(&self, device: Device) -> Option<Flags> {
        let text = read(&self.debugfs.join(device.to_string()).join("flags"))?;
        let (_, digits) = text.lines().next()?.split_once("0x")?;
        u64::from_str_radix(digits.trim(), 16).ok().map(Flags)
    }

    /// Who uses the device in a way that a disconnection would break: mounts, swap, and devices on
    /// top.
    pub fn users(&self, device: Device) -> Vec<String> {
        let directory = self.directory(device);
        let mut parts = vec![directory.clone()];
        let prefix = format!("{device}p");
        parts.extend(
            fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten()
                .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
                .map(|e| e.path()),
        );
        let numbers: Vec<String> = parts.iter().filter_map(|p| read(&p.join("dev"))).collect();
        let mounts = read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
        let swaps = read(Path::new("/proc/swaps")).unwrap_or_default();
        let mut users = mounted(&mounts, &numbers, &device.to_string());
        users.extend(swapped(&swaps, &device.to_string()));
        for part in &parts {
            for holder in fs::read_dir(part.join("holders"))
                .into_iter()
                .flatten()
                .flatten()
            {
                users.push(format!(
                    "it is part of {}",
                    holder.file_name().to_string_lossy()
                ));
            }
        }
        users
    }
}

/// True for the path of this device or of one of its partitions.
fn is_of(path: &str, device: &str) -> bool {
    path.strip_prefix("/dev/")
        .and_then(|p| p.strip_prefix(device))
        .is_some_and(|rest| {
            rest.is_empty()
                || (rest.starts_with('p') && rest[1..].bytes().all(|b| b.is_ascii_digit()))
        })
}

/// From mountinfo, see proc_pid_mountinfo(5): by number, and by name for file systems with numbers
/// of their own.
fn mounted(mountinfo: &str, numbers: &[String], device: &str) -> Vec<String> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
            let ours = numbers.iter().any(|n| Some(&n.as_str()) == fields.get(2));
            (ours || is_of(source, device))
                .then(|| fields.get(4).map(|at| format!("it is mounted on {at}")))
                .flatten()
        })
        .collect()
}

fn swapped(swaps: &str, device: &str) -> Vec<String> {
    swaps
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|path| is_of(path, device))
        .map(|path| format!("{path} is swap"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for text in ["nbd7", "/dev/nbd7", "7"] {
            assert_eq!(text.parse(), Ok(Device(7)), "{text}");
        }
        for text in [
            "",
            "nbd",
            "nbd7p1",
            "/dev/sda",
            "-1",
            "+7",
            "nbd99999999999",
        ] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        assert_eq!(Device(7).to_string(), "nbd7");
    }

    fn fake(name: &str, files: &[(&str, &str)]) -> Sysfs {
        let root = std::env::temp_dir().join(format!("nbdctl-test-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Sysfs {
            block: root.join("block"),
            debugfs: root.join("debug"),
        }
    }

    #[test]
    fn sessions() {
        let sysfs = fake(
            "sessions",
            &[
                ("block/nbd10/size", "0\n"),
                ("block/nbd2/size", "2048\n"),
                ("block/nbd2/ro", "1\n"),
                ("block/nbd2/pid", "33\n"),
                ("block/nbd2/backend", "a b\n"),
                ("block/nbd2/queue/logical_block_size", "4096\n"),
                ("block/sda/size", "1\n"),
                ("debug/nbd2/connections", "0: closed last-error none\n"),
                ("debug/nbd2/flags", "Hex: 0x0000000d\n\nKnown flags:\n"),
            ],
        );
        assert_eq!(sysfs.devices(), [Device(2), Device(10)]);
        let session = sysfs.session(Device(2)).unwrap();
        assert_eq!(
            (session.size, session.block_size, session.pid),
            (1 << 20, 4096, 33)
        );
        assert!(session.read_only);
        assert_eq!(sysfs.find("a b"), Some(Device(2)));
        assert_eq!(sysfs.find("a"), None);
        assert_eq!(sysfs.session(Device(10)), None);
        let words = |d| sysfs.require(d).unwrap_err().to_string();
        assert!(words(Device(10)).contains("not connected"));
        assert!(words(Device(11)).contains("no such device"));
        assert_eq!(sysfs.connections(Device(2)).map(|c| c.len()), Some(1));
        assert_eq!(sysfs.connections(Device(10)), None);
        assert_eq!(sysfs.flags(Device(2)), Some(Flags(0xd)));
    }

    #[test]
    fn an_empty_backend_is_none() {
        let sysfs = fake(
            "backend",
            &[
                ("block/nbd0/size", "8\n"),
                ("block/nbd0/ro", "0\n"),
                ("block/nbd0/pid", "1\n"),
                ("block/nbd0/backend", "\n"),
                ("block/nbd0/queue/logical_block_size", "512\n"),
            ],
        );
        assert_eq!(sysfs.session(Device(0)).unwrap().backend, None);
        assert_eq!(sysfs.find(""), None);
    }

    #[test]
    fn mounts_and_swap() {
        let mounts = "25 1 43:32 / /data rw - ext4 /dev/nbd1p1 rw\n\
                      26 1 0:40 / /btrfs rw shared:1 - btrfs /dev/nbd1 rw\n\
                      27 1 43:320 / /other rw - ext4 /dev/nbd10 rw\n";
        let users = mounted(mounts, &["43:32".into()], "nbd1");
        assert_eq!(users, ["it is mounted on /data", "it is mounted on /btrfs"]);
        let swaps = "Filename Type Size\n/dev/nbd1 partition 8\n/dev/nbd10 partition 8\n";
        assert_eq!(swapped(swaps, "nbd1"), ["/dev/nbd1 is swap"]);
    }
}
