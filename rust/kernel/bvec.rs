// SPDX-License-Identifier: GPL-2.0

//! Vectors of pieces of pages, to send from and to receive into.
//!
//! C header: [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use crate::{
    bindings,
    block::mq::{Claim, Op, Operations, StartedRequest},
    ffi,
    mm::NoReclaim,
    page::{Page, PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    transmute::AsBytes, //
};
use core::{marker::PhantomData, mem::MaybeUninit, slice};

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
    #[inline]
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

    /// The pieces.
    #[inline]
    fn as_slice(&self) -> &[bindings::bio_vec] {
        // SAFETY: By the type invariant so many are initialised.
        unsafe { slice::from_raw_parts(self.vecs.as_ptr().cast(), self.count) }
    }

    /// An iterator over the pieces.
    ///
    /// # Safety
    ///
    /// The iterator must not be used after `self` is moved or changed, or the data freed.
    #[inline]
    unsafe fn iter(&self, direction: u32) -> bindings::iov_iter {
        // SAFETY: By the caller's promise.
        unsafe { bvec_iter(direction, self.as_slice(), self.len) }
    }
}

/// An iterator over `len` bytes of `pieces`, which is their length.
///
/// # Safety
///
/// The iterator must not be used after the pieces are moved or changed, or the data freed.
#[inline]
unsafe fn bvec_iter(
    direction: u32,
    pieces: &[bindings::bio_vec],
    len: usize,
) -> bindings::iov_iter {
    let mut iter = bindings::iov_iter::default();
    // SAFETY: The pieces are initialised; the caller promises that they stay.
    unsafe { bindings::iov_iter_bvec(&mut iter, direction, pieces.as_ptr(), pieces.len(), len) };
    iter
}

/// Where the bytes of `piece` are if references to its pages are not counted: pages of slabs and of
/// large `kmalloc` allocations, which their users free without looking at the count.
fn uncounted(piece: &bindings::bio_vec) -> Option<*mut ffi::c_void> {
    let offset = piece.bv_offset as usize;
    let end = offset + piece.bv_len as usize;
    let mut pages = (offset >> PAGE_SHIFT)..end.div_ceil(PAGE_SIZE);
    // SAFETY: The pages of a piece are consecutive and allocated; the functions look at them.
    let counted = pages.all(|nth| unsafe {
        let page = piece.bv_page.add(nth);
        bindings::sendpage_ok(page) && !bindings::page_is_large_kmalloc(page)
    });
    if counted {
        return None;
    }
    // SAFETY: The page is allocated. `kmalloc` gives memory that is always mapped.
    let page = unsafe { bindings::page_address(piece.bv_page) };
    (!page.is_null()).then(|| page.wrapping_byte_add(offset))
}

/// Room for headers on their way out: a page, since a socket may keep references to the pages that it
/// sends for longer than the call. It is done with the bytes in them when the call returns.
pub struct Headers(Page);

impl Headers {
    /// Takes memory as a send does: without waiting for I/O that may wait for this one, and from the
    /// reserves if need be. Sleeps. Fails with `ENOMEM`.
    pub fn new() -> Result<Self> {
        let _noreclaim = NoReclaim::enter();
        Ok(Self(Page::alloc_page(GFP_KERNEL)?))
    }

    /// All of the room, for one transfer.
    #[inline]
    pub fn slots(&mut self) -> HeaderSlots<'_> {
        // INVARIANT: The page is borrowed mutably.
        HeaderSlots {
            page: &self.0,
            used: 0,
        }
    }
}

/// What is left of the room for headers of a transfer.
///
/// # Invariants
///
/// Nobody else reads or writes the page from byte `used` on for `'a`.
pub struct HeaderSlots<'a> {
    page: &'a Page,
    used: usize,
}

