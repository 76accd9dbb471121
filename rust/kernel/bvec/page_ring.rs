// SPDX-License-Identifier: GPL-2.0

//! Pages that sockets send from without a copy of their own.

use super::BvecSource;
use crate::{
    bindings,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*, //
};

/// Pages that data is copied to once, to be sent from there without another copy. A page is used
/// again when all references that a socket, or the receiver, has taken to it are dropped, so that
/// it is neither allocated nor cleared for each transfer.
///
/// The pages of a request are not fit for that: whatever receives on the same machine may keep
/// references to the pages themselves for long after the request was sent elsewhere, and would see
/// what is written to them later.
///
/// Context: any, when it is dropped.
///
/// # Examples
///
/// ```
/// use kernel::{
///     bvec::{
///         BvecSource,
///         PageRing, //
///     },
///     net::socket::{
///         Socket,
///         Wait, //
///     }, //
/// };
///
/// fn send(socket: &Socket, ring: &mut PageRing, source: &BvecSource<'_, 4>) -> Result<usize> {
///     match ring.copy(source, source.bytes()) {
///         Some(copy) => socket.send_pages(&copy, Wait::All),
///         // All pages are in use.
///         None => socket.send(source, Wait::All),
///     }
/// }
/// ```
///
/// # Invariants
///
/// Only `self` writes the pages, and only those to which it has the only reference.
pub struct PageRing {
    /// From `next` on, these are in the order in which they were last used.
    pages: KVec<Page>,
    next: usize,
    limit: usize,
}

impl PageRing {
    /// Creates a ring of up to `limit` pages, which are allocated when they are needed.
    ///
    /// Context: any.
    pub const fn new(limit: usize) -> Self {
        // INVARIANT: There are no pages.
        Self {
            pages: KVec::new(),
            next: 0,
            limit,
        }
    }

    /// Copies the first `limit` bytes of `source`, or as many as there are pages that are not in
    /// use. Returns [`None`] if that is none.
    ///
    /// Context: any.
    // This is not inlined, since the pieces would take stack in every send.
    #[inline(never)]
    pub fn copy<const N: usize>(
        &mut self,
        source: &BvecSource<'_, N>,
        limit: usize,
    ) -> Option<RingSource<'_, N>> {
        // SAFETY: The iterator does not outlive the function, which has borrowed `source`.
        let mut iter = unsafe { source.iter() };
        let mut copy = BvecSource::new(limit.min(source.bytes()));
        let mut taken = 0;
        while copy.bytes() < copy.pieces.limit {
            let Some(page) = self.take(taken) else { break };
            taken += 1;
            let len = PAGE_SIZE.min(copy.pieces.limit - copy.bytes());
            // SAFETY: `self` has the only reference to the page, so that nothing else uses it, and
            // it is not in high memory, as no flag allows that. The iterator is over the pieces of
            // `source`, which are valid for reads by its type invariant.
            let copied =
                unsafe { bindings::_copy_from_iter(bindings::page_address(page), len, &mut iter) };
            let piece = bindings::bio_vec {
                bv_page: page,
                bv_len: copied as u32,
                bv_offset: 0,
            };
            // INVARIANT: The page is borrowed with `self` for the lifetime of the result.
            if copied == 0 || !copy.pieces.push(piece) {
                break;
            }
        }
        // INVARIANT: All pieces are in pages of the ring, whose references are counted. By its type
        // invariant they are written only when all other references are dropped, and as it is
        // borrowed mutably, not while the result lives.
        (copy.bytes() > 0).then_some(RingSource(copy))
    }

    /// Returns a page to which there is no other reference, and which is not one of the `taken`
    /// ones that were returned last. Allocates one if there is none.
    fn take(&mut self, taken: usize) -> Option<*mut bindings::page> {
        let oldest = self.pages.get(self.next);
        // SAFETY: The ring owns a reference to its pages, so that they are valid.
        let is_free = |page: &&Page| unsafe { bindings::page_ref_count(page.as_ptr()) } == 1;
        let page = match oldest.filter(is_free) {
            Some(page) if taken < self.pages.len() => page.as_ptr(),
            _ => self.insert()?,
        };
        self.next = (self.next + 1) % self.pages.len();
        Some(page)
    }

    /// Allocates a page in front of the one that was used the longest time ago. Does not reclaim
    /// memory: the ring spares an allocation, and it is not worth to wait for one.
    fn insert(&mut self) -> Option<*mut bindings::page> {
        if self.pages.len() >= self.limit {
            return None;
        }
        self.pages
            .reserve(self.limit - self.pages.len(), GFP_NOWAIT)
            .ok()?;
        let page = Page::alloc_page(GFP_NOWAIT | __GFP_NOWARN).ok()?;
        let raw = page.as_ptr();
        // INVARIANT: The page is new, so that there is no other reference to it.
        self.pages.insert_within_capacity(self.next, page).ok()?;
        Some(raw)
    }
}

