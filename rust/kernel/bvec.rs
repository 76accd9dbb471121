// SPDX-License-Identifier: GPL-2.0

//! Vectors of pieces of pages, to send from and to receive into.
//!
//! C header: [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

mod page_ring;

pub use page_ring::{
    PageRing,
    RingSource, //
};

use crate::{
    bindings,
    block::mq::{
        ActiveRequest,
        Claim,
        Op,
        Operations,
        Publish,
        RequestCursor,
        StartedRequest, //
    },
    ffi,
    mm::NoReclaim,
    page::{
        Page,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    transmute::AsBytes, //
};
use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    slice, //
};

/// Up to `N` pieces for one transfer, to be kept on the stack.
///
/// # Invariants
///
/// The first `count` entries of `vecs` are initialised. `len` is their length together, in bytes,
/// and not more than `limit`.
struct Pieces<const N: usize> {
    vecs: [MaybeUninit<bindings::bio_vec>; N],
    count: usize,
    len: usize,
    limit: usize,
}

impl<const N: usize> Pieces<N> {
    #[inline]
    fn new(limit: usize) -> Self {
        // INVARIANT: There are no pieces, so that their length is 0.
        Self {
            vecs: [const { MaybeUninit::uninit() }; N],
            count: 0,
            len: 0,
            limit,
        }
    }

    /// Adds a piece, or as many of its first bytes as the limit allows. Returns whether the whole
    /// piece was added.
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
        // INVARIANT: The entry was written just above, and is not longer than the room below the
        // limit.
        self.count += 1;
        self.len += piece.bv_len as usize;
        whole
    }

    /// Returns the pieces.
    #[inline]
    fn as_slice(&self) -> &[bindings::bio_vec] {
        // SAFETY: By the type invariant the first `count` entries are initialised, and
        // `MaybeUninit` is transparent.
        unsafe { slice::from_raw_parts(self.vecs.as_ptr().cast(), self.count) }
    }

    /// Returns an iterator over the pieces.
    ///
    /// # Safety
    ///
    /// The iterator must not be used after `self` is moved or changed, or after the data is freed.
    #[inline]
    unsafe fn iter(&self, direction: u32) -> bindings::iov_iter {
        // SAFETY: By the safety requirements the iterator is used only while the pieces and their
        // data are there. `len` is the length of the pieces by the type invariant.
        unsafe { bvec_iter(direction, self.as_slice(), self.len) }
    }
}

/// Returns an iterator over `pieces`, whose length together is `len` bytes.
///
/// # Safety
///
/// The iterator must not be used after the pieces are moved or changed, or after the data is freed.
#[inline]
unsafe fn bvec_iter(
    direction: u32,
    pieces: &[bindings::bio_vec],
    len: usize,
) -> bindings::iov_iter {
    let mut iter = bindings::iov_iter::default();
    // SAFETY: The iterator can be written, and the pieces are initialised. The iterator keeps a
    // pointer to them, which by the safety requirements is not used after they are gone.
    unsafe { bindings::iov_iter_bvec(&mut iter, direction, pieces.as_ptr(), pieces.len(), len) };
    iter
}

/// Returns the address of the bytes of `piece` if references to its pages are not counted. These
/// are the pages of slabs and of large `kmalloc` allocations, whose users free them whatever the
/// count is.
fn uncounted(piece: &bindings::bio_vec) -> Option<*mut ffi::c_void> {
    let offset = piece.bv_offset as usize;
    let end = offset + piece.bv_len as usize;
    let mut pages = (offset >> PAGE_SHIFT)..end.div_ceil(PAGE_SIZE);
    // SAFETY: The pages of a piece are consecutive and allocated, so that `nth` is the index of one
    // of them. The functions only read the flags and the count of a page.
    let counted = pages.all(|nth| unsafe {
        let page = piece.bv_page.add(nth);
        bindings::sendpage_ok(page) && !bindings::page_is_large_kmalloc(page)
    });
    if counted {
        return None;
    }
    // SAFETY: The page is allocated. It belongs to a slab or a `kmalloc` allocation, neither of
    // which is in high memory, so that it has an address.
    let page = unsafe { bindings::page_address(piece.bv_page) };
    (!page.is_null()).then(|| page.wrapping_byte_add(offset))
}

