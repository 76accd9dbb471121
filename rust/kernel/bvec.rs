// SPDX-License-Identifier: GPL-2.0

//! Vectors of pieces of pages, to send from and to receive into.
//!
//! C header: [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use crate::kernel::{
    bindings as helpers,
    block::mq::{Claim, Operations, StartedRequest},
    mm::NoReclaim, //
};
use core::{
    marker::PhantomData,
    mem::{self, MaybeUninit},
    slice, //
};
use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*,
    transmute::AsBytes, //
};

/// Up to `N` pieces, to be had on the stack for one transfer.
///
/// # Invariants
///
/// The first `count` entries of `vecs` are initialised; `len` is their length in bytes, and not more
/// than `limit`.
struct Pieces<const N: usize> {
    vecs: [MaybeUninit<bindings::bio_vec>; N],
    count: usize,
    len: usize,
    limit: usize,
}

impl<const N: usize> Pieces<N> {
    fn new(limit: usize) -> Self {
        // INVARIANT: There are none.
        Self {
            vecs: [const { MaybeUninit::uninit() }; N],
            count: 0,
            len: 0,
            limit,
        }
    }

    /// Adds a piece, or as much of its beginning as has room. `false` when that is not all.
    fn push(&mut self, mut piece: bindings::bio_vec) -> bool {
        let room = self.limit - self.len;
        let whole = piece.bv_len as usize <= room;
        if !whole {
            piece.bv_len = room as u32;
        }
        if piece.bv_len == 0 {
            return whole;
        }
        let Some(slot) = self.vecs.get_mut(self.count) else {
            return false;
        };
        slot.write(piece);
        // INVARIANT: Written just above, and not longer than the room.
        self.count += 1;
        self.len += piece.bv_len as usize;
        whole
    }

    /// Adds `len` bytes from `start` on. `false` when there is no room.
    ///
    /// # Safety
    ///
    /// The bytes must lie in one object of a slab. Some sockets take references to the pages of a
    /// piece and give them back, which frees a page that had none; those of slabs are spared that.
    unsafe fn push_slab(&mut self, start: *const u8, len: usize) -> bool {
        let mut piece = bindings::bio_vec::default();
        // SAFETY: Behind the memory of slabs there is a `struct page`.
        unsafe { helpers::bvec_set_virt(&mut piece, start.cast_mut().cast(), len as u32) };
        self.push(piece)
    }

    /// Adds the data of a request from byte `skip` on. `false` when not all of it had room.
    fn push_request<T: Operations>(&mut self, rq: &StartedRequest<T>, mut skip: usize) -> bool {
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
            whole
        });
        whole
    }

    /// An iterator over the pieces.
    ///
    /// # Safety
    ///
    /// The iterator must not be used after `self` is moved or changed, or the data freed.
    unsafe fn iter(&self, direction: u32) -> bindings::iov_iter {
        let mut iter = bindings::iov_iter::default();
        // SAFETY: The vector holds `count` initialised pieces, by the type invariant.
        unsafe {
            bindings::iov_iter_bvec(
                &mut iter,
                direction,
                self.vecs.as_ptr().cast(),
                self.count,
                self.len,
            )
        };
        iter
    }
}

/// Room for `N` headers on their way out.
///
/// # Invariants
///
/// The headers are in one object of a slab.
pub(crate) struct Headers<H, const N: usize>(KBox<[MaybeUninit<H>; N]>);

impl<H, const N: usize> Headers<H, N> {
    /// Takes memory as a send does: without waiting for I/O that may wait for this one, and from the
    /// reserves if need be. Sleeps. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        let _noreclaim = NoReclaim::enter();
        const {
            let size = mem::size_of::<[H; N]>();
            assert!(size > 0 && size <= PAGE_SIZE);
        };
        // SAFETY: What may be uninitialised need not be initialised.
        let headers = unsafe { KBox::<[_; N]>::new_uninit(GFP_KERNEL)?.assume_init() };
        // INVARIANT: `kmalloc` serves so little from slabs.
        Ok(Self(headers))
    }

    /// All of the room, for one transfer.
    pub(crate) fn slots(&mut self) -> HeaderSlots<'_, H> {
        // INVARIANT: By the type invariant.
        HeaderSlots(self.0.iter_mut())
    }
}

