// SPDX-License-Identifier: GPL-2.0

//! Wait queues.
//!
//! The kernel crate's `CondVar` waits either without a timeout or until any signal comes, and a
//! stop, the freezer and a tracer also wake such a wait. The waits of this module state what may
//! interrupt them.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use crate::{
    bindings,
    ffi,
    prelude::*,
    sync::LockClassKey,
    time::{
        jiffies,
        jiffies_since,
        Jiffies, //
    },
    types::Opaque, //
};
use core::{
    marker::PhantomPinned,
    ptr, //
};

/// The time limit of a wait that has none.
pub const FOR_EVER: Jiffies = ffi::c_long::MAX as Jiffies;

/// What may interrupt a wait, apart from its time limit. [`WaitQueue`] has an example.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WaitMode {
    /// Nothing interrupts the wait, and the task does not count as load. For kernel threads.
    Idle,
    /// Nothing interrupts the wait.
    Uninterruptible,
    /// A signal that kills the task interrupts the wait.
    Killable,
    /// Any signal interrupts the wait, and so do a stop, a tracer and the freezer of a control
    /// group, which also make a task return to user space. The system's freezer does not wake the
    /// task.
    Interruptible,
}

/// The reason for which a wait has ended.
///
/// # Examples
///
/// ```
/// use kernel::sync::wait::Waited;
///
/// fn to_result(waited: Waited) -> Result {
///     match waited {
///         Waited::Done => Ok(()),
///         Waited::TimedOut => Err(ETIMEDOUT),
///         Waited::Signal => Err(ERESTARTSYS),
///     }
/// }
///
/// assert_eq!(to_result(Waited::TimedOut), Err(ETIMEDOUT));
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The condition of the wait is true.
    Done,
    /// The time limit was reached before the condition was true.
    TimedOut,
    /// The wait was interrupted, as its [`WaitMode`] states.
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

/// A queue of tasks that wait for a condition. A task that makes the condition true must call
/// [`WaitQueue::wake_all`] afterwards.
///
/// C struct: `struct wait_queue_head`.
///
/// # Examples
///
/// ```
/// use kernel::{
///     new_wait_queue,
///     sync::{
///         atomic::{
///             Atomic,
///             Relaxed, //
///         },
///         wait::{
///             WaitMode,
///             WaitQueue,
///             Waited, //
///         }, //
///     }, //
/// };
///
/// let queue = KBox::pin_init(new_wait_queue!("example"), GFP_KERNEL)?;
/// let done = Atomic::new(0u32);
///
/// // This is for another task to do.
/// done.store(1, Relaxed);
/// queue.wake_all();
///
/// let waited = queue.wait_until(WaitMode::Killable, 100, || done.load(Relaxed) == 1);
/// assert!(waited == Waited::Done);
/// let waited = queue.wait_until(WaitMode::Uninterruptible, 1, || false);
/// assert!(waited == Waited::TimedOut);
/// # Ok::<(), Error>(())
/// ```
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

// SAFETY: A wait queue is not bound to a thread. It is pinned, and waiting tasks borrow it, so that
// none is in it when another thread drops it.
unsafe impl Send for WaitQueue {}
// SAFETY: A shared reference only passes the queue to functions that take the lock in it.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// Creates an empty queue, whose lock has the lock class `key`.
    ///
    /// Context: any.
    #[inline]
    pub fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes, and the function initialises all of it. `name`
            // and `key` are static.
            // INVARIANT: The function initialises the queue.
            head <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(slot, name.as_char_ptr(), key.as_ptr())
            }),
            _pin: PhantomPinned,
        })
    }

    /// Creates a reference to a queue that C code has initialised.
    ///
    /// Context: any.
    ///
    /// # Safety
    ///
    /// `head` must be initialised, and stay valid for `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(head: *mut bindings::wait_queue_head) -> &'a Self {
        // SAFETY: The type is transparent over an `Opaque`. By the safety requirements the queue is
        // valid for `'a`.
        // INVARIANT: By the safety requirements the queue is initialised.
        unsafe { &*head.cast() }
    }

    /// Wakes every task in the queue, which check their conditions.
    ///
    /// Context: any.
    #[inline]
    pub fn wake_all(&self) {
        // SAFETY: By the type invariant the queue is initialised. The key may be null.
        unsafe {
            bindings::__wake_up(self.head.get(), bindings::TASK_NORMAL, 0, ptr::null_mut());
        }
    }

    /// Waits until `done` returns true, for `patience` jiffies at most. `done` is called as `look`
    /// in [`Self::wait_while`].
    ///
    /// Context: may sleep. No lock that a waker needs may be held.
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

    /// Waits while `look` returns a time limit for the rest of the wait, in jiffies, that is not 0.
    /// [`None`] ends the wait as [`Waited::Done`], and 0 as [`Waited::TimedOut`].
    ///
    /// `look` is called before the wait, after each wake-up, and when its time limit is reached. It
    /// may sleep, and take locks that wakers take.
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
        // SAFETY: By the type invariant the queue is initialised. The entry is initialised but for
        // its links, which this sets, and is in no queue. It is on this stack and does not move,
        // and is removed before this function returns.
        unsafe { bindings::add_wait_queue(self.head.get(), entry.get()) };
        let waited = loop {
            let left = match look() {
                None => break Waited::Done,
                Some(0) => break Waited::TimedOut,
                Some(left) => left,
            };
            let signal = match mode {
                WaitMode::Idle | WaitMode::Uninterruptible => false,
                // SAFETY: `task` is the current task, which is valid.
                WaitMode::Killable => unsafe { bindings::fatal_signal_pending(task) != 0 },
                WaitMode::Interruptible => current!().signal_pending(),
            };
            if signal {
                break Waited::Signal;
            }
            let left = ffi::c_long::try_from(left).unwrap_or(ffi::c_long::MAX);
            // SAFETY: The entry is in the queue, its `private` is the current task, and its `func`
            // is `woken_wake_function`, which remembers a wake-up between the call of `look` and
            // this one.
            unsafe { bindings::wait_woken(entry.get(), state, left) };
        };
        // SAFETY: By the type invariant the queue is initialised, and the entry was added to it
        // above.
        unsafe { bindings::remove_wait_queue(self.head.get(), entry.get()) };
        waited
    }
}