impl HeaderSlots<'_> {
    /// Copies `bytes`. [`None`] when there is no room.
    fn copy(&mut self, bytes: &[u8]) -> Option<bindings::bio_vec> {
        let at = self.used;
        // SAFETY: `bytes` can be read, and by the type invariant the page be written there.
        unsafe { self.page.write_raw(bytes.as_ptr(), at, bytes.len()) }.ok()?;
        // INVARIANT: What was written is in front of it.
        self.used += bytes.len();
        Some(bindings::bio_vec {
            bv_page: self.page.as_ptr(),
            bv_len: bytes.len() as u32,
            bv_offset: at as u32,
        })
    }
}

/// Up to `N` pieces to be sent, in order.
///
/// # Invariants
///
/// Each piece can be read for `'a`.
pub struct BvecSource<'a, const N: usize> {
    pieces: Pieces<N>,
    _data: PhantomData<&'a [u8]>,
}

impl<'a, const N: usize> BvecSource<'a, N> {
    /// Nothing to be sent yet, and never more than `limit` bytes.
    #[inline]
    pub fn new(limit: usize) -> Self {
        // INVARIANT: There is no piece.
        Self {
            pieces: Pieces::new(limit),
            _data: PhantomData,
        }
    }

    /// Adds a copy of `header` from byte `skip` on, if that is not its end; the copy takes room of
    /// `slots`. `false` when there is none. Does not sleep.
    #[inline]
    pub fn push_header<H: AsBytes>(
        &mut self,
        slots: &mut HeaderSlots<'a>,
        header: &H,
        skip: usize,
    ) -> bool {
        let rest = header.as_bytes().get(skip..).unwrap_or_default();
        match slots.copy(rest) {
            // INVARIANT: The page is borrowed for `'a`, and only what is behind the copy changes.
            Some(piece) => self.pieces.push(piece),
            None => false,
        }
    }

    /// Adds the data of `rq` from byte `skip` on, if it is a write. `false` when not all of it had
    /// room.
    #[inline]
    pub fn push_request<T: Operations>(&mut self, rq: &'a StartedRequest<T>, skip: usize) -> bool {
        // INVARIANT: The data of a write can be read while that is borrowed.
        rq.op() != Op::Write || self.pieces.push_request(rq, skip)
    }

    /// # Safety
    ///
    /// The iterator must not be used after `self` is moved, changed or dropped.
    #[inline]
    pub(super) unsafe fn iter(&self) -> bindings::iov_iter {
        // SAFETY: By the caller's promise; the data lives as long as `self`.
        unsafe { self.pieces.iter(bindings::ITER_SOURCE) }
    }

    /// An iterator over those of the first pieces that are all in pages with counted references,
    /// which the user of the iterator may keep; or all in others, to be copied: by way of `copied`,
    /// an iterator of the kind whose data is never kept. There is at least one piece in it if there
    /// is one here.
    ///
    /// # Safety
    ///
    /// The iterator must not be used after `self` or `copied` is moved, changed or dropped.
    pub(super) unsafe fn refcounted_iter(
        &self,
        copied: &mut [MaybeUninit<bindings::kvec>; N],
    ) -> bindings::iov_iter {
        let pieces = self.pieces.as_slice();
        let mut count = 0;
        let mut len = 0;
        for (piece, slot) in pieces.iter().zip(copied.iter_mut()) {
            let Some(start) = uncounted(piece) else { break };
            slot.write(bindings::kvec {
                iov_base: start,
                iov_len: piece.bv_len as usize,
            });
            count += 1;
            len += piece.bv_len as usize;
        }
        if count > 0 {
            let mut iter = bindings::iov_iter::default();
            // SAFETY: So many entries were written just above; the data lives as long as `self`, and
            // what is to be sent is not written.
            unsafe {
                bindings::iov_iter_kvec(
                    &mut iter,
                    bindings::ITER_SOURCE,
                    copied.as_ptr().cast(),
                    count,
                    len,
                )
            };
            return iter;
        }
        let counted = pieces.iter().take_while(|piece| uncounted(piece).is_none());
        let (count, len) = counted.fold((0, 0), |(count, len), piece| {
            (count + 1, len + piece.bv_len as usize)
        });
        // SAFETY: By the caller's promise; the data lives as long as `self`.
        unsafe {
            bvec_iter(
                bindings::ITER_SOURCE,
                pieces.get(..count).unwrap_or(pieces),
                len,
            )
        }
    }
}

