// SPDX-License-Identifier: GPL-2.0

//! Socket buffers that are read.
//!
//! C header: [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h)

use crate::{
    bindings,
    bvec::BvecDest,
    ffi,
    prelude::*,
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    ptr,
    ptr::NonNull, //
};

/// Buffers that belong to no socket and to no reader.
///
/// # Invariants
///
/// `head` is an initialised list, whose lock protects it. The list owns the buffers that are in it.
#[pin_data(PinnedDrop)]
pub(super) struct SkbQueue {
    #[pin]
    head: Opaque<bindings::sk_buff_head>,
}

// SAFETY: The list and its buffers are bound to no thread.
unsafe impl Send for SkbQueue {}
// SAFETY: Threads that share the value change the list under its lock.
unsafe impl Sync for SkbQueue {}

impl SkbQueue {
    pub(super) fn new() -> impl PinInit<Self> {
        // INVARIANT: The list is initialised, and empty.
        pin_init!(Self {
            // SAFETY: The function initialises the list. It is pinned, as its address is in it.
            head <- Opaque::ffi_init(|head| unsafe { bindings::skb_queue_head_init(head) }),
        })
    }

    /// Adds a buffer at the end.
    ///
    /// # Safety
    ///
    /// `skb` must be valid, in no list, and owned by the caller, who gives it away.
    #[inline]
    pub(super) unsafe fn push(&self, skb: *mut bindings::sk_buff) {
        // INVARIANT: The list owns the buffer from now on.
        // SAFETY: By the type invariant the list is initialised, and by the safety requirements the
        // buffer is valid and in no other list.
        unsafe { bindings::skb_queue_tail(self.head.get(), skb) };
    }

    /// Takes the first buffer.
    #[inline]
    pub(super) fn pop(&self) -> Option<SkBuff> {
        // SAFETY: By the type invariant the list is initialised.
        let skb = NonNull::new(unsafe { bindings::skb_dequeue(self.head.get()) })?;
        // SAFETY: The list has owned the buffer, and this function does now.
        Some(unsafe { SkBuff::from_raw(skb) })
    }
}

#[pinned_drop]
impl PinnedDrop for SkbQueue {
    fn drop(self: Pin<&mut Self>) {
        while self.pop().is_some() {}
    }
}

/// A socket buffer that its reader owns, with the bytes of it that were not read yet.
///
/// [`DataReadyHook`](super::DataReadyHook) has an example.
///
/// # Invariants
///
/// `skb` is valid and in no list, the value owns it, and it has `len` bytes at `offset`.
pub struct SkBuff {
    skb: NonNull<bindings::sk_buff>,
    offset: usize,
    len: usize,
}

// SAFETY: The buffer is bound to no thread.
unsafe impl Send for SkBuff {}

impl SkBuff {
    /// # Safety
    ///
    /// `skb` must be valid, in no list, and owned by the caller, who gives it away.
    #[inline]
    unsafe fn from_raw(skb: NonNull<bindings::sk_buff>) -> Self {
        // SAFETY: By the safety requirements the buffer is valid, and nobody else changes it.
        let len = unsafe { (*skb.as_ptr()).len };
        // INVARIANT: By the safety requirements the value owns the buffer, which has these bytes.
        Self {
            skb,
            offset: 0,
            len: len as usize,
        }
    }

    /// Returns whether no byte is left.
    ///
    /// Context: any.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Has `f` read from the bytes that are left. Returns its result.
    ///
    /// Context: that of `f`.
    pub fn read<R>(&mut self, f: impl FnOnce(&mut SkbBytes<'_>) -> R) -> R {
        // SAFETY: By the type invariant the buffer is valid and has these bytes. It is borrowed for
        // as long as the value lives.
        let mut bytes = unsafe { SkbBytes::new(self.skb.as_ptr(), self.offset, self.len) };
        let result = f(&mut bytes);
        // INVARIANT: By the invariant of the bytes the buffer has those that are left. They are of
        // this buffer, as `f` has no others of this lifetime.
        (self.offset, self.len) = (bytes.offset, bytes.len);
        result
    }
}

impl Drop for SkBuff {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value owns the buffer, and nothing uses it after this.
        unsafe {
            bindings::sk_skb_reason_drop(
                ptr::null_mut(),
                self.skb.as_ptr(),
                bindings::skb_drop_reason_SKB_CONSUMED,
            )
        };
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
    /// # Safety
    ///
    /// `skb` must be valid and have `len` bytes at `offset` for as long as the value lives.
    #[inline]
    pub(super) unsafe fn new(skb: *const bindings::sk_buff, offset: usize, len: usize) -> Self {
        // INVARIANT: By the safety requirements the buffer has these bytes.
        Self {
            skb,
            offset,
            len,
            _skb: PhantomData,
        }
    }

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

#[crate::macros::kunit_tests(rust_net_skbuff)]
mod tests {
    use super::*;

    /// Adds a buffer with `bytes`.
    fn push(queue: &SkbQueue, bytes: &[u8]) -> Result {
        let len = bytes.len();
        // SAFETY: The function has no requirements but its context, which may sleep.
        let skb = unsafe {
            bindings::__alloc_skb(len as u32, bindings::GFP_KERNEL, 0, bindings::NUMA_NO_NODE)
        };
        if skb.is_null() {
            return Err(ENOMEM);
        }
        // SAFETY: The buffer was allocated with room for the bytes, and belongs to this function.
        // It is in no list, and given away.
        unsafe {
            let to = bindings::skb_put(skb, len as u32);
            ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), len);
            queue.push(skb);
        }
        Ok(())
    }

    #[test]
    fn buffers_keep_their_order() -> Result {
        let queue = KBox::pin_init(SkbQueue::new(), GFP_KERNEL)?;
        assert!(queue.pop().is_none());
        for number in 1..=4u8 {
            push(&queue, &[number])?;
        }
        for number in 1..=2u8 {
            let mut buffer = queue.pop().ok_or(EINVAL)?;
            let mut byte = [0];
            assert_eq!(buffer.read(|bytes| bytes.copy_to(&mut byte)), 1);
            assert_eq!(byte, [number]);
        }
        // The others are freed with the list.
        Ok(())
    }

    #[test]
    fn what_is_left_is_read_next() -> Result {
        let queue = KBox::pin_init(SkbQueue::new(), GFP_KERNEL)?;
        let sent: [u8; 40] = core::array::from_fn(|i| i as u8);
        push(&queue, &sent)?;
        let mut buffer = queue.pop().ok_or(EINVAL)?;
        let mut header = [0; 16];
        assert_eq!(buffer.read(|bytes| bytes.copy_to(&mut header)), 16);
        assert!(sent.starts_with(&header));
        assert!(!buffer.is_empty());
        let mut payload = KVec::from_elem(0u8, 64, GFP_KERNEL)?;
        let mut dest = BvecDest::<1>::new(usize::MAX);
        assert!(dest.push_bytes(&mut payload));
        assert_eq!(buffer.read(|bytes| bytes.fill(dest)), 24);
        assert!(buffer.is_empty());
        assert!(payload.get(..24) == sent.get(16..));
        Ok(())
    }
}
