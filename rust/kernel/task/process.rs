// SPDX-License-Identifier: GPL-2.0

//! Processes and threads, as identities that outlive them.
//!
//! C headers: [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h),
//! [`include/linux/pid.h`](srctree/include/linux/pid.h)

use super::{
    CurrentTask,
    Task, //
};
use crate::{
    bindings,
    fmt,
    prelude::*,
    str::BStr,
    sync::{
        aref::ARef,
        wait::{
            WaitMode,
            WaitQueue,
            FOR_EVER, //
        }, //
    }, //
};
use core::ptr::NonNull;

impl Task {
    /// Returns whether both tasks are threads of the same process: whether they share one
    /// `struct signal_struct`, which a process keeps across `exec` and the exit of any thread. No
    /// other process can be taken for it while there is a reference to one of its tasks.
    ///
    /// Context: any.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{sync::aref::ARef, task::Task};
    ///
    /// let owner: ARef<Task> = ARef::from(&**current!());
    /// assert!(owner.same_thread_group(current!()) && owner.thread_group_live());
    /// pr_info!("{} has process id {}\n", owner.comm(), owner.tgid());
    /// ```
    #[inline]
    pub fn same_thread_group(&self, other: &Self) -> bool {
        // SAFETY: Both tasks are valid, since there are references to them. The function compares
        // their `signal` pointers, which a task keeps until its last reference is gone.
        unsafe { bindings::same_thread_group(self.as_ptr(), other.as_ptr()) }
    }

    /// Returns whether any thread of the task's process has not exited. A process that has exited
    /// but was not reaped yet is not alive.
    ///
    /// Context: any.
    #[inline]
    pub fn thread_group_live(&self) -> bool {
        // SAFETY: The task is valid, since there is a reference to it, and keeps its `signal` until
        // its last reference is gone. The function reads an atomic of that.
        unsafe { bindings::thread_group_live(self.as_ptr()) }
    }

    /// Returns the task's command name. If the name changes during the call, the result may mix the
    /// old name and the new one.
    ///
    /// Context: any.
    #[doc(alias = "get_task_comm")]
    #[inline]
    pub fn comm(&self) -> Comm {
        // SAFETY: The task is valid, since there is a reference to it. Its name may change during
        // the volatile read, which may return any mix of bytes: each is a valid `u8`.
        Comm::from(unsafe { (&raw const (*self.as_ptr()).comm).read_volatile() })
    }
}

/// A thread, whether it has exited or not.
///
/// Context: any, when it is dropped.
///
/// # Examples
///
/// ```
/// use kernel::task::Thread;
///
/// let thread = Thread::current();
/// assert!(thread.is_current() && !thread.has_exited());
/// // Another task would wait like this, and for as long as the second condition is false.
/// assert!(!thread.wait_for_exit(|| true));
/// ```
///
/// # Invariants
///
/// `pid` is the `struct pid` that `task` had when the value was created, and the value owns one
/// reference to it.
pub struct Thread {
    task: ARef<Task>,
    pid: NonNull<bindings::pid>,
}

// SAFETY: The value owns references to a task and to a `struct pid`, whose counts are atomic and
// may be dropped by any thread.
unsafe impl Send for Thread {}
// SAFETY: A shared reference gives access to the address of the task, to `exit_state`, which is
// read as a word, and to a wait queue, which has a lock of its own.
unsafe impl Sync for Thread {}

impl Thread {
    /// Returns the current thread.
    ///
    /// Context: process context; does not sleep.
    #[inline]
    pub fn current() -> Self {
        let task = ARef::from(&**current!());
        // SAFETY: The current task is valid. It has a pid until it is reaped, and the function
        // takes a reference to that.
        let pid = unsafe { bindings::get_task_pid(task.as_ptr(), bindings::pid_type_PIDTYPE_PID) };
        // INVARIANT: `get_task_pid` has returned the task's pid with a reference, which the value
        // owns.
        Self {
            // SAFETY: The current task has not exited, and therefore has a pid: `get_task_pid` has
            // not returned null.
            pid: unsafe { NonNull::new_unchecked(pid) },
            task,
        }
    }

    /// Returns whether this is the current thread.
    ///
    /// Context: process context; does not sleep.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.task.as_ptr() == current!().as_ptr()
    }

    /// Returns whether the thread has exited.
    ///
    /// Context: any.
    #[inline]
    pub fn has_exited(&self) -> bool {
        // SAFETY: The task is valid, since the value owns a reference to it. The C side writes the
        // word whole, and readers need no lock.
        unsafe { (&raw const (*self.task.as_ptr()).exit_state).read_volatile() != 0 }
    }

    /// Returns the wait queue that is woken when the thread exits.
    #[inline]
    fn exits(&self) -> &WaitQueue {
        // SAFETY: By the type invariant the value owns a reference to the `struct pid`, so that it
        // is valid while `self` is borrowed. Its wait queue is initialised when it is allocated.
        unsafe { WaitQueue::from_raw(&raw mut (*self.pid.as_ptr()).wait_pidfd) }
    }

    /// Waits until the thread has exited or `enough` returns true, and returns whether the thread
    /// has exited. A task that makes `enough` true must call [`Self::wake`] afterwards.
    ///
    /// Context: may sleep; for kernel threads, since no signal ends the wait.
    #[inline]
    pub fn wait_for_exit(&self, mut enough: impl FnMut() -> bool) -> bool {
        self.exits()
            .wait_until(WaitMode::Idle, FOR_EVER, || self.has_exited() || enough());
        self.has_exited()
    }

    /// Wakes the tasks in [`Self::wait_for_exit`], which check again. Tasks that poll a pidfd of
    /// the thread wake up for nothing.
    ///
    /// Context: any.
    #[inline]
    pub fn wake(&self) {
        self.exits().wake_all();
    }
}

impl Drop for Thread {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value owns a reference to the `struct pid`, which it
        // does not use afterwards.
        unsafe { bindings::put_pid(self.pid.as_ptr()) };
    }
}

impl CurrentTask {
    /// Returns whether a signal is pending that the current task will act on when it returns to
    /// user space: one that kills it or that it handles. Stops, ignored signals, the freezer and
    /// tracers also wake a task, but do not count.
    ///
    /// Context: process context; does not sleep.
    pub fn must_act_on_signal(&self) -> bool {
        let task = self.as_ptr();
        // SAFETY: The current task is valid and keeps its `signal` and `sighand` until it exits;
        // only the task itself replaces its `sighand`. The words are read by volatile reads without
        // `siglock`: other tasks may send signals or change handlers at the same time, and for such
        // a signal either answer is right. `number - 1` is less than the number of bits in a signal
        // set, which is that of the handlers.
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
}

/// The values of `sa_handler` for the default action and for an ignored signal.
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;

/// Returns whether a task with this `handler` for `signal` is killed by it or runs the handler.
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

/// The command name of a task, in any encoding. Its `Display` implementation escapes bytes that are
/// not printable ASCII.
///
/// # Examples
///
/// ```
/// use kernel::{
///     str::CString,
///     task::Comm, //
/// };
///
/// let mut name = [0; 16];
/// name[..4].copy_from_slice(b"a\x01b!");
/// let shown = CString::try_from_fmt(fmt!("{}", Comm::from(name)))?;
/// assert_eq!(shown.to_bytes(), b"a\\x01b!");
/// # Ok::<(), Error>(())
/// ```
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
        // The wait ends at once, although the thread does not exit.
        assert!(!thread.wait_for_exit(|| true));
        assert!(!current!().must_act_on_signal());
    }
}
