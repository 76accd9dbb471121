// SPDX-License-Identifier: GPL-2.0

//! Positions in the data of a request.
//!
//! C header: [`include/linux/bvec.h`](srctree/include/linux/bvec.h) (`struct bvec_iter`)

use super::{
    ActiveRequest,
    Claim,
    Op,
    Operations,
    Publish,
    StartedRequest, //
};
use crate::bindings;
use core::{
    ops::Deref,
    ptr,
    ptr::NonNull, //
};

/// A position in the data of a started request.
///
/// # Invariants
///
/// `bio` is null or a bio of the request, and `iter` is the iterator of that bio, advanced by the
/// bytes of it that are before the position. If no byte of the bio is left, only `bi_size` of the
/// iterator is used.
#[derive(Clone, Copy)]
pub(super) struct DataPosition {
    bio: *mut bindings::bio,
    iter: bindings::bvec_iter,
}

impl DataPosition {
    /// Returns the start of the data of `rq`. Only reads and writes have data.
    #[inline]
    pub(super) fn start_of<T: Operations>(rq: &StartedRequest<T>) -> Self {
        let bio = match rq.op() {
            // SAFETY: The request is started while it is borrowed, so that it is valid and its list
            // of bios constant.
            Op::Read | Op::Write => unsafe { (*rq.as_raw()).bio },
            _ => ptr::null_mut(),
        };
        // SAFETY: A bio in the list of a started request stays allocated and does not change.
        // INVARIANT: There are no bytes before the start of the first bio.
        unsafe { Self::start_of_bio(bio) }
    }

    /// # Safety
    ///
    /// `bio` must be null or a valid bio.
    #[inline]
    unsafe fn start_of_bio(bio: *mut bindings::bio) -> Self {
        let iter = match NonNull::new(bio) {
            // SAFETY: By the safety requirements the bio is valid.
            Some(bio) => unsafe { (*bio.as_ptr()).bi_iter },
            None => bindings::bvec_iter::default(),
        };
        Self { bio, iter }
    }

    /// Moves to the next bio while there are no bytes left in this one. Returns the physically
    /// contiguous segment that follows the position, or [`None`] at the end of the data.
    ///
    /// # Safety
    ///
    /// The request that the position is in must be started.
    #[inline]
    unsafe fn segment(&mut self) -> Option<bindings::bio_vec> {
        loop {
            let bio = NonNull::new(self.bio)?;
            let (left, passed) = (self.iter.bi_size, self.iter.bi_offset);
            if left > 0 {
                // SAFETY: By the type invariant this is a bio of the request, which is started by
                // the safety requirements, so that the bio and its vectors stay allocated. `iter`
                // has bytes left, so that its index is that of one of the vectors.
                let mut segment =
                    unsafe { *(*bio.as_ptr()).bi_io_vec.add(self.iter.bi_idx as usize) };
                segment.bv_offset += passed;
                segment.bv_len = left.min(segment.bv_len - passed);
                return Some(segment);
            }
            // SAFETY: By the type invariant this is a bio of the request, which is started by the
            // safety requirements.
            unsafe { self.next_bio(bio) };
        }
    }

    /// Moves the position to the start of the bio behind `bio`.
    ///
    /// # Safety
    ///
    /// `bio` must be a bio of the request, which must be started.
    #[inline]
    unsafe fn next_bio(&mut self, bio: NonNull<bindings::bio>) {
        // SAFETY: By the safety requirements the bio is one of a started request, so that it and
        // those behind it in its list are valid.
        // INVARIANT: The next bio is one of the request, and the position is at its start.
        *self = unsafe { Self::start_of_bio((*bio.as_ptr()).bi_next) };
    }

    /// Moves the position behind `segment`, which [`Self::segment`] has returned for it.
    #[inline]
    fn pass(&mut self, segment: &bindings::bio_vec) {
        // INVARIANT: A segment ends where its vector ends, so that the next byte is the first of
        // the next vector, or it ends where the bio does, so that no byte is left.
        self.iter.bi_size -= segment.bv_len;
        self.iter.bi_idx += 1;
        self.iter.bi_offset = 0;
    }

