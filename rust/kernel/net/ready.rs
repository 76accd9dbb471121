// SPDX-License-Identifier: GPL-2.0

//! Being told when a socket can be read, without a task that waits for that.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use crate::{
    bindings,
    ffi,
    net::socket::Socket,
    new_mutex,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex},
    types::Opaque, //
};
use core::{ffi::c_void, marker::PhantomData};

/// The events that a reader wants to hear of.
const EVENTS: u32 =
    bindings::EPOLLIN | bindings::EPOLLHUP | bindings::EPOLLRDHUP | bindings::EPOLLERR;

/// What hears of a socket.
pub trait ReadReady: Send + Sync {
    /// The socket may have something to read, or has come to its end.
    ///
    /// Context: any, with the lock of the socket's wait queue held and interrupts off. May not sleep.
    fn read_ready(this: ArcBorrow<'_, Self>);
}

/// An entry in a socket's wait queue that tells a `T`.
///
/// # Invariants
///
/// If `socket` is [`Some`], `entry` is in the wait queue of that socket, its `func` is
/// [`Self::wake`], and its `private` is from [`Arc::into_raw`], of a reference that the value owns.
/// Otherwise it is in no queue. Only who holds the lock of `socket` changes that.
#[pin_data(PinnedDrop)]
pub struct ReadyHook<T: ReadReady> {
    #[pin]
    entry: Opaque<bindings::wait_queue_entry>,
    #[pin]
    socket: Mutex<Option<Socket>>,
    _target: PhantomData<Arc<T>>,
}

// SAFETY: The entry is only used under locks, and `Arc<T>` may be used in any thread.
unsafe impl<T: ReadReady> Send for ReadyHook<T> {}
// SAFETY: All that changes is changed under the mutex or the lock of the wait queue.
unsafe impl<T: ReadReady> Sync for ReadyHook<T> {}

impl<T: ReadReady> ReadyHook<T> {
    /// A hook that is in no queue.
    pub fn new() -> impl PinInit<Self> {
        // INVARIANT: The entry is in no queue.
        pin_init!(Self {
            entry: Opaque::new(pin_init::zeroed()),
            socket <- new_mutex!(None),
            _target: PhantomData,
        })
    }

    /// Has `target` told of `socket`, from now on until [`Self::detach`]; it is kept until then. What
    /// came before this it is not told of. Does nothing if the hook is attached. May sleep.
    pub fn attach(&self, socket: &Socket, target: Arc<T>) {
        let mut attached = self.socket.lock();
        if attached.is_some() {
            return;
        }
        // SAFETY: The entry is in no queue, and nobody else can put it into one while the mutex is
        // held: it is ours alone.
        unsafe {
            *self.entry.get() = bindings::wait_queue_entry {
                func: Some(Self::wake),
                private: Arc::into_raw(target).cast_mut().cast(),
                ..pin_init::zeroed()
            };
        }
        // SAFETY: The socket's wait queue is initialised and lives as long as the socket, which is
        // kept below. The entry is pinned with `self`, which takes it out before it is dropped.
        unsafe { bindings::add_wait_queue(socket.wait_queue(), self.entry.get()) };
        // INVARIANT: The entry is in the queue now, as it has to be.
        *attached = Some(socket.clone());
    }

    /// Has nobody told any more. When this returns, nobody is being told either. May sleep.
    pub fn detach(&self) {
        let mut attached = self.socket.lock();
        // INVARIANT: The entry is taken out below, before the mutex is unlocked.
        let Some(socket) = attached.take() else {
            return;
        };
        // SAFETY: By the type invariant the entry is in this queue. Its functions run under the lock
        // that this takes, so that none does afterwards.
        unsafe { bindings::remove_wait_queue(socket.wait_queue(), self.entry.get()) };
        // SAFETY: By the type invariant, and nobody else uses the entry any more.
        let target = unsafe { Arc::from_raw((*self.entry.get()).private.cast::<T>()) };
        drop(attached);
        drop((socket, target));
    }

    /// # Safety
    ///
    /// `entry` is that of an attached hook, and the lock of its queue is held.
    unsafe extern "C" fn wake(
        entry: *mut bindings::wait_queue_entry,
        _mode: ffi::c_uint,
        _flags: ffi::c_int,
        key: *mut c_void,
    ) -> ffi::c_int {
        // What has no events, such as the end of a stream, may be any.
        let events = key.addr() as u32;
        if events == 0 || events & EVENTS != 0 {
            // SAFETY: By the type invariant `private` is from `Arc::into_raw`, and the reference is
            // given back only after the entry was taken out under the lock that is held.
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