/// Up to `N` pieces to be filled, in order.
///
/// # Invariants
///
/// Each piece can be written for `'a` and is not read meanwhile.
pub struct BvecDest<'a, const N: usize> {
    pieces: Pieces<N>,
    _data: PhantomData<&'a mut [u8]>,
}

impl<'a, const N: usize> BvecDest<'a, N> {
    /// Nothing to be filled yet, and never more than `limit` bytes.
    #[inline]
    pub fn new(limit: usize) -> Self {
        // INVARIANT: There is no piece.
        Self {
            pieces: Pieces::new(limit),
            _data: PhantomData,
        }
    }

    /// Adds the data of `rq` from byte `skip` on, if it is a read. `false` when not all of it had
    /// room.
    #[inline]
    pub fn push_request<T: Operations>(&mut self, rq: &'a mut Claim<T>, skip: usize) -> bool {
        // INVARIANT: Whoever has claimed a read may fill its data, and nobody else touches them.
        rq.op() != Op::Read || self.pieces.push_request(rq, skip)
    }

    /// Adds `bytes`, which must be a part of a small allocation of `kmalloc`. `false` when there is
    /// no room, or they are elsewhere. Does not sleep.
    ///
    /// Some sockets take references to the pages of a piece and give them back before they return,
    /// which would free a page that had none; those of slabs are spared that.
    pub fn push_bytes(&mut self, bytes: &'a mut [u8]) -> bool {
        let start = bytes.as_mut_ptr();
        // SAFETY: The function only looks at the address.
        if !unsafe { bindings::is_slab_address(start.cast()) } {
            return false;
        }
        let mut piece = bindings::bio_vec::default();
        // SAFETY: Behind the memory of slabs there is a `struct page`.
        unsafe { bindings::bvec_set_virt(&mut piece, start.cast(), bytes.len() as u32) };
        // INVARIANT: The bytes are borrowed mutably for `'a`.
        self.pieces.push(piece)
    }

    /// Fills the pieces from the start with `bytes`, and returns how many had room.
    #[inline]
    pub fn fill(self, bytes: &[u8]) -> usize {
        // SAFETY: The iterator does not outlive the function.
        let mut iter = unsafe { self.iter() };
        // SAFETY: `bytes` can be read, and by the type invariant the pieces can be written.
        unsafe { bindings::_copy_to_iter(bytes.as_ptr().cast(), bytes.len(), &mut iter) }
    }

    /// # Safety
    ///
    /// The iterator must not be used after `self` is moved, changed or dropped.
    #[inline]
    pub(super) unsafe fn iter(&self) -> bindings::iov_iter {
        // SAFETY: By the caller's promise; the data lives as long as `self`.
        unsafe { self.pieces.iter(bindings::ITER_DEST) }
    }
}

#[crate::macros::kunit_tests(rust_bvec)]
mod tests {
    use super::*;
    use crate::page::BorrowedPage;
    use core::ptr::{self, NonNull};

    const LEN: usize = 28;

    #[test]
    fn headers_outlive_their_sender() -> Result {
        let header: [u8; LEN] = core::array::from_fn(|i| i as u8);
        let mut headers = Headers::new()?;
        let mut page = ptr::null_mut();
        let mut at = 0;
        {
            let mut slots = headers.slots();
            let mut source = BvecSource::<2>::new(usize::MAX);
            assert!(source.push_header(&mut slots, &header, 0));
            assert!(source.push_header(&mut slots, &header, 20));
            // SAFETY: The iterator does not outlive `source`.
            let mut iter = unsafe { source.iter() };
            // What a socket does that encrypts, but that gives the pages back itself.
            // SAFETY: There is room for one page.
            let bytes =
                unsafe { bindings::iov_iter_get_pages2(&mut iter, &mut page, LEN, 1, &mut at) };
            assert_eq!(bytes, LEN as isize);
        }
        drop(headers);
        let page = NonNull::new(page).ok_or(EINVAL)?;
        let mut sent = [0; LEN + 8];
        // SAFETY: The page has the reference that was taken above.
        let borrowed = unsafe { BorrowedPage::from_raw(page) };
        // SAFETY: `sent` has room, and nobody writes to the page.
        unsafe { borrowed.read_raw(sent.as_mut_ptr(), at, sent.len()) }?;
        assert!(sent.get(..LEN) == Some(&header[..]));
        assert!(sent.get(LEN..) == header.get(20..));
        // SAFETY: Gives the reference back, which nobody uses any more.
        unsafe { bindings::__free_pages(page.as_ptr(), 0) };
        Ok(())
    }

