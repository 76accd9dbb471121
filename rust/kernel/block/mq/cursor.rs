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
/// bytes of it that are before the position.
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
            if self.iter.bi_size > 0 {
                // SAFETY: By the type invariant this is a bio of the request, which is started by
                // the safety requirements, so that the bio and its vectors stay allocated. `iter`
                // is a copy of its iterator and has bytes left.
                return Some(unsafe {
                    bindings::mp_bvec_iter_bvec((*bio.as_ptr()).bi_io_vec, self.iter)
                });
            }
            // SAFETY: The bio and those behind it stay allocated while the request is started.
            // INVARIANT: The next bio is one of the request, and the position is at its start.
            *self = unsafe { Self::start_of_bio((*bio.as_ptr()).bi_next) };
        }
    }

    /// Moves the position forward within the segment that follows it.
    ///
    /// # Safety
    ///
    /// [`Self::segment`] must have returned a segment of `bytes` bytes at least, for this position.
    #[inline]
    unsafe fn pass(&mut self, bytes: u32) {
        // SAFETY: By the safety requirements there is a bio, which is valid since the request is
        // started, and `bytes` do not go beyond the vector that `iter` is in.
        // INVARIANT: The iterator is advanced by the bytes that the position passes.
        unsafe { bindings::bvec_iter_advance_single((*self.bio).bi_io_vec, &mut self.iter, bytes) };
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
            // SAFETY: The segment was returned for this position just above.
            unsafe { self.pass(segment.bv_len) };
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
            // SAFETY: By the safety requirements the request is started.
            let Some(segment) = (unsafe { self.segment() }) else {
                return;
            };
            let step = bytes.min(segment.bv_len as usize);
            // SAFETY: The segment was returned for this position just above, and is not shorter.
            unsafe { self.pass(step as u32) };
            bytes -= step;
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