    /// Calls `f` with each physically contiguous segment from the position on, until it returns
    /// false. Returns whether it never did.
    ///
    /// # Safety
    ///
    /// The request that the position is in must be started, and stay so during the call.
    #[inline]
    pub(super) unsafe fn for_each_segment(
        mut self,
        mut f: impl FnMut(bindings::bio_vec) -> bool,
    ) -> bool {
        // SAFETY: By the safety requirements the request is started.
        while let Some(segment) = unsafe { self.segment() } {
            if !f(segment) {
                return false;
            }
            self.pass(&segment);
        }
        true
    }

    /// Moves the position forward by `bytes`, at most to the end of the data.
    ///
    /// # Safety
    ///
    /// The request that the position is in must be started.
    unsafe fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let Some(bio) = NonNull::new(self.bio) else {
                return;
            };
            let left = self.iter.bi_size;
            if bytes < left as usize {
                // SAFETY: By the type invariant this is a bio of the request, which is started by
                // the safety requirements, so that the bio and its vectors stay allocated. The
                // bytes are fewer than those that the iterator of the bio has left.
                // INVARIANT: The iterator is advanced by the bytes that the position passes.
                unsafe {
                    bindings::bvec_iter_advance(
                        (*bio.as_ptr()).bi_io_vec,
                        &mut self.iter,
                        bytes as u32,
                    )
                };
                return;
            }
            bytes -= left as usize;
            // SAFETY: By the type invariant this is a bio of the request, which is started by the
            // safety requirements.
            unsafe { self.next_bio(bio) };
        }
    }
}

/// A value that keeps a request started. [`RequestCursor`] has an example.
///
/// # Safety
///
/// The reference that `deref` returns must be to the same request for as long as the value lives.
pub unsafe trait HoldsRequest: Deref<Target = StartedRequest<Self::Queue>> {
    /// The callbacks for the request.
    type Queue: Operations;
}

// SAFETY: The value has one request, which is started while it lives.
unsafe impl<T: Publish> HoldsRequest for ActiveRequest<T> {
    type Queue = T;
}

// SAFETY: The value has one request, which is started while it lives.
unsafe impl<T: Publish> HoldsRequest for Claim<T> {
    type Queue = T;
}

/// A request together with a position in its data, so that a transfer in many steps need not walk
/// from the start of the data in each.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     Claim,
///     Publish,
///     RequestCursor, //
/// };
///
/// /// Returns how many segments follow the first `bytes` of the data.
/// fn segments_behind<T: Publish>(claim: Claim<T>, bytes: usize) -> (Claim<T>, usize) {
///     let mut cursor = RequestCursor::new(claim);
///     cursor.advance(bytes);
///     let mut count = 0;
///     cursor.for_each_segment(|_| {
///         count += 1;
///         true
///     });
///     (cursor.into_inner(), count)
/// }
/// ```
///
/// # Invariants
///
/// `at` is a position in the data of the request of `rq`.
pub struct RequestCursor<R: HoldsRequest> {
    rq: R,
    at: DataPosition,
}

// SAFETY: The pointer to a bio belongs to the request, which is used on behalf of `rq` only.
unsafe impl<R: HoldsRequest + Send> Send for RequestCursor<R> {}

impl<R: HoldsRequest> RequestCursor<R> {
    /// Creates a cursor at the start of the data of `rq`. Context: any.
    #[inline]
    pub fn new(rq: R) -> Self {
        // INVARIANT: The position is in the data of this request, which the value owns.
        Self {
            at: DataPosition::start_of(&rq),
            rq,
        }
    }

    /// Returns what the cursor was created with. Context: any.
    #[inline]
    pub fn into_inner(self) -> R {
        self.rq
    }

    /// Moves the position forward by `bytes`, at most to the end of the data. Context: any.
    #[inline]
    pub fn advance(&mut self, bytes: usize) {
        // SAFETY: By the type invariant the position is in the data of the request of `rq`, which
        // is started while the value lives.
        unsafe { self.at.advance(bytes) };
    }