/// What is left of the room for headers of a transfer.
///
/// # Invariants
///
/// The slots are in one object of a slab.
pub(crate) struct HeaderSlots<'a, H>(slice::IterMut<'a, MaybeUninit<H>>);

/// Up to `N` pieces to be sent, in order.
///
/// # Invariants
///
/// Each piece can be read for `'a`.
pub(crate) struct BvecSource<'a, const N: usize> {
    pieces: Pieces<N>,
    _data: PhantomData<&'a [u8]>,
}

impl<'a, const N: usize> BvecSource<'a, N> {
    /// Nothing to be sent yet, and never more than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        // INVARIANT: There is no piece.
        Self {
            pieces: Pieces::new(limit),
            _data: PhantomData,
        }
    }

    /// Adds a copy of `header` from byte `skip` on, if that is not its end; the copy takes one of
    /// `slots`. `false` when there is no room. Does not sleep.
    pub(crate) fn push_header<H: AsBytes + Copy>(
        &mut self,
        slots: &mut HeaderSlots<'a, H>,
        header: &H,
        skip: usize,
    ) -> bool {
        if skip >= mem::size_of::<H>() {
            return true;
        }
        let Some(slot) = slots.0.next() else {
            return false;
        };
        let rest = slot.write(*header).as_bytes().get(skip..);
        let rest = rest.unwrap_or_default();
        // INVARIANT: The slot is borrowed for `'a`.
        // SAFETY: By the invariant of `HeaderSlots`.
        unsafe { self.pieces.push_slab(rest.as_ptr(), rest.len()) }
    }

    /// Adds the data of `rq` from byte `skip` on. `false` when not all of it had room.
    pub(crate) fn push_request<T: Operations>(
        &mut self,
        rq: &'a StartedRequest<T>,
        skip: usize,
    ) -> bool {
        // INVARIANT: The data of a started request can be read while it is borrowed.
        self.pieces.push_request(rq, skip)
    }

    /// # Safety
    ///
    /// The iterator must not be used after `self` is moved, changed or dropped.
    pub(super) unsafe fn iter(&self) -> bindings::iov_iter {
        // SAFETY: By the caller's promise; the data lives as long as `self`.
        unsafe { self.pieces.iter(bindings::ITER_SOURCE) }
    }
}

/// Up to `N` pieces to be filled, in order.
///
/// # Invariants
///
/// Each piece can be written for `'a` and is not read meanwhile.
pub(crate) struct BvecDest<'a, const N: usize> {
    pieces: Pieces<N>,
    _data: PhantomData<&'a mut [u8]>,
}

impl<'a, const N: usize> BvecDest<'a, N> {
    /// Nothing to be filled yet, and never more than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        // INVARIANT: There is no piece.
        Self {
            pieces: Pieces::new(limit),
            _data: PhantomData,
        }
    }

    /// Adds the data of `rq` from byte `skip` on. `false` when not all of it had room.
    pub(crate) fn push_request<T: Operations>(
        &mut self,
        rq: &'a mut Claim<T>,
        skip: usize,
    ) -> bool {
        // INVARIANT: Whoever has the claim may fill the data.
        self.pieces.push_request(rq, skip)
    }

    /// Adds `bytes`, which must be a part of a small allocation of `kmalloc`. `false` when there is
    /// no room, or they are elsewhere. Does not sleep.
    pub(crate) fn push_bytes(&mut self, bytes: &'a mut [u8]) -> bool {
        let start = bytes.as_mut_ptr();
        // SAFETY: The function only looks at the address.
        if !unsafe { helpers::is_slab_address(start.cast()) } {
            return false;
        }
        // INVARIANT: The bytes are borrowed mutably for `'a`.
        // SAFETY: The bytes begin in an object of a slab, and are of one allocation.
        unsafe { self.pieces.push_slab(start, bytes.len()) }
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
    /// The iterator must not be used after `self` is moved, changed or dropped.
    pub(super) unsafe fn iter(&self) -> bindings::iov_iter {
        // SAFETY: By the caller's promise; the data lives as long as `self`.
        unsafe { self.pieces.iter(bindings::ITER_DEST) }
    }
}