/// Room for the headers of a transfer: a page, since a socket may keep references to the pages that
/// it sends from for longer than the call. It does not use the bytes in them after the call.
/// [`BvecSource`] has an example.
///
/// Context: any, when it is dropped.
pub struct Headers(Page);

impl Headers {
    /// Allocates the room as a send does: without waiting for I/O that may wait for this one, and
    /// from the memory reserves if need be.
    ///
    /// Fails with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn new() -> Result<Self> {
        let _noreclaim = NoReclaim::enter();
        Ok(Self(Page::alloc_page(GFP_KERNEL)?))
    }

    /// Returns all of the room, for one transfer.
    ///
    /// Context: any.
    #[inline]
    pub fn slots(&mut self) -> HeaderSlots<'_> {
        // INVARIANT: The page is borrowed mutably for the lifetime of the result, through which
        // alone it is used.
        HeaderSlots {
            page: &self.0,
            used: 0,
        }
    }
}

/// The room that is left for the headers of a transfer. [`BvecSource`] has an example.
///
/// # Invariants
///
/// Nothing else reads or writes the page from byte `used` on for `'a`.
pub struct HeaderSlots<'a> {
    page: &'a Page,
    used: usize,
}

impl HeaderSlots<'_> {
    /// Copies `bytes` into the room and returns the piece; [`None`] if there is no room.
    #[inline]
    fn copy(&mut self, bytes: &[u8]) -> Option<bindings::bio_vec> {
        let at = self.used;
        // SAFETY: `bytes` is valid for reads. By the type invariant nothing else uses the page from
        // `at` on, and `write_raw` checks that the bytes have room in it.
        unsafe { self.page.write_raw(bytes.as_ptr(), at, bytes.len()) }.ok()?;
        // INVARIANT: The bytes were written in front of the new `used`.
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
/// # Examples
///
/// ```
/// use kernel::bvec::{
///     BvecSource,
///     Headers, //
/// };
///
/// let mut headers = Headers::new()?;
/// let mut slots = headers.slots();
/// let mut source = BvecSource::<2>::new(usize::MAX);
/// // Of this header a socket has sent 20 bytes before.
/// assert!(source.push_header(&mut slots, &[1u8; 28], 20));
/// assert!(source.push_header(&mut slots, &[2u8; 28], 0));
/// assert_eq!(source.bytes(), 36);
/// // Two pieces are all that there is room for.
/// assert!(!source.push_header(&mut slots, &[3u8; 28], 0));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// Each piece is valid for reads for `'a`.
pub struct BvecSource<'a, const N: usize> {
    pieces: Pieces<N>,
    _data: PhantomData<&'a [u8]>,
}

impl<'a, const N: usize> BvecSource<'a, N> {
    /// Creates an empty source for no more than `limit` bytes.
    ///
    /// Context: any.
    #[inline]
    pub fn new(limit: usize) -> Self {
        // INVARIANT: There is no piece, so that there is nothing to be valid.
        Self {
            pieces: Pieces::new(limit),
            _data: PhantomData,
        }
    }

    /// Adds a copy of `header` from byte `skip` on, which takes room of `slots`. A `skip` beyond
    /// its end adds nothing. Returns whether all of it was added.
    ///
    /// Context: any.
    #[inline]
    pub fn push_header<H: AsBytes>(
        &mut self,
        slots: &mut HeaderSlots<'a>,
        header: &H,
        skip: usize,
    ) -> bool {
        let rest = header.as_bytes().get(skip..).unwrap_or_default();
        match slots.copy(rest) {
            // INVARIANT: The page is borrowed for `'a`, and only the bytes behind the copy are
            // written, by the invariant of `slots`.
            Some(piece) => self.pieces.push(piece),
            None => false,
        }
    }

    /// Adds the data of `rq` if it is a write. Returns whether all of it was added.
    ///
    /// Context: any.
    #[inline]
    pub fn push_request<T: Operations>(&mut self, rq: &'a StartedRequest<T>) -> bool {
        // INVARIANT: The data of a write is valid for reads while the request is started, and it is
        // borrowed for `'a`.
        rq.op() != Op::Write || rq.for_each_segment(|piece| self.pieces.push(piece))
    }

