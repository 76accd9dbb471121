// SPDX-License-Identifier: GPL-2.0

//! Vectors of pieces of pages, to send from and to receive into.
//!
//! C header: [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use crate::kernel::{
    bindings as helpers,
    block::mq::{Claim, Operations, StartedRequest}, //
};
use core::marker::PhantomData;
use kernel::{bindings, prelude::*};

/// Memory for a vector, made once and used for one transfer after another.
///
/// # Invariants
///
/// `vecs` never grows beyond its capacity, so that it does not move.
pub(crate) struct BvecBuf {
    vecs: KVec<bindings::bio_vec>,
    bytes: KVec<u8>,
}

// SAFETY: Between transfers, when the buffer can be moved, the vector is empty.
unsafe impl Send for BvecBuf {}

impl BvecBuf {
    /// Room for `pieces` pieces, and for `bytes` bytes of small ones that are copied in. Sleeps.
    pub(crate) fn new(pieces: usize, bytes: usize) -> Result<Self> {
        Ok(Self {
            vecs: KVec::with_capacity(pieces, GFP_KERNEL)?,
            bytes: KVec::with_capacity(bytes, GFP_KERNEL)?,
        })
    }

    /// An empty source; what was in the buffer is forgotten.
    pub(crate) fn source(&mut self) -> BvecSource<'_> {
        self.clear();
        BvecSource {
            buf: self,
            len: 0,
            _data: PhantomData,
        }
    }

    /// An empty destination; what was in the buffer is forgotten.
    pub(crate) fn dest(&mut self) -> BvecDest<'_> {
        self.clear();
        BvecDest {
            buf: self,
            len: 0,
            _data: PhantomData,
        }
    }

    fn clear(&mut self) {
        self.vecs.clear();
        self.bytes.clear();
    }

    /// Adds a piece if there is room.
    fn push(&mut self, piece: bindings::bio_vec) -> bool {
        self.vecs.push_within_capacity(piece).is_ok()
    }

    /// Adds the data of a request from byte `skip` on, as far as there is room. Returns the bytes
    /// added, and whether the data ended.
    fn push_request<T: Operations>(
        &mut self,
        rq: &StartedRequest<T>,
        mut skip: usize,
    ) -> (usize, bool) {
        let mut added = 0;
        let mut whole = true;
        rq.for_each_segment(|mut piece| {
            let len = piece.bv_len as usize;
            if skip >= len {
                skip -= len;
                return true;
            }
            piece.bv_offset += skip as u32;
            piece.bv_len -= skip as u32;
            skip = 0;
            whole = self.push(piece);
            if whole {
                added += piece.bv_len as usize;
            }
            whole
        });
        (added, whole)
    }

    /// An iterator over the pieces.
    ///
    /// # Safety
    ///
    /// The iterator must not be used after the buffer is changed or the data freed.
    unsafe fn iter(&self, direction: u32, len: usize) -> bindings::iov_iter {
        let mut iter = bindings::iov_iter::default();
        // SAFETY: The vector holds `len()` initialised pieces.
        unsafe {
            bindings::iov_iter_bvec(
                &mut iter,
                direction,
                self.vecs.as_ptr(),
                self.vecs.len(),
                len,
            )
        };
        iter
    }
}

/// Pieces to be sent, in order.
///
/// # Invariants
///
/// Each piece can be read for `'a`; `len` is their length in bytes.
pub(crate) struct BvecSource<'a> {
    buf: &'a mut BvecBuf,
    len: usize,
    _data: PhantomData<&'a [u8]>,
}

impl<'a> BvecSource<'a> {
    /// Adds a copy of `bytes`. `false` when there is no room.
    pub(crate) fn push_copy(&mut self, bytes: &[u8]) -> bool {
        let start = self.buf.bytes.len();
        if self.buf.bytes.capacity() - start < bytes.len()
            || self.buf.vecs.len() == self.buf.vecs.capacity()
            || self.buf.bytes.extend_from_slice(bytes, GFP_NOWAIT).is_err()
        {
            return false;
        }
        let mut piece = bindings::bio_vec::default();
        // SAFETY: The copy lies in a `kmalloc` allocation, which has a `struct page` and does not
        // move, since there was room for the bytes.
        unsafe {
            helpers::bvec_set_virt(
                &mut piece,
                self.buf.bytes.as_mut_ptr().add(start).cast(),
                bytes.len() as u32,
            )
        };
        // INVARIANT: The bytes are borrowed with the buffer.
        self.len += bytes.len();
        self.buf.push(piece)
    }

    /// Adds the data of `rq` from byte `skip` on. `false` when not all of it had room.
    pub(crate) fn push_request<T: Operations>(
        &mut self,
        rq: &'a StartedRequest<T>,
        skip: usize,
    ) -> bool {
        // INVARIANT: The data of a started request can be read while it is borrowed.
        let (added, whole) = self.buf.push_request(rq, skip);
        self.len += added;
        whole
    }

    /// # Safety
    ///
    /// See [`BvecBuf::iter`].
    pub(super) unsafe fn iter(&self) -> bindings::iov_iter {
        // SAFETY: By the caller's promise.
        unsafe { self.buf.iter(bindings::ITER_SOURCE, self.len) }
    }
}

/// Pieces to be filled, in order.
///
/// # Invariants
///
/// Each piece can be written for `'a` and is not read meanwhile; `len` is their length in bytes.
pub(crate) struct BvecDest<'a> {
    buf: &'a mut BvecBuf,
    len: usize,
    _data: PhantomData<&'a mut [u8]>,
}

impl<'a> BvecDest<'a> {
    /// Adds the data of `rq` from byte `skip` on. `false` when not all of it had room.
    pub(crate) fn push_request<T: Operations>(
        &mut self,
        rq: &'a mut Claim<T>,
        skip: usize,
    ) -> bool {
        // INVARIANT: Whoever has the claim may fill the data.
        let (added, whole) = self.buf.push_request(rq, skip);
        self.len += added;
        whole
    }

    /// Adds `bytes` from `skip` on, in a vector because that has pages behind it. `false` when
    /// there is no room.
    pub(crate) fn push_bytes(&mut self, bytes: &'a mut KVec<u8>, skip: usize) -> bool {
        let Some(rest) = bytes.get_mut(skip..) else {
            return false;
        };
        let mut piece = bindings::bio_vec::default();
        let len = rest.len();
        // SAFETY: The bytes lie in a `kmalloc` allocation, which has a `struct page`.
        unsafe {
            helpers::bvec_set_virt(&mut piece, rest.as_mut_ptr().cast(), len as u32);
        }
        // INVARIANT: The bytes are borrowed mutably for `'a`.
        let pushed = self.buf.push(piece);
        if pushed {
            self.len += len;
        }
        pushed
    }

    /// Fills the pieces from the start with `bytes`, and returns how many had room.
    pub(crate) fn fill(self, bytes: &[u8]) -> usize {
        // SAFETY: The iterator does not outlive the function.
        let mut iter = unsafe { self.iter() };
        // SAFETY: `bytes` can be read, and by the type invariant the pieces can be written.
        unsafe { bindings::_copy_to_iter(bytes.as_ptr().cast(), bytes.len(), &mut iter) }
    }

    /// # Safety
    ///
    /// See [`BvecBuf::iter`].
    pub(super) unsafe fn iter(&self) -> bindings::iov_iter {
        // SAFETY: By the caller's promise.
        unsafe { self.buf.iter(bindings::ITER_DEST, self.len) }
    }
}
