// SPDX-License-Identifier: GPL-2.0

//! Processes.
//!
//! C header: [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h)

use crate::kernel::bindings as helpers;
use kernel::{
    prelude::*,
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

    /// The command name of the task that the value was made from.
    pub(crate) fn comm(&self) -> [u8; 16] {
        // SAFETY: The task is valid. A name that changes meanwhile may come out mixed, but always
        // ends with a NUL that is never overwritten.
        unsafe { (*self.0.as_ptr()).comm }
    }
}