    /// Adds the data that follows the position of `cursor`, if its request is a write. Returns
    /// whether all of it was added.
    ///
    /// Context: any.
    #[inline]
    pub fn push_rest<T: Publish>(&mut self, cursor: &'a RequestCursor<ActiveRequest<T>>) -> bool {
        // INVARIANT: The data of a write is valid for reads while the request is started, and it is
        // borrowed for `'a`.
        cursor.op() != Op::Write || cursor.for_each_segment(|piece| self.pieces.push(piece))
    }

    /// Returns the number of bytes. Context: any.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.pieces.len
    }

    /// Returns an iterator over the pieces. Context: any.
    ///
    /// # Safety
    ///
    /// The iterator must not be used after `self` is moved, changed or dropped.
    #[inline]
    pub unsafe fn iter(&self) -> bindings::iov_iter {
        // SAFETY: By the safety requirements the iterator is used only while `self` is there, and
        // by the type invariant the data is valid for as long.
        unsafe { self.pieces.iter(bindings::ITER_SOURCE) }
    }

    /// Returns an iterator over the first pieces that are all in pages with counted references,
    /// which the user of the iterator may keep, or that are all in others. The latter go through
    /// `copied` into an iterator of the kind whose data is copied. It has at least one piece if
    /// `self` does. Context: any.
    ///
    /// # Safety
    ///
    /// The iterator must not be used after `self` or `copied` is moved, changed or dropped.
    pub unsafe fn refcounted_iter(
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
            // SAFETY: The iterator can be written. The first `count` entries of `copied` were
            // written just above, with `len` bytes together, and each is valid for reads for `'a`
            // by the type invariant. The iterator is a source, so that it writes nothing.
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
        // SAFETY: By the safety requirements the iterator is used only while `self` is there, and
        // by the type invariant the data is valid for as long. `len` is the length of these pieces.
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
/// # Examples
///
/// ```
/// use kernel::bvec::BvecDest;
///
/// let mut room = KVec::<u8>::from_elem(0, 16, GFP_KERNEL)?;
/// let mut dest = BvecDest::<1>::new(usize::MAX);
/// assert!(dest.push_bytes(&mut room));
/// assert_eq!(dest.fill(b"example"), 7);
/// assert!(room.starts_with(b"example\0"));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// Each piece is valid for writes for `'a`, and nothing else reads or writes it.
pub struct BvecDest<'a, const N: usize> {
    pieces: Pieces<N>,
    _data: PhantomData<&'a mut [u8]>,
}

impl<'a, const N: usize> BvecDest<'a, N> {
    /// Creates an empty destination for no more than `limit` bytes.
    ///
    /// Context: any.
    #[inline]
    pub fn new(limit: usize) -> Self {
        // INVARIANT: There is no piece, so that there is nothing to be valid.
        Self {
            pieces: Pieces::new(limit),
            _data: PhantomData,
        }
    }

    /// Adds the data that follows the position of `cursor`, if its request is a read. Returns
    /// whether all of it was added.
    ///
    /// Context: any.
    #[inline]
    pub fn push_rest<T: Publish>(&mut self, cursor: &'a mut RequestCursor<Claim<T>>) -> bool {
        // INVARIANT: The claim of a read is the only right to write its data, and it is borrowed
        // mutably for `'a`.
        cursor.op() != Op::Read || cursor.for_each_segment(|piece| self.pieces.push(piece))
    }

    /// Adds `bytes`, which must be in a slab, as small `kmalloc` allocations are. Returns whether
    /// they were added: they are not if they are elsewhere or have no room.
    ///
    /// Some sockets take references to the pages of a piece and drop them before the call returns.
    /// That would free a page whose references are not counted; the pages of slabs are spared that.
    ///
    /// Context: any.
    pub fn push_bytes(&mut self, bytes: &'a mut [u8]) -> bool {
        let start = bytes.as_mut_ptr();
        // SAFETY: The function takes any address, and only reads the page's flags if that is a
        // valid one.
        if !unsafe { bindings::is_slab_address(start.cast()) } {
            return false;
        }
        let mut piece = bindings::bio_vec::default();
        // SAFETY: The piece can be written, and the memory of slabs has a `struct page`.
        unsafe { bindings::bvec_set_virt(&mut piece, start.cast(), bytes.len() as u32) };
        // INVARIANT: The bytes are borrowed mutably for `'a`.
        self.pieces.push(piece)
    }

