// SPDX-License-Identifier: GPL-2.0

//! What makes a process one that a device can depend on.

use crate::error::{Error, Kind, Result};
use crate::log;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{openat, Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::mm::{mlockall, MlockAllFlags};
use rustix::process::{chroot, fchdir};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// SIGTERM and SIGINT, as something to ask for and to wait for.
#[derive(Debug)]
pub struct Signals {
    /// Has a byte for each, which nobody reads.
    pipe: UnixStream,
}

impl Signals {
    pub fn new() -> Result<Self> {
        let register = || {
            let (pipe, other) = UnixStream::pair()?;
            for signal in [SIGTERM, SIGINT] {
                signal_hook::low_level::pipe::register(signal, other.try_clone()?)?;
            }
            Ok(pipe)
        };
        let pipe = register()
            .map_err(|e: std::io::Error| Error::new(Kind::Failed, format!("signals: {e}")))?;
        Ok(Self { pipe })
    }

    /// True if one has come.
    pub fn is_set(&self) -> bool {
        is_ready(&self.pipe, PollFlags::IN)
    }

    /// Waits until one of these can be read, a signal comes, or the time is over.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Duration) {
        let mut fds = vec![PollFd::new(&self.pipe, PollFlags::IN)];
        fds.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // None is for ever, as good as a time that the kernel cannot count.
        let timeout = Timespec::try_from(timeout).ok();
        // The caller asks anyway what has happened; a failure is a short wait.
        let _ = poll(&mut fds, timeout.as_ref());
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// True if it can be read, or written, without waiting.
pub fn is_ready(fd: impl AsFd, how: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, how)];
    // A signal may come just then, and be what is asked for.
    retry_on_intr(|| poll(&mut fds, Some(&Timespec::default()))).is_ok_and(|n| n > 0)
}

/// Has this process run while the memory that it needs can only be had by writing to the very
/// device that it is to connect again: nothing of it is paged out, it allocates without waiting for
/// I/O, and it is not the one that is killed.
pub fn stay_in_memory() {
    if let Err(e) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        log::warn(format_args!("cannot lock the memory of this process: {e}"));
    }
    if let Err(e) = rustix::process::configure_io_flusher_behavior(true) {
        log::warn(format_args!("cannot become an I/O flusher: {e}"));
    }
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        log::warn(format_args!("cannot be exempt from the OOM killer: {e}"));
    }
}

/// Begins this program anew under a name by which systemd knows that the root file system needs it,
/// see <https://systemd.io/ROOT_STORAGE_DAEMONS>. Returns if it has that name already.
pub fn become_root_storage() -> Result<()> {
    let mut args = std::env::args_os();
    if args
        .next()
        .is_some_and(|name| name.as_encoded_bytes().first() == Some(&b'@'))
    {
        return Ok(());
    }
    let e = Command::new("/proc/self/exe")
        .arg0("@nbdctl")
        .args(args)
        .exec();
    Err(Error::new(Kind::Failed, format!("/proc/self/exe: {e}")))
}

/// Follows the system from the initramfs to its root file system: /proc, /sys and /run are moved
/// there.
#[derive(Debug)]
pub struct RootFollower {
    proc: OwnedFd,
}

impl RootFollower {
    pub fn new() -> Result<Self> {
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::new(Kind::Failed, format!("/proc: {e}")))?;
        Ok(Self { proc })
    }

    /// To be called now and then.
    pub fn follow(&self) {
        if Path::new("/proc/self").exists() {
            return;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let moved = openat(&self.proc, "1/root", flags, Mode::empty())
            .and_then(fchdir)
            .and_then(|()| chroot("."));
        match moved {
            Ok(()) => log::info(format_args!("moved to the root file system")),
            Err(e) => log::warn(format_args!("cannot move to the root file system: {e}")),
        }
    }
}
