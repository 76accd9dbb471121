// SPDX-License-Identifier: GPL-2.0

//! Processes.
//!
//! C header: [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h)

use crate::{
    bindings,
    fmt,
    prelude::*,
    str::BStr,
    sync::{
        aref::ARef,
        wait::{WaitMode, WaitQueue, FOR_EVER},
    },
    task::{Pid, Task}, //
};
use core::ptr::NonNull;

/// A process: the threads that share one `struct signal_struct`, across `exec` and the death of
/// any of them. The value keeps the task that it was made from, so that the process's identity is
/// never reused while it lives.
pub struct Process(ARef<Task>);

impl Process {
    /// The current task's process.
    #[inline]
    pub fn current() -> Self {
        Self(ARef::from(&**current!()))
    }

    /// Whether both are the same process.
    #[inline]
    pub fn is(&self, other: &Self) -> bool {
        // SAFETY: Both tasks are valid, and a task keeps its `signal` while it is referenced.
        unsafe { bindings::same_thread_group(self.0.as_ptr(), other.0.as_ptr()) }
    }

    /// Whether any thread of the process has not exited. A process that exited but was not waited
    /// for is not alive.
    #[inline]
    pub fn is_alive(&self) -> bool {
        // SAFETY: The task is valid, and keeps its `signal` while it is referenced.
        unsafe { bindings::thread_group_live(self.0.as_ptr()) }
    }

    /// The process id in the initial namespace.
    #[inline]
    pub fn pid(&self) -> Pid {
        // SAFETY: The task is valid.
        unsafe { bindings::task_tgid_nr(self.0.as_ptr()) }
    }

    /// The command name of the task that the value was made from; one that changes meanwhile may
    /// come out mixed.
    #[inline]
    pub fn comm(&self) -> Comm {
        // SAFETY: The task is valid. Bytes may change while they are read, which a volatile read
        // may race with, and any are fine.
        Comm::from(unsafe { (&raw const (*self.0.as_ptr()).comm).read_volatile() })
    }
}

/// A thread, alive or not.
///
/// # Invariants
///
/// `pid` is the `struct pid` that `task` had when the value was made, and the value owns one
/// reference to it.
pub struct Thread {
    task: ARef<Task>,
    pid: NonNull<bindings::pid>,
}

// SAFETY: A task and a `struct pid` may be used and given back from any thread.
unsafe impl Send for Thread {}
// SAFETY: What a shared reference gives access to is constant, or read as a word, or a wait queue,
// which has a lock of its own.
unsafe impl Sync for Thread {}

impl Thread {
    /// The current thread. Does not sleep.
    #[inline]
    pub fn current() -> Self {
        let task = ARef::from(&**current!());
        // SAFETY: The current task is valid and has a pid, to which this takes a reference.
        let pid = unsafe { bindings::get_task_pid(task.as_ptr(), bindings::pid_type_PIDTYPE_PID) };
        // INVARIANT: The reference was taken just above.
        Self {
            // SAFETY: A task that runs has a pid.
            pid: unsafe { NonNull::new_unchecked(pid) },
            task,
        }
    }

    /// Whether this is the current thread.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.task.as_ptr() == current!().as_ptr()
    }

    /// Whether the thread has exited. Does not sleep.
    #[inline]
    pub fn has_exited(&self) -> bool {
        // SAFETY: The task is valid; C writes the word whole, and without a lock for readers.
        unsafe { (&raw const (*self.task.as_ptr()).exit_state).read_volatile() != 0 }
    }

    /// The queue in which the exit of the thread is announced.
    #[inline]
    fn exits(&self) -> &WaitQueue {
        // SAFETY: By the type invariant the `struct pid` is valid for as long as the value, and its
        // queue is initialised with it.
        unsafe { WaitQueue::from_raw(&raw mut (*self.pid.as_ptr()).wait_pidfd) }
    }

    /// Waits until the thread has exited or `enough` returns true; whoever makes that so calls
    /// [`Self::wake`]. Returns whether the thread has exited.
    ///
    /// Context: may sleep; for kernel threads.
    #[inline]
    pub fn wait_for_exit(&self, mut enough: impl FnMut() -> bool) -> bool {
        self.exits()
            .wait_until(WaitMode::Idle, FOR_EVER, || self.has_exited() || enough());
        self.has_exited()
    }

    /// Has those in [`Self::wait_for_exit`] look again. Others who wait for the exit, by a pidfd,
    /// wake up for nothing. Does not sleep.
    #[inline]
    pub fn wake(&self) {
        self.exits().wake_all();
    }
}

