// SPDX-License-Identifier: GPL-2.0

//! What has arrived on a TCP socket, read from the buffers that it is in.
//!
//! C headers: [`include/net/tcp.h`](srctree/include/net/tcp.h) (`tcp_read_sock`),
//! [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h)

use crate::{
    bindings,
    bvec::BvecDest,
    ffi,
    types::NotThreadSafe, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// The right to read what has arrived on a TCP socket.
///
/// [`DataReadyHook`](super::DataReadyHook) has an example.
///
/// # Invariants
///
/// `sk` is a TCP socket without an upper layer protocol, whose lock is held for `'a` on behalf of
/// the current context. Nothing else reads from it for `'a`.
pub struct Arrived<'a> {
    sk: NonNull<bindings::sock>,
    _lock: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

impl Arrived<'_> {
    /// # Safety
    ///
    /// `sk` must be a TCP socket without an upper layer protocol. The current context must hold its
    /// lock, as all do that read from it, for as long as the value lives.
    #[inline]
    pub(super) unsafe fn new(sk: NonNull<bindings::sock>) -> Self {
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
            // INVARIANT: By the safety requirements the buffer has these bytes.
            let mut bytes = SkbBytes {
                skb,
                offset: offset as usize,
                len,
                _skb: PhantomData,
            };
            f(&mut bytes);
            (len - bytes.len) as ffi::c_int
        }
        // SAFETY: By the type invariant this is a TCP socket whose lock is held, and that nothing
        // else reads from. `f` is borrowed during the call, which passes it to `actor` only.
        unsafe { bindings::tcp_read_sock(self.sk.as_ptr(), (&raw mut f).cast(), Some(actor::<F>)) }
    }
}

/// Bytes in a socket buffer that are read from the first one on.
///
/// [`DataReadyHook`](super::DataReadyHook) has an example.
///
/// # Invariants
///
/// `skb` is valid for `'a`, and has `len` bytes at `offset`.
pub struct SkbBytes<'a> {
    skb: *const bindings::sk_buff,
    offset: usize,
    len: usize,
    _skb: PhantomData<&'a bindings::sk_buff>,
}

impl SkbBytes<'_> {
    /// Returns how many bytes are left.
    ///
    /// Context: any.
    #[expect(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Removes `count` bytes, of which there are as many.
    #[inline]
    fn consume(&mut self, count: usize) {
        // INVARIANT: What is left of the bytes is behind those that are removed.
        self.offset += count;
        self.len -= count;
    }

    /// Moves bytes to `dest` until it is full or no byte is left. Returns their number.
    ///
    /// Context: any.
    pub fn copy_to(&mut self, dest: &mut [u8]) -> usize {
        let count = self.len.min(dest.len());
        // SAFETY: By the type invariant the buffer is valid and has these bytes, and `dest` is
        // valid for writes of as many.
        let result = unsafe {
            bindings::skb_copy_bits(
                self.skb,
                self.offset as ffi::c_int,
                dest.as_mut_ptr().cast(),
                count as ffi::c_int,
            )
        };
        // It only fails if the buffer has fewer bytes.
        if result != 0 {
            return 0;
        }
        self.consume(count);
        count
    }

    /// Moves bytes to the pieces of `dest` until they are full or no byte is left. Returns their
    /// number.
    ///
    /// Context: any.
    pub fn fill<const N: usize>(&mut self, dest: BvecDest<'_, N>) -> usize {
        // SAFETY: The iterator does not outlive the function, which owns `dest` and neither moves
        // nor changes it meanwhile.
        let mut iter = unsafe { dest.iter() };
        // SAFETY: The iterator is initialised.
        let count = self.len.min(unsafe { bindings::iov_iter_count(&iter) });
        // SAFETY: By the type invariant the buffer is valid and has these bytes. The iterator over
        // the pieces, which by the invariant of `dest` are valid for writes, is used while `dest`
        // is there.
        let result = unsafe {
            bindings::skb_copy_datagram_iter(
                self.skb,
                self.offset as ffi::c_int,
                &mut iter,
                count as ffi::c_int,
            )
        };
        // It only fails if the buffer has fewer bytes, or the pieces less room.
        if result != 0 {
            return 0;
        }
        self.consume(count);
        count
    }
}
