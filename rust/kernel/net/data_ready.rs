// SPDX-License-Identifier: GPL-2.0

//! Callbacks that read from a socket where its bytes arrive, without a task that waits for them.
//!
//! C header: [`include/net/sock.h`](srctree/include/net/sock.h) (`sk_data_ready`)

mod arrived;
mod skbuff;

pub use arrived::{
    Arrived,
    ArrivedBuffers, //
};
pub use skbuff::{
    SkBuff,
    SkbBytes, //
};

use crate::{
    bindings,
    ffi,
    module::ModuleRef,
    net::socket::Socket,
    new_mutex,
    new_wait_queue,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        barrier::smp_mb,
        rcu,
        wait::{
            WaitMode,
            WaitQueue,
            FOR_EVER, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    types::Opaque, //
};
use core::{
    ffi::c_void,
    marker::PhantomData,
    mem,
    ptr, //
};
use skbuff::SkbQueue;

/// The callback for a socket. [`DataReadyHook`] has an example.
pub trait DataReady: Send + Sync {
    /// The module of the implementation, which stays loaded while a socket has the callback.
    type Module: crate::module::ModuleMetadata;

    /// Called when bytes may have arrived on a TCP socket without an upper layer protocol. Returns
    /// whether it has read all of them. If not, the tasks and callbacks in the socket's wait queue
    /// are woken, as they are without this callback.
    ///
    /// Context: does not sleep. The lock of the socket is held, in a softirq or by a task that
    /// releases it. A lock that this function takes must not be taken elsewhere with softirqs
    /// enabled.
    fn data_ready(this: ArcBorrow<'_, Self>, arrived: Arrived<'_>) -> bool;

    /// As [`Self::data_ready`], for an `AF_UNIX` socket.
    ///
    /// Context: may sleep, in the task that sends to the socket, which may hold locks of its own,
    /// such as those of pipes and io_uring. Several tasks may call this at the same time, and each
    /// may take any of the buffers.
    fn data_ready_unlocked(this: ArcBorrow<'_, Self>, arrived: ArrivedBuffers<'_>) -> bool;
}

/// Keeps the code of callbacks loaded for tasks that have read the address of one from a socket,
/// but have not called it yet, or not returned from it. The module drops the value after all hooks
/// and before its exit returns; a hook keeps a reference. [`DataReadyHook`] has an example.
///
/// Context: may sleep, for more than a grace period of RCU, when it is dropped.
pub struct CallbackBarrier {
    /// Whether any hook was attached.
    used: Atomic<bool>,
}

impl CallbackBarrier {
    /// Creates a barrier.
    ///
    /// Context: may sleep.
    pub fn new() -> Result<Arc<Self>> {
        let used = Atomic::new(false);
        Ok(Arc::new(Self { used }, GFP_KERNEL)?)
    }
}

impl Drop for CallbackBarrier {
    fn drop(&mut self) {
        if *self.used.get_mut() {
            // A task that is preempted between its look at the socket and the call is in no
            // critical section of RCU.
            // SAFETY: The function has no requirements but its context, which may sleep.
            unsafe { bindings::synchronize_rcu_tasks() };
        }
    }
}

type Callback = unsafe extern "C" fn(sk: *mut bindings::sock);

/// What a socket called before it had the callbacks of a hook.
#[derive(Clone, Copy)]
struct Before {
    ready: Option<Callback>,
    error: Option<Callback>,
}

/// What a callback finds from the socket. The first two fields tell a hook of the same type and for
/// the same socket from other data.
#[repr(C)]
struct Target {
    callback: Callback,
    sk: *mut bindings::sock,
    before: Before,
    /// From [`Arc::into_raw`].
    target: *const c_void,
}

/// The life of a hook.
enum Stage<M: crate::module::ModuleMetadata> {
    New,
    Attached {
        socket: Socket,
        module: ModuleRef<M>,
    },
    Detached,
}

/// The callbacks of a socket that call a `T`.
///
/// The callbacks are code of a module. If another part of the kernel has saved their addresses to
/// call them later, as an upper layer protocol does that comes after them, they stay there when the
/// hook is detached. The module then stays loaded for good.
///
/// Context: may sleep, when it is dropped, too. It must be dropped before the exit of the module
/// returns, and not by [`DataReady::data_ready`].
///
/// # Examples
///
/// ```
/// use kernel::{
///     net::{
///         data_ready::{
///             Arrived,
///             ArrivedBuffers,
///             CallbackBarrier,
///             DataReady,
///             DataReadyHook,
///             SkbBytes, //
///         },
///         socket::Socket, //
///     },
///     sync::{
///         Arc,
///         ArcBorrow, //
///     }, //
/// };
///
/// /// Logs what comes.
/// struct Log;
///
/// fn log_all(bytes: &mut SkbBytes<'_>) {
///     let mut start = [0; 16];
///     while bytes.copy_to(&mut start) > 0 {
///         pr_info!("{:?}\n", start);
///     }
/// }
///
/// impl DataReady for Log {
///     type Module = crate::LocalModule;
///
///     fn data_ready(_log: ArcBorrow<'_, Self>, arrived: Arrived<'_>) -> bool {
///         arrived.read(log_all)
///     }
///
///     fn data_ready_unlocked(_log: ArcBorrow<'_, Self>, mut arrived: ArrivedBuffers<'_>) -> bool {
///         while let Some(mut buffer) = arrived.take() {
///             buffer.read(log_all);
///         }
///         // Another task may read, so that there may be more.
///         false
///     }
/// }
///
/// fn log(
///     socket: &Socket,
///     barrier: &Arc<CallbackBarrier>,
/// ) -> Result<Pin<KBox<DataReadyHook<Log>>>> {
///     let hook = KBox::pin_init(DataReadyHook::new(barrier), GFP_KERNEL)?;
///     hook.attach(socket, Arc::new(Log, GFP_KERNEL)?);
///     Ok(hook)
/// }
/// ```
///
/// # Invariants
///
/// If `stage` is `Attached`, `target` is initialised: its callback is `Self::callback` of its
/// socket, which is that of the stage, and its target is from [`Arc::into_raw`], for a reference
/// that the value owns. `sk_user_data` of a socket is a `Self` only while that is so. Only a
/// function that holds the mutex `stage` changes that.
///
/// `inside` counts the callbacks that use the hook without a critical section of RCU, and for a
/// moment others that are in one. As long as there is one of the former, the socket has the hook.
/// None of them begins after `detaching` was set.
#[pin_data(PinnedDrop)]
pub struct DataReadyHook<T: DataReady> {
    #[pin]
    target: Opaque<Target>,
    #[pin]
    stage: Mutex<Stage<T::Module>>,
    /// Whether [`Self::error_report`] has removed the callbacks from the socket.
    removed: Atomic<bool>,
    /// Whether an address of a callback may have stayed somewhere then.
    saved: Atomic<bool>,
    inside: Atomic<u32>,
    /// Woken when `inside` becomes 0 while [`Self::detach`] waits.
    #[pin]
    left: WaitQueue,
    detaching: Atomic<bool>,
    /// What callbacks have taken from an `AF_UNIX` socket.
    #[pin]
    taken: SkbQueue,
    barrier: Arc<CallbackBarrier>,
    _target: PhantomData<Arc<T>>,
}

// SAFETY: The target is not bound to a thread: it is written under the mutex before any callback
// can find it, and only read then. The value owns an `Arc<T>` and a `Socket`, which are `Send`.
unsafe impl<T: DataReady> Send for DataReadyHook<T> {}
// SAFETY: Threads that share the value attach and detach under the mutex, and else use atomics and
// a wait queue. `T`, which callbacks use on any CPU, is `Sync`.
unsafe impl<T: DataReady> Sync for DataReadyHook<T> {}

impl<T: DataReady> DataReadyHook<T> {
    /// Creates a hook that is attached to no socket.
    ///
    /// Context: any.
    pub fn new(barrier: &Arc<CallbackBarrier>) -> impl PinInit<Self> + use<'_, T> {
        // INVARIANT: The stage is not `Attached`, and no socket has the hook.
        pin_init!(Self {
            target <- Opaque::uninit(),
            stage <- new_mutex!(Stage::New),
            removed: Atomic::new(false),
            saved: Atomic::new(false),
            inside: Atomic::new(0),
            left <- new_wait_queue!("DataReadyHook::left"),
            detaching: Atomic::new(false),
            taken <- SkbQueue::new(),
            barrier: barrier.clone(),
            _target: PhantomData,
        })
    }

    /// Attaches the hook to `socket`: from now on until [`Self::detach`], `target` is called for it
    /// and kept. What the socket has to read before this call causes no callback.
    ///
    /// Does nothing if the hook was attached or detached before, if the socket has an upper layer
    /// protocol, or another part of the kernel has data for it in `sk_user_data`.
    ///
    /// Context: may sleep, but does not wait for the lock of the socket.
    pub fn attach(&self, socket: &Socket, target: Arc<T>) {
        let mut stage = self.stage.lock();
        if !matches!(*stage, Stage::New) || socket.has_ulp() {
            return;
        }
        let Some(module) = ModuleRef::try_get() else {
            return;
        };
        self.barrier.used.store(true, Relaxed);
        let sk = socket.sk();
        // SAFETY: The socket is valid, since `socket` is.
        let callback = unsafe { Self::callback(sk) };
        let target = Arc::into_raw(target);
        let slot = self.target.get();
        // SAFETY: By the type invariant no callback uses the slot, since the stage is `New`. Only a
        // function that holds the mutex writes it, and this one does.
        unsafe {
            slot.write(Target {
                callback,
                sk,
                before: Before {
                    ready: None,
                    error: None,
                },
                target: target.cast(),
            })
        };
        // SAFETY: The socket is valid, since `socket` is. The slot was initialised just above. The
        // function writes what the socket had before the callbacks can find the hook. They find it
        // while the socket has it, which `detach` ends before the hook is freed.
        let attached = unsafe {
            bindings::sock_set_callbacks(
                socket.as_raw(),
                ptr::from_ref(self).cast_mut().cast(),
                Some(callback),
                Some(Self::error_report),
                &raw mut (*slot).before.ready,
                &raw mut (*slot).before.error,
            )
        };
        if attached {
            // INVARIANT: The target is initialised with these values, and owns the reference.
            *stage = Stage::Attached {
                socket: socket.clone(),
                module,
            };
            return;
        }
        drop(stage);
        // SAFETY: The pointer is from `Arc::into_raw`. The socket does not have the hook, so that
        // no callback uses it.
        drop(unsafe { Arc::from_raw(target) });
    }

    /// Returns whether the hook is attached.
    ///
    /// Context: may sleep.
    pub fn is_attached(&self) -> bool {
        matches!(*self.stage.lock(), Stage::Attached { .. })
    }

    /// Detaches the hook for good: when this returns, no callback runs and none will.
    ///
    /// Context: may sleep, also for the socket's lock. It must not be called by
    /// [`DataReady::data_ready`].
    pub fn detach(&self) {
        let stage = mem::replace(&mut *self.stage.lock(), Stage::Detached);
        let Stage::Attached { socket, module } = stage else {
            return;
        };
        let target = self.target.get();
        self.detaching.store(true, Relaxed);
        // Either a callback that has counted itself sees that, or this function sees the count.
        smp_mb(Full);
        self.left
            .wait_until(WaitMode::Idle, FOR_EVER, || self.inside.load(Acquire) == 0);
        let mut saved = false;
        // SAFETY: The socket is valid, since `socket` is. By the type invariant the target is
        // initialised, and it is not written any more.
        unsafe { self.remove(socket.sk(), &mut saved) };
        // SAFETY: The socket is valid, since `socket` is. Callbacks for arrived bytes hold its
        // lock.
        unsafe { bindings::sock_wait_unlocked(socket.as_raw()) };
        // Other callbacks that have found the hook are in a critical section.
        // SAFETY: The function has no requirements but its context, which may sleep.
        unsafe { bindings::synchronize_rcu_expedited() };
        if self.removed.load(Relaxed) {
            saved = self.saved.load(Relaxed);
        }
        // SAFETY: The stage was `Attached`, so that by the type invariant this is from
        // `Arc::into_raw`, for a reference that the value owned. No callback uses it any more.
        let target = unsafe { Arc::from_raw((*target).target.cast::<T>()) };
        if saved {
            mem::forget(module);
        }
        drop((socket, target));
    }

    /// Removes the callbacks from the socket. Returns whether it still had the hook, and in `saved`
    /// whether somebody may have saved the address of one.
    ///
    /// # Safety
    ///
    /// `sk` must be valid, and `target` be initialised.
    unsafe fn remove(&self, sk: *mut bindings::sock, saved: &mut bool) -> bool {
        // SAFETY: By the safety requirements the target is initialised and the socket valid.
        unsafe {
            let Target {
                callback, before, ..
            } = *self.target.get();
            bindings::sock_restore_callbacks(
                sk,
                ptr::from_ref(self).cast_mut().cast(),
                Some(callback),
                Some(Self::error_report),
                before.ready,
                before.error,
                saved,
            )
        }
    }

    /// Returns the hook that `sk` has, with its target. [`None`] if it has none of this type.
    ///
    /// # Safety
    ///
    /// `sk` must be a valid socket.
    unsafe fn find<'a>(
        sk: *mut bindings::sock,
        _rcu: &'a rcu::Guard,
    ) -> Option<(&'a Self, &'a Target)> {
        // SAFETY: The socket is valid, and the guard exists.
        let hook = unsafe { bindings::sock_callback_data(sk) }.cast::<Self>();
        if hook.is_null() {
            return None;
        }
        // SAFETY: By the type invariant this is a hook, whose target is initialised. `detach` waits
        // for the guard before the target or the hook are freed.
        let hook = unsafe { &*hook };
        // SAFETY: The target was initialised before the socket had the hook, and is not written
        // while it has it.
        let target = unsafe { &*hook.target.get() };
        // SAFETY: By the safety requirements the socket is valid.
        let callback = unsafe { Self::callback(sk) };
        // Other data in `sk_user_data` is most unlikely to look like this.
        (target.callback as usize == callback as usize && target.sk == sk).then_some((hook, target))
    }

    /// Returns the callback for the kind of socket that `sk` is.
    ///
    /// # Safety
    ///
    /// `sk` must be a valid socket.
    unsafe fn callback(sk: *mut bindings::sock) -> Callback {
        // SAFETY: By the safety requirements the socket is valid.
        if unsafe { bindings::sk_is_tcp(sk) } {
            Self::tcp_data_ready
        } else {
            Self::unix_data_ready
        }
    }

    /// Does what `sk` did before it had the hook.
    ///
    /// # Safety
    ///
    /// `sk` must be a valid socket that has called a callback of the hook, and `before` be what it
    /// has called before.
    unsafe fn pass_on(sk: *mut bindings::sock, before: Option<Callback>) {
        match before {
            // SAFETY: The socket called this function before, in the same context.
            Some(before) => unsafe { before(sk) },
            // SAFETY: By the safety requirements the socket is valid.
            None => unsafe { bindings::sock_wake_readers(sk) },
        }
    }

    /// # Safety
    ///
    /// `sk` must be a valid TCP socket whose lock is held.
    unsafe extern "C" fn tcp_data_ready(sk: *mut bindings::sock) {
        let rcu = rcu::read_lock();
        // SAFETY: By the safety requirements the socket is valid.
        let target = unsafe { Self::find(sk, &rcu) }.map(|(_, target)| target);
        let read = match target {
            // SAFETY: By the safety requirements the socket is valid.
            Some(target) if !unsafe { bindings::sk_has_ulp(sk) } => {
                // SAFETY: By the safety requirements this is a TCP socket whose lock is held, until
                // the end of this function, and it has no upper layer protocol.
                let arrived = unsafe { Arrived::new(sk) };
                // SAFETY: By the type invariant the pointer is from `Arc::into_raw`, for a
                // reference that is dropped only after `detach` has waited for the guard.
                let target = unsafe { ArcBorrow::from_raw(target.target.cast()) };
                T::data_ready(target, arrived)
            }
            _ => false,
        };
        if !read {
            // SAFETY: The socket is valid and has called this function.
            unsafe { Self::pass_on(sk, target.and_then(|target| target.before.ready)) };
        }
        drop(rcu);
    }

    /// Counts a callback that goes on without a critical section of RCU. Returns whether it may.
    fn enter(&self, rcu: &rcu::Guard) -> bool {
        // INVARIANT: This callback is counted.
        // This is fully ordered: either it sees that `detach` waits, or that sees the count.
        self.inside.fetch_add(1, Full);
        let entered = !self.detaching.load(Relaxed);
        if !entered {
            self.leave(rcu);
        }
        entered
    }

    /// Takes the count back. `detach` waits for the critical section after that.
    fn leave(&self, _rcu: &rcu::Guard) {
        // INVARIANT: This callback does not use the hook after the critical section.
        // This is fully ordered: either it sees that `detach` waits, or that sees the count.
        if self.inside.fetch_sub(1, Full) == 1 && self.detaching.load(Relaxed) {
            self.left.wake_all();
        }
    }

    /// # Safety
    ///
    /// `sk` must be a valid `AF_UNIX` socket, in a context that may sleep.
    unsafe extern "C" fn unix_data_ready(sk: *mut bindings::sock) {
        let rcu = rcu::read_lock();
        // SAFETY: By the safety requirements the socket is valid.
        let found = unsafe { Self::find(sk, &rcu) };
        let before = found.and_then(|(_, target)| target.before.ready);
        let entered = found.filter(|(hook, _)| hook.enter(&rcu));
        let Some((hook, target)) = entered else {
            drop(rcu);
            // SAFETY: The socket is valid and has called this function.
            return unsafe { Self::pass_on(sk, before) };
        };
        // The critical section ends here, and the count goes on.
        let (hook, target) = (ptr::from_ref(hook), target.target);
        drop(rcu);
        // SAFETY: `detach` waits until this callback is not counted any more. Until then the hook
        // and its queue live, the file of the socket is kept, and with it the `struct socket`, and
        // by the type invariant the socket has the hook, so that it may call `take`.
        let arrived = unsafe { ArrivedBuffers::new(sk, Self::take, &(*hook).taken) };
        // SAFETY: By the type invariant the pointer is from `Arc::into_raw`, for a reference that
        // is dropped only after `detach` has waited until no callback is counted.
        let this = unsafe { ArcBorrow::from_raw(target.cast()) };
        if !T::data_ready_unlocked(this, arrived) {
            // SAFETY: The socket is valid and has called this function.
            unsafe { Self::pass_on(sk, before) };
        }
        let rcu = rcu::read_lock();
        // SAFETY: `detach` waits until this callback is not counted, and for the guard after that.
        unsafe { &*hook }.leave(&rcu);
        drop(rcu);
    }

    /// Gets a buffer that was taken from `sk`, for the callback that has caused it.
    ///
    /// # Safety
    ///
    /// `sk` must be a valid `AF_UNIX` socket, for which a callback of a hook of this type is
    /// counted. `skb` must be valid, in no list, and owned by the caller, who gives it away.
    unsafe extern "C" fn take(sk: *mut bindings::sock, skb: *mut bindings::sk_buff) -> ffi::c_int {
        let rcu = rcu::read_lock();
        // SAFETY: By the safety requirements the socket is valid. By the type invariant it has the
        // hook, so that this finds it.
        if let Some((hook, _)) = unsafe { Self::find(sk, &rcu) } {
            // SAFETY: By the safety requirements the buffer is valid, in no list, and given away.
            unsafe { hook.taken.push(skb) };
        }
        drop(rcu);
        0
    }

    /// Removes the callbacks from a socket that is disconnected. A TCP one may listen next. The
    /// sockets of its new connections would be clones of it, and nobody would take the addresses of
    /// the callbacks from them.
    ///
    /// # Safety
    ///
    /// `sk` must be a valid socket.
    unsafe extern "C" fn error_report(sk: *mut bindings::sock) {
        let rcu = rcu::read_lock();
        // SAFETY: By the safety requirements the socket is valid, and it has called this function.
        if let Some((hook, target)) = unsafe { Self::find(sk, &rcu) } {
            // SAFETY: By the safety requirements the socket is valid.
            if unsafe { bindings::sk_is_disconnected(sk) } {
                let mut saved = false;
                // SAFETY: The socket is valid, and the target of the hook initialised.
                if unsafe { hook.remove(sk, &mut saved) } {
                    hook.saved.store(saved, Relaxed);
                    hook.removed.store(true, Relaxed);
                }
            }
            if let Some(error) = target.before.error {
                // SAFETY: The socket called this function before, in the same context.
                unsafe { error(sk) };
            }
        } else {
            // SAFETY: By the safety requirements the socket is valid.
            unsafe { bindings::sock_wake_all(sk) };
        }
        drop(rcu);
    }
}

#[pinned_drop]
impl<T: DataReady> PinnedDrop for DataReadyHook<T> {
    #[inline]
    fn drop(self: Pin<&mut Self>) {
        self.detach();
    }
}
