// SPDX-License-Identifier: GPL-2.0

//! What has arrived on a socket.
//!
//! C headers: [`include/net/tcp.h`](srctree/include/net/tcp.h) (`tcp_read_sock`),
//! [`include/linux/net.h`](srctree/include/linux/net.h) (`read_skb`)

use super::skbuff::{
    SkBuff,
    SkbBytes,
    SkbQueue, //
};
use crate::{
    bindings,
    ffi,
    types::NotThreadSafe, //
};
use core::marker::PhantomData;

/// The right to read what has arrived on a TCP socket.
///
/// [`DataReadyHook`](super::DataReadyHook) has an example.
///
/// # Invariants
///
/// `sk` is a TCP socket without an upper layer protocol, whose lock is held for `'a` on behalf of
/// the current context. Nothing else reads from it for `'a`.
pub struct Arrived<'a> {
    sk: *mut bindings::sock,
    _lock: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

impl Arrived<'_> {
    /// # Safety
    ///
    /// `sk` must be a TCP socket without an upper layer protocol. The current context must hold its
    /// lock, as all do that read from it, for as long as the value lives.
    #[inline]
    pub(super) unsafe fn new(sk: *mut bindings::sock) -> Self {
        // INVARIANT: By the safety requirements this is such a socket, whose lock is held.
        Self {
            sk,
            _lock: PhantomData,
            _not_send: NotThreadSafe,
        }
    }

    /// Calls `f` with what has arrived, piece by piece, until nothing is left or `f` leaves
    /// something of a piece. After that `f` may be called once more with what it has left. Returns
    /// whether everything was read.
    ///
    /// Context: any; that of `f`.
    pub fn read<F: FnMut(&mut SkbBytes<'_>)>(self, mut f: F) -> bool {
        /// # Safety
        ///
        /// `desc` must have a pointer to an `F` that nothing else uses, and `skb` be valid, with
        /// `len` bytes at `offset`.
        unsafe extern "C" fn actor<F: FnMut(&mut SkbBytes<'_>)>(
            desc: *mut bindings::read_descriptor_t,
            skb: *mut bindings::sk_buff,
            offset: ffi::c_uint,
            len: usize,
        ) -> ffi::c_int {
            // SAFETY: By the safety requirements this is a valid `F`, which nothing else uses.
            let f = unsafe { &mut *(*desc).arg.data.cast::<F>() };
            // SAFETY: By the safety requirements the buffer is valid, and has these bytes.
            let mut bytes = unsafe { SkbBytes::new(skb, offset as usize, len) };
            f(&mut bytes);
            (len - bytes.len()) as ffi::c_int
        }
        // SAFETY: By the type invariant this is a TCP socket whose lock is held, and that nothing
        // else reads from. `f` is borrowed during the call, which passes it to `actor` only.
        unsafe { bindings::tcp_read_sock(self.sk, (&raw mut f).cast(), Some(actor::<F>)) }
    }
}

/// The right to take the buffers that have arrived on an `AF_UNIX` socket.
///
/// [`DataReadyHook`](super::DataReadyHook) has an example.
///
/// # Invariants
///
/// `sk` is an `AF_UNIX` stream socket, which has a `struct socket` for `'a`. `actor` may be called
/// by it for `'a`, and pushes the buffers that it gets to `taken`.
pub struct ArrivedBuffers<'a> {
    sk: *mut bindings::sock,
    actor: SkbActor,
    taken: &'a SkbQueue,
    _not_send: NotThreadSafe,
}

pub(super) type SkbActor =
    unsafe extern "C" fn(sk: *mut bindings::sock, skb: *mut bindings::sk_buff) -> ffi::c_int;

impl<'a> ArrivedBuffers<'a> {
    /// # Safety
    ///
    /// `sk` must be an `AF_UNIX` stream socket, which has a `struct socket` as long as the value
    /// lives. So long `actor` must be one that it may call to push a buffer to `taken`.
    #[inline]
    pub(super) unsafe fn new(
        sk: *mut bindings::sock,
        actor: SkbActor,
        taken: &'a SkbQueue,
    ) -> Self {
        // INVARIANT: By the safety requirements these are such a socket and such a function.
        Self {
            sk,
            actor,
            taken,
            _not_send: NotThreadSafe,
        }
    }

    /// Takes the next buffer. It is whole, even if [`Socket::receive`] has read a part of it: who
    /// uses both has to read until [`Socket::receive`] finds nothing.
    ///
    /// Returns [`None`] if nothing is left, and also if another task is reading from the socket,
    /// which may last. [`Socket::has_data`] tells which.
    ///
    /// Context: may sleep.
    ///
    /// [`Socket::receive`]: crate::net::socket::Socket::receive
    /// [`Socket::has_data`]: crate::net::socket::Socket::has_data
    pub fn take(&mut self) -> Option<SkBuff> {
        // SAFETY: By the type invariant this is an `AF_UNIX` stream socket with a `struct socket`,
        // which may call the function.
        unsafe { bindings::sock_read_skb(self.sk, Some(self.actor)) };
        self.taken.pop()
    }
}