    /// Copies `bytes` into the pieces, from the first one on, and returns how many bytes had room.
    ///
    /// Context: any.
    #[inline]
    pub fn fill(self, bytes: &[u8]) -> usize {
        // SAFETY: The iterator does not outlive the function, which owns `self` and neither moves
        // nor changes it meanwhile.
        let mut iter = unsafe { self.iter() };
        // SAFETY: `bytes` is valid for reads, and the iterator over the pieces, which by the type
        // invariant are valid for writes, is used while `self` is there.
        unsafe { bindings::_copy_to_iter(bytes.as_ptr().cast(), bytes.len(), &mut iter) }
    }

    /// Returns an iterator over the pieces. Context: any.
    ///
    /// # Safety
    ///
    /// The iterator must not be used after `self` is moved, changed or dropped.
    #[inline]
    pub unsafe fn iter(&self) -> bindings::iov_iter {
        // SAFETY: By the safety requirements the iterator is used only while `self` is there, and
        // by the type invariant the data is valid for as long.
        unsafe { self.pieces.iter(bindings::ITER_DEST) }
    }
}

#[crate::macros::kunit_tests(rust_bvec)]
mod tests {
    use super::*;
    use crate::page::BorrowedPage;
    use core::ptr::{
        self,
        NonNull, //
    };

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
            // This is what a socket that encrypts does, except that such a socket drops the
            // reference itself.
            // SAFETY: The iterator is valid while `source` is there, and `page` has room for one
            // pointer.
            let bytes =
                unsafe { bindings::iov_iter_get_pages2(&mut iter, &mut page, LEN, 1, &mut at) };
            assert_eq!(bytes, LEN as isize);
        }
        drop(headers);
        let page = NonNull::new(page).ok_or(EINVAL)?;
        let mut sent = [0; LEN + 8];
        // SAFETY: The test owns the reference that was taken above, which keeps the page valid
        // until the test drops it below.
        let borrowed = unsafe { BorrowedPage::from_raw(page) };
        // SAFETY: `sent` has room for the bytes, and no task writes the page.
        unsafe { borrowed.read_raw(sent.as_mut_ptr(), at, sent.len()) }?;
        assert!(sent.get(..LEN) == Some(&header[..]));
        assert!(sent.get(LEN..) == header.get(20..));
        // SAFETY: The test owns the reference, and does not use the page afterwards.
        unsafe { bindings::__free_pages(page.as_ptr(), 0) };
        Ok(())
    }

    /// Returns a piece in memory of `kmalloc`.
    fn piece_of(bytes: &mut [u8]) -> bindings::bio_vec {
        let mut piece = bindings::bio_vec::default();
        // SAFETY: The piece can be written, and the memory of `kmalloc` has a `struct page`.
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
        // The source has a header, two pieces whose references are not counted, and another header.
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
        // These are the pieces that a socket takes in its calls, one call after the other.
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
            assert_eq!(
                // SAFETY: Both kinds of iterator have a count in this field of the union.
                unsafe { iter.__bindgen_anon_1.__bindgen_anon_1.as_ref() }.count,
                len
            );
        }
        Ok(())
    }

    #[test]
    fn headers_fill_a_page() -> Result {
        let mut headers = Headers::new()?;
        // Each transfer can use all of the room.
        for _ in 0..2 {
            let mut slots = headers.slots();
            let mut source = BvecSource::<150>::new(usize::MAX);
            let mut count = 0;
            while source.push_header(&mut slots, &[0u8; LEN], 0) {
                count += 1;
            }
            assert_eq!(count, PAGE_SIZE / LEN);
            // A header that was sent as a whole needs no room.
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