    /// Calls `f` with each physically contiguous segment from the position on, until it returns
    /// false. Returns whether it never did. Context: that of `f`.
    #[inline]
    pub fn for_each_segment(&self, f: impl FnMut(bindings::bio_vec) -> bool) -> bool {
        // SAFETY: By the type invariant the position is in the data of the request of `rq`, which
        // is started while the value lives.
        unsafe { self.at.for_each_segment(f) }
    }
}

impl<R: HoldsRequest> Deref for RequestCursor<R> {
    type Target = StartedRequest<R::Queue>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.rq
    }
}

#[crate::macros::kunit_tests(rust_block_mq_cursor)]
mod tests {
    use super::*;

    /// The offset and the length of the segments of [`with_bios`], in bytes.
    const SEGMENTS: [(u32, u32); 4] = [
        (100, 412),
        (0x10000, 4096),
        (0x20000, 1000),
        (0x30000, 8192),
    ];

    const TOTAL: u32 = 412 + 4096 + 1000 + 8192;

    fn vec(bv_offset: u32, bv_len: u32) -> bindings::bio_vec {
        bindings::bio_vec {
            bv_page: ptr::null_mut(),
            bv_len,
            bv_offset,
        }
    }

    /// Creates a bio of `size` bytes that begins `offset` bytes into its first vector.
    fn bio(
        vecs: &mut [bindings::bio_vec],
        offset: u32,
        size: u32,
        next: *mut bindings::bio,
    ) -> bindings::bio {
        let mut bio = bindings::bio {
            bi_io_vec: vecs.as_mut_ptr(),
            bi_next: next,
            ..bindings::bio::default()
        };
        bio.bi_iter.bi_offset = offset;
        bio.bi_iter.bi_size = size;
        bio
    }

    /// Calls `f` with the start of three bios. The first is cut out of its vectors at both ends, as
    /// one that was split, and the second is empty.
    fn with_bios(f: impl FnOnce(DataPosition)) {
        let mut first = [vec(0, 512), vec(0x10000, 4096), vec(0x20000, 1024)];
        let mut last = [vec(0x30000, 8192)];
        let mut last = bio(&mut last, 0, 8192, ptr::null_mut());
        let mut empty = bio(&mut [], 0, 0, &mut last);
        let mut first = bio(&mut first, 100, 412 + 4096 + 1000, &mut empty);
        // SAFETY: The bio is valid, and stays so with those behind it while `f` is called.
        f(unsafe { DataPosition::start_of_bio(&mut first) });
    }

    /// Whether the segments from `position` on are those behind the first `at` bytes.
    fn is_at(position: DataPosition, at: u32) -> bool {
        let mut left = at;
        let mut expected = SEGMENTS.iter().filter_map(|(offset, len)| {
            let passed = left.min(*len);
            left -= passed;
            (passed < *len).then(|| (offset + passed, len - passed))
        });
        // SAFETY: The bios of the position are there while `with_bios` runs, which has called this.
        let same = unsafe {
            position.for_each_segment(|segment| {
                expected.next() == Some((segment.bv_offset, segment.bv_len))
            })
        };
        same && expected.next().is_none()
    }

    #[test]
    fn segments_follow_any_position() {
        with_bios(|start| {
            for at in 0..=TOTAL {
                let mut position = start;
                // SAFETY: The bios of the position are there while `with_bios` runs.
                unsafe { position.advance(at as usize) };
                assert!(is_at(position, at));
            }
        });
    }

    #[test]
    fn advances_in_steps_to_the_end() {
        with_bios(|start| {
            for step in [1, 99, 412, 4096, 5508, TOTAL] {
                let mut position = start;
                let mut at = 0;
                while at < TOTAL {
                    // SAFETY: The bios of the position are there while `with_bios` runs.
                    unsafe { position.advance(step as usize) };
                    at += step;
                    assert!(is_at(position, at));
                }
                // SAFETY: The bios of the position are there while `with_bios` runs.
                unsafe { position.advance(1) };
                assert!(is_at(position, TOTAL));
            }
        });
    }
}
