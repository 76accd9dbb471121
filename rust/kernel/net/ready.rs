// SPDX-License-Identifier: GPL-2.0

//! Callbacks for sockets that can be read, which need no task that waits.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use crate::{
    bindings,
    ffi,
    net::socket::Socket,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        Mutex, //
    },
    types::Opaque, //
};
use core::{
    ffi::c_void,
    marker::PhantomData, //
};

/// The events that concern a reader.
const EVENTS: u32 =
    bindings::EPOLLIN | bindings::EPOLLHUP | bindings::EPOLLRDHUP | bindings::EPOLLERR;

/// The callback for a socket. [`ReadyHook`] has an example.
pub trait ReadReady: Send + Sync {
    /// Called when the socket may have something to read, or has reached its end.
    ///
    /// Context: any, with the lock of the socket's wait queue held and interrupts disabled.
    fn read_ready(this: ArcBorrow<'_, Self>);
}

/// An entry in a socket's wait queue that calls a `T`.
///
/// Context: may sleep, when it is dropped, too. It must not be dropped by
/// [`ReadReady::read_ready`].
///
/// # Examples
///
/// ```
/// use kernel::{
///     net::{
///         ready::{
///             ReadReady,
///             ReadyHook, //
///         },
///         socket::Socket, //
///     },
///     sync::{
///         atomic::{
///             Atomic,
///             Relaxed, //
///         },
///         Arc,
///         ArcBorrow, //
///     }, //
/// };
///
/// struct Flag(Atomic<bool>);
///
/// impl ReadReady for Flag {
///     fn read_ready(flag: ArcBorrow<'_, Self>) {
///         flag.0.store(true, Relaxed);
///     }
/// }
///
/// /// Sets the flag whenever there may be something to read, until the result is dropped.
/// fn watch(socket: &Socket, flag: Arc<Flag>) -> Result<Pin<KBox<ReadyHook<Flag>>>> {
///     let hook = KBox::pin_init(ReadyHook::new(), GFP_KERNEL)?;
///     hook.attach(socket, flag);
///     Ok(hook)
/// }
/// ```
///
/// # Invariants
///
/// If `socket` is [`Some`], `entry` is in the wait queue of that socket, its `func` is
/// `Self::wake`, and its `private` is from [`Arc::into_raw`], for a reference that the value
/// owns. Otherwise `entry` is in no queue. Only a function that holds the mutex `socket` changes
/// that.
#[pin_data(PinnedDrop)]
pub struct ReadyHook<T: ReadReady> {
    #[pin]
    entry: Opaque<bindings::wait_queue_entry>,
    #[pin]
    socket: Mutex<Option<Socket>>,
    _target: PhantomData<Arc<T>>,
}

// SAFETY: The entry is not bound to a thread: it is written under the mutex, and read under the
// lock of the wait queue. The value owns an `Arc<T>` and a `Socket`, which are `Send`.
unsafe impl<T: ReadReady> Send for ReadyHook<T> {}
// SAFETY: The entry is only written under the mutex, and its links under the lock of the wait
// queue. `T`, which the waker calls on any CPU, is `Sync`.
unsafe impl<T: ReadReady> Sync for ReadyHook<T> {}

impl<T: ReadReady> ReadyHook<T> {
    /// Creates a hook that is attached to no socket.
    ///
    /// Context: any.
    pub fn new() -> impl PinInit<Self> {
        // INVARIANT: `socket` is `None`, and the entry is in no queue.
        pin_init!(Self {
            entry: Opaque::new(pin_init::zeroed()),
            socket <- new_mutex!(None),
            _target: PhantomData,
        })
    }

    /// Attaches the hook to `socket`: from now on until [`Self::detach`], `target` is called for it
    /// and kept. What the socket has to read before this call causes no callback. Does nothing if
    /// the hook is attached already.
    ///
    /// Context: may sleep.
    pub fn attach(&self, socket: &Socket, target: Arc<T>) {
        let mut attached = self.socket.lock();
        if attached.is_some() {
            return;
        }
        // SAFETY: By the type invariant the entry is in no queue, since `socket` is `None`. Only a
        // function that holds the mutex writes it, and this one does.
        unsafe {
            *self.entry.get() = bindings::wait_queue_entry {
                func: Some(Self::wake),
                private: Arc::into_raw(target).cast_mut().cast(),
                ..pin_init::zeroed()
            };
        }
        // SAFETY: The wait queue is initialised, and lives as long as the socket, to which a
        // reference is kept below. The entry is initialised, in no queue, and pinned with `self`,
        // whose drop removes it.
        unsafe { bindings::add_wait_queue(socket.wait_queue(), self.entry.get()) };
        // INVARIANT: The entry is in this socket's queue, with this `func`, and `private` owns the
        // reference to the target.
        *attached = Some(socket.clone());
    }

    /// Detaches the hook: when this returns, no callback runs and none will. Does nothing if the
    /// hook is not attached.
    ///
    /// Context: may sleep. It must not be called by [`ReadReady::read_ready`].
    pub fn detach(&self) {
        let mut attached = self.socket.lock();
        // INVARIANT: The entry is removed from the queue below, before the mutex is unlocked.
        let Some(socket) = attached.take() else {
            return;
        };
        // SAFETY: By the type invariant the entry is in the queue of this socket, which the
        // reference keeps. Callbacks run under the lock that this takes, so that none runs
        // afterwards.
        unsafe { bindings::remove_wait_queue(socket.wait_queue(), self.entry.get()) };
        // SAFETY: By the type invariant `private` is from `Arc::into_raw`, for a reference that the
        // value owned. The entry is in no queue any more, so that no callback uses it, and the
        // mutex is held.
        let target = unsafe { Arc::from_raw((*self.entry.get()).private.cast::<T>()) };
        drop(attached);
        drop((socket, target));
    }

    /// # Safety
    ///
    /// `entry` must be that of an attached hook, and the lock of its wait queue must be held.
    unsafe extern "C" fn wake(
        entry: *mut bindings::wait_queue_entry,
        _mode: ffi::c_uint,
        _flags: ffi::c_int,
        key: *mut c_void,
    ) -> ffi::c_int {
        // A wake-up without events, such as the one for the end of a stream, may be for any event.
        let events = key.addr() as u32;
        if events == 0 || events & EVENTS != 0 {
            // SAFETY: By the type invariant of the attached hook `private` is from `Arc::into_raw`.
            // The reference is dropped only after the entry was removed under the lock of the wait
            // queue, which is held.
            let target = unsafe { ArcBorrow::from_raw((*entry).private.cast::<T>()) };
            T::read_ready(target);
        }
        0
    }
}

#[pinned_drop]
impl<T: ReadReady> PinnedDrop for ReadyHook<T> {
    #[inline]
    fn drop(self: Pin<&mut Self>) {
        self.detach();
    }
}