/// Pieces of a [`PageRing`], which a socket may keep. [`PageRing`] has an example.
///
/// # Invariants
///
/// The references to all pages are counted, and as long as there is one, the bytes of the pieces
/// are not written.
pub struct RingSource<'a, const N: usize>(BvecSource<'a, N>);

impl<const N: usize> RingSource<'_, N> {
    /// Returns an iterator over the pieces. Context: any.
    ///
    /// # Safety
    ///
    /// The iterator must not be used after `self` is moved or dropped.
    #[inline]
    pub unsafe fn iter(&self) -> bindings::iov_iter {
        // SAFETY: By the safety requirements the iterator is used only while `self` is there.
        unsafe { self.0.iter() }
    }
}

#[crate::macros::kunit_tests(rust_page_ring)]
mod tests {
    use super::*;
    use crate::bvec::Headers;
    use core::ptr;

    const LEN: usize = 28;

    /// Takes a reference to the page of the first piece, as a socket does.
    fn keep(source: &RingSource<'_, 4>) -> *mut bindings::page {
        let (mut page, mut at) = (ptr::null_mut(), 0);
        // SAFETY: The iterator does not outlive `source`.
        let mut iter = unsafe { source.iter() };
        // SAFETY: The iterator is valid while `source` is there, and `page` has room for one
        // pointer.
        let bytes = unsafe { bindings::iov_iter_get_pages2(&mut iter, &mut page, 1, 1, &mut at) };
        assert_eq!(bytes, 1);
        page
    }

    /// Gives back what [`keep`] has taken.
    fn put(page: *mut bindings::page) {
        // SAFETY: The caller owns a reference, and does not use the page afterwards.
        unsafe { bindings::__free_pages(page, 0) };
    }

    #[test]
    fn a_kept_page_is_not_written() -> Result {
        let mut headers = Headers::new()?;
        let mut slots = headers.slots();
        let mut source = BvecSource::<4>::new(usize::MAX);
        assert!(source.push_header(&mut slots, &[7u8; LEN], 0));
        let mut ring = PageRing::new(2);
        let first = keep(&ring.copy(&source, LEN).ok_or(ENOMEM)?);
        let second = keep(&ring.copy(&source, LEN).ok_or(ENOMEM)?);
        assert!(first != second);
        // Both pages are in use.
        assert!(ring.copy(&source, LEN).is_none());
        put(first);
        assert!(keep(&ring.copy(&source, LEN).ok_or(ENOMEM)?) == first);
        assert!(ring.copy(&source, LEN).is_none());
        put(second);
        let again = ring.copy(&source, LEN).ok_or(ENOMEM)?;
        assert!(keep(&again) == second);
        // References outlive the ring.
        drop(ring);
        put(first);
        put(second);
        Ok(())
    }

    #[test]
    fn a_transfer_does_not_use_a_page_twice() -> Result {
        let mut large = KVec::<u8>::from_elem(9, 4 * PAGE_SIZE, GFP_KERNEL)?;
        let mut source = BvecSource::<4>::new(usize::MAX);
        let mut piece = bindings::bio_vec::default();
        // SAFETY: The piece can be written, and the memory of `kmalloc` has a `struct page`.
        unsafe {
            bindings::bvec_set_virt(&mut piece, large.as_mut_ptr().cast(), large.len() as u32)
        };
        assert!(source.pieces.push(piece));
        let mut ring = PageRing::new(3);
        for (limit, bytes, pages) in [
            (1, 1, 1),
            (PAGE_SIZE + 1, PAGE_SIZE + 1, 2),
            (usize::MAX, 3 * PAGE_SIZE, 3),
            (1, 1, 3),
        ] {
            let copy = ring.copy(&source, limit).ok_or(ENOMEM)?;
            assert_eq!(copy.0.bytes(), bytes);
            assert_eq!(copy.0.pieces.count, bytes.div_ceil(PAGE_SIZE));
            assert_eq!(ring.pages.len(), pages);
        }
        Ok(())
    }
}
