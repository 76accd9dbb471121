// SPDX-License-Identifier: GPL-2.0

//! Processes.
//!
//! C header: [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h)

use crate::kernel::bindings as helpers;
use kernel::{
    bindings,
    fmt,
    prelude::*,
    str::BStr,
    sync::aref::ARef,
    task::{Pid, Task}, //
};

/// A process: the threads that share one `struct signal_struct`, across `exec` and the death of
/// any of them. The value keeps the task that it was made from, so that the process's identity is
/// never reused while it lives.
pub(crate) struct Process(ARef<Task>);

impl Process {
    /// The current task's process.
    pub(crate) fn current() -> Self {
        Self(ARef::from(&**current!()))
    }

    /// Whether both are the same process.
    pub(crate) fn is(&self, other: &Self) -> bool {
        // SAFETY: Both tasks are valid, and a task keeps its `signal` while it is referenced.
        unsafe { helpers::same_thread_group(self.0.as_ptr(), other.0.as_ptr()) }
    }

    /// Whether any thread of the process has not exited. A process that exited but was not waited
    /// for is not alive.
    pub(crate) fn is_alive(&self) -> bool {
        // SAFETY: The task is valid, and keeps its `signal` while it is referenced.
        unsafe { helpers::thread_group_live(self.0.as_ptr()) }
    }

    /// The process id in the initial namespace.
    pub(crate) fn pid(&self) -> Pid {
        // SAFETY: The task is valid.
        unsafe { helpers::task_tgid_nr(self.0.as_ptr()) }
    }

    /// The command name of the task that the value was made from; one that changes meanwhile may
    /// come out mixed.
    pub(crate) fn comm(&self) -> Comm {
        // SAFETY: The task is valid. Bytes may change while they are read, which a volatile read
        // may race with, and any are fine.
        Comm::from(unsafe { (&raw const (*self.0.as_ptr()).comm).read_volatile() })
    }
}

/// The command name of a task, in whatever encoding. What is printed of it is escaped.
#[derive(Clone, Copy)]
pub(crate) struct Comm([u8; COMM_LEN]);

const COMM_LEN: usize = bindings::TASK_COMM_LEN as usize;

impl From<[u8; COMM_LEN]> for Comm {
    fn from(bytes: [u8; COMM_LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Comm {
    /// Writes the name up to its NUL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.split(|byte| *byte == 0).next().unwrap_or(&[]);
        fmt::Display::fmt(BStr::from_bytes(name), f)
    }
}