    /// A piece in memory of `kmalloc`.
    fn piece_of(bytes: &mut [u8]) -> bindings::bio_vec {
        let mut piece = bindings::bio_vec::default();
        // SAFETY: Behind the memory of `kmalloc` there is a `struct page`.
        unsafe {
            bindings::bvec_set_virt(&mut piece, bytes.as_mut_ptr().cast(), bytes.len() as u32)
        };
        piece
    }

    #[test]
    fn slabs_are_copied_and_pages_kept() -> Result {
        let mut headers = Headers::new()?;
        let mut small = KVec::<u8>::from_elem(7, 512, GFP_KERNEL)?;
        let mut large = KVec::<u8>::from_elem(8, 4 * PAGE_SIZE, GFP_KERNEL)?;
        let mut slots = headers.slots();
        let mut source = BvecSource::<8>::new(usize::MAX);
        // A header, two pieces of slabs, and a header again.
        assert!(source.push_header(&mut slots, &[1u8; LEN], 0));
        assert!(source.pieces.push(piece_of(&mut small)));
        assert!(source.pieces.push(piece_of(&mut large)));
        assert!(source.push_header(&mut slots, &[2u8; LEN], 0));
        let kinds = source
            .pieces
            .as_slice()
            .iter()
            .map(|p| uncounted(p).is_some());
        assert!(kinds.eq([false, true, true, false]));
        // What a socket would take in its calls, one after the other.
        let mut copied = [const { MaybeUninit::uninit() }; 8];
        for (drop_first, copy, len) in [
            (0, false, LEN),
            (1, true, 512 + 4 * PAGE_SIZE),
            (3, false, LEN),
        ] {
            let mut rest = BvecSource::<8>::new(usize::MAX);
            for piece in source.pieces.as_slice().iter().skip(drop_first) {
                assert!(rest.pieces.push(*piece));
            }
            // SAFETY: The iterator does not outlive `rest` and `copied`.
            let iter = unsafe { rest.refcounted_iter(&mut copied) };
            let kind = u32::from(iter.iter_type);
            assert!((kind == bindings::iter_type_ITER_KVEC) == copy);
            // SAFETY: Every iterator over vectors has a count.
            assert_eq!(
                unsafe { iter.__bindgen_anon_1.__bindgen_anon_1.as_ref() }.count,
                len
            );
        }
        Ok(())
    }

    #[test]
    fn headers_fill_a_page() -> Result {
        let mut headers = Headers::new()?;
        // Each transfer has all of the room.
        for _ in 0..2 {
            let mut slots = headers.slots();
            let mut source = BvecSource::<150>::new(usize::MAX);
            let mut count = 0;
            while source.push_header(&mut slots, &[0u8; LEN], 0) {
                count += 1;
            }
            assert_eq!(count, PAGE_SIZE / LEN);
            // What is sent needs no room.
            assert!(source.push_header(&mut slots, &[0u8; LEN], LEN));
        }
        let mut slots = headers.slots();
        let mut source = BvecSource::<2>::new(40);
        assert!(source.push_header(&mut slots, &[0u8; LEN], 0));
        assert!(!source.push_header(&mut slots, &[0u8; LEN], 0));
        assert_eq!(source.pieces.len, 40);
        Ok(())
    }
}