impl Drop for Thread {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to give back.
        unsafe { bindings::put_pid(self.pid.as_ptr()) };
    }
}

/// Whether a signal is pending that the current task will act on when it returns to user space: one
/// that kills it or that it has a handler for. A stop, a signal that it ignores, the freezer and a
/// tracer wake a task, too, but are none.
pub fn must_act_on_signal() -> bool {
    let task = current!().as_ptr();
    // SAFETY: The current task is valid and keeps its `signal` and `sighand` until it exits. The
    // words are read without `siglock`: others may add signals or change handlers meanwhile, and
    // either answer is right for a signal that comes, or a handler that changes, just now.
    unsafe {
        let signal = (*task).signal;
        let own = (&raw const (*task).pending.signal.sig).read_volatile();
        let shared = (&raw const (*signal).shared_pending.signal.sig).read_volatile();
        let blocked = (&raw const (*task).blocked.sig).read_volatile();
        let bits = u64::BITS as usize;
        let words = own.iter().zip(&shared).zip(&blocked);
        let mut pending = words
            .map(|((own, shared), blocked)| (own | shared) & !blocked)
            .enumerate();
        pending.any(|(nth, word)| {
            (0..bits).filter(|bit| word & (1 << bit) != 0).any(|bit| {
                let number = nth * bits + bit + 1;
                let action = &raw const (*(*task).sighand).action;
                let handler = (action.cast::<bindings::k_sigaction>().add(number - 1))
                    .cast::<usize>()
                    .read_volatile();
                acts_on(number as u32, handler)
            })
        })
    }
}

/// What `sa_handler` is for the default action, and to ignore the signal.
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;

/// Whether a task with this `handler` for a signal is killed by it or runs the handler.
fn acts_on(signal: u32, handler: usize) -> bool {
    match handler {
        SIG_IGN => false,
        SIG_DFL => !matches!(
            signal,
            bindings::SIGCONT
                | bindings::SIGCHLD
                | bindings::SIGWINCH
                | bindings::SIGURG
                | bindings::SIGSTOP
                | bindings::SIGTSTP
                | bindings::SIGTTIN
                | bindings::SIGTTOU
        ),
        _ => true,
    }
}

/// The command name of a task, in whatever encoding. What is printed of it is escaped.
#[derive(Clone, Copy)]
pub struct Comm([u8; COMM_LEN]);

const COMM_LEN: usize = bindings::TASK_COMM_LEN as usize;

impl From<[u8; COMM_LEN]> for Comm {
    #[inline]
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

#[crate::macros::kunit_tests(rust_task_process)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_a_task_acts_on() {
        let handler = 0xffff_8000_0000_1000;
        for signal in 1..=bindings::SIGRTMAX {
            assert!(!acts_on(signal, SIG_IGN));
            assert!(acts_on(signal, handler));
        }
        for signal in [bindings::SIGKILL, bindings::SIGTERM, bindings::SIGSEGV, 64] {
            assert!(acts_on(signal, SIG_DFL));
        }
        for signal in [bindings::SIGSTOP, bindings::SIGTSTP, bindings::SIGCONT] {
            assert!(!acts_on(signal, SIG_DFL));
        }
    }

    #[test]
    fn current_thread() {
        let thread = Thread::current();
        assert!(thread.is_current() && !thread.has_exited());
        // Enough is enough, whether or not the thread exits.
        assert!(!thread.wait_for_exit(|| true));
        assert!(!must_act_on_signal());
    }
}
