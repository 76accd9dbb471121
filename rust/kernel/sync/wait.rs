// SPDX-License-Identifier: GPL-2.0

//! Wait queues.
//!
//! The kernel crate's `CondVar` can wait without a timeout, or until any signal comes; a stop, the
//! freezer and a tracer wake such a wait, too. These waits say what may cut them short.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use crate::{
    bindings,
    ffi,
    prelude::*,
    sync::LockClassKey,
    time::{jiffies, jiffies_since, Jiffies},
    types::Opaque, //
};
use core::{marker::PhantomPinned, ptr};

/// Waits without a limit of time.
pub const FOR_EVER: Jiffies = ffi::c_long::MAX as Jiffies;

/// What may cut a wait short, apart from its limit of time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WaitMode {
    /// Nothing. The task is idle and does not count as load. For kernel threads.
    Idle,
    /// Nothing.
    Uninterruptible,
    /// A signal that kills the task.
    Killable,
    /// Any signal, and whatever else has a task return to user space: a stop, a tracer, the
    /// freezer of a control group. The system's freezer lets the task sleep on.
    Interruptible,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// What was waited for is true.
    Done,
    /// The limit of time was reached first.
    TimedOut,
    /// The wait was cut short as its [`WaitMode`] says.
    Signal,
}

/// Creates a [`WaitQueue`] initialiser with a newly-created lock class.
#[macro_export]
macro_rules! new_wait_queue {
    ($name:literal) => {
        $crate::sync::wait::WaitQueue::new(
            $crate::optional_name!($name),
            $crate::static_lock_class!(),
        )
    };
}

/// A queue of tasks that wait until something is true.
///
/// Whoever makes it true calls [`WaitQueue::wake_all`] afterwards.
///
/// C struct: `struct wait_queue_head`.
///
/// # Invariants
///
/// The queue is initialised.
#[pin_data]
#[repr(transparent)]
pub struct WaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A wait queue has a lock of its own and may be used from any thread.
unsafe impl Send for WaitQueue {}
// SAFETY: A wait queue has a lock of its own, so that several threads may use it at once.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// An empty queue.
    pub fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid while the closure is called, and both `name` and `key` live
            // for ever.
            head <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(slot, name.as_char_ptr(), key.as_ptr())
            }),
            _pin: PhantomPinned,
        })
    }

    /// A queue that C has initialised.
    ///
    /// # Safety
    ///
    /// `head` must be initialised, and stay so for `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(head: *mut bindings::wait_queue_head) -> &'a Self {
        // SAFETY: The type is transparent over an `Opaque`, and the caller promises the rest.
        unsafe { &*head.cast() }
    }

    /// Has every task in the queue look again. Does not sleep.
    #[inline]
    pub fn wake_all(&self) {
        // SAFETY: By the type invariant the queue is initialised.
        unsafe {
            bindings::__wake_up(self.head.get(), bindings::TASK_NORMAL, 0, ptr::null_mut());
        }
    }

    /// Waits until `done` returns true, for `patience` jiffies at most; see [`Self::wait_while`].
    pub fn wait_until(
        &self,
        mode: WaitMode,
        patience: Jiffies,
        mut done: impl FnMut() -> bool,
    ) -> Waited {
        let start = jiffies();
        self.wait_while(mode, || {
            let left = match patience {
                FOR_EVER => FOR_EVER,
                _ => patience.saturating_sub(jiffies_since(start)),
            };
            (!done()).then_some(left)
        })
    }

    /// Waits while `look` returns how long it wants to wait at most, in jiffies, and that is not 0.
    /// `look` is called before the wait, after each wake-up and when that time is over; it may
    /// sleep, and take the locks under which the wakers work.
    ///
    /// Context: may sleep. No lock that a waker needs may be held.
    pub fn wait_while(&self, mode: WaitMode, mut look: impl FnMut() -> Option<Jiffies>) -> Waited {
        let state = match mode {
            WaitMode::Idle => bindings::TASK_IDLE,
            WaitMode::Uninterruptible => bindings::TASK_UNINTERRUPTIBLE,
            WaitMode::Killable => bindings::TASK_KILLABLE,
            WaitMode::Interruptible => bindings::TASK_INTERRUPTIBLE | bindings::TASK_FREEZABLE,
        };
        let task = current!().as_ptr();
        let entry = Opaque::new(bindings::wait_queue_entry {
            func: Some(bindings::woken_wake_function),
            private: task.cast(),
            ..pin_init::zeroed()
        });
        // SAFETY: The queue is initialised. The entry is complete but for its links, which this
        // sets; it is on this stack, and taken out before this function returns.
        unsafe { bindings::add_wait_queue(self.head.get(), entry.get()) };
        let waited = loop {
            let left = match look() {
                None => break Waited::Done,
                Some(0) => break Waited::TimedOut,
                Some(left) => left,
            };
            let signal = match mode {
                WaitMode::Idle | WaitMode::Uninterruptible => false,
                // SAFETY: The current task is valid.
                WaitMode::Killable => unsafe { bindings::fatal_signal_pending(task) != 0 },
                WaitMode::Interruptible => current!().signal_pending(),
            };
            if signal {
                break Waited::Signal;
            }
            let left = ffi::c_long::try_from(left).unwrap_or(ffi::c_long::MAX);
            // SAFETY: The entry is in the queue, with `woken_wake_function`, which remembers a
            // wake-up that comes between `look` and this.
            unsafe { bindings::wait_woken(entry.get(), state, left) };
        };
        // SAFETY: The entry was put into this queue above.
        unsafe { bindings::remove_wait_queue(self.head.get(), entry.get()) };
        waited
    }
}
