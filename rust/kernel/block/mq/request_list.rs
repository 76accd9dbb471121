// SPDX-License-Identifier: GPL-2.0

//! A first-in, first-out list of requests that needs no memory of its own.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h) (`struct rq_list`)

use super::{
    request::{ActiveRequest, StartedRequest},
    Operations, //
};
use crate::bindings;
use core::{
    marker::PhantomData,
    mem,
    ptr::{self, NonNull}, //
};

/// Requests linked through `rq_next`.
///
/// # Invariants
///
/// `head` and what is linked behind it are requests of which the list owns the
/// [`ActiveRequest`]; `tail` is the last of them, or null if there is none.
pub struct RequestList<T: Operations> {
    head: *mut bindings::request,
    tail: *mut bindings::request,
    _owned: PhantomData<ActiveRequest<T>>,
}

// SAFETY: The list owns its requests, which are `Send`.
unsafe impl<T: Operations> Send for RequestList<T> {}

impl<T: Operations> RequestList<T> {
    /// An empty list.
    #[expect(clippy::new_without_default)]
    #[inline]
    pub const fn new() -> Self {
        // INVARIANT: No requests, and null at both ends.
        Self {
            head: ptr::null_mut(),
            tail: ptr::null_mut(),
            _owned: PhantomData,
        }
    }

    /// Whether there is no request in the list.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Adds a request at the end.
    pub fn push_back(&mut self, rq: ActiveRequest<T>) {
        let rq = rq.into_raw().as_ptr();
        // SAFETY: The request is active, so that the block layer leaves its link alone.
        unsafe { Self::set_next(rq, ptr::null_mut()) };
        match NonNull::new(self.tail) {
            // SAFETY: By the type invariant the last request is owned by the list.
            Some(tail) => unsafe { Self::set_next(tail.as_ptr(), rq) },
            None => self.head = rq,
        }
        // INVARIANT: The list took over the value above, and links it last.
        self.tail = rq;
    }

    /// Takes the first request out.
    #[inline]
    pub fn pop_front(&mut self) -> Option<ActiveRequest<T>> {
        let rq = NonNull::new(self.head)?;
        // SAFETY: By the type invariant the first request is owned by the list.
        self.head = unsafe { Self::next(rq.as_ptr()) };
        if self.head.is_null() {
            self.tail = ptr::null_mut();
        }
        // SAFETY: `push_back` made it from an `ActiveRequest`, and it is no longer in the list.
        Some(unsafe { ActiveRequest::from_raw(rq) })
    }

    /// The list, leaving an empty one.
    #[inline]
    pub fn take(&mut self) -> Self {
        mem::replace(self, Self::new())
    }

    /// The first request.
    #[inline]
    pub fn front(&self) -> Option<&StartedRequest<T>> {
        self.iter().next()
    }

    /// The requests from first to last.
    pub fn iter(&self) -> impl Iterator<Item = &StartedRequest<T>> {
        let mut next: &*mut bindings::request = &self.head;
        core::iter::from_fn(move || {
            let current = next;
            if current.is_null() {
                return None;
            }
            // SAFETY: By the type invariant `current` is owned by the list, which is borrowed.
            next = unsafe { &(**current).__bindgen_anon_1.rq_next };
            // SAFETY: `StartedRequest` is transparent over a non-null pointer, and the request
            // stays started while the list that is borrowed owns it.
            Some(unsafe { &*ptr::from_ref(current).cast::<StartedRequest<T>>() })
        })
    }

    /// # Safety
    ///
    /// `rq` must be owned by the list or about to be.
    #[inline]
    unsafe fn set_next(rq: *mut bindings::request, next: *mut bindings::request) {
        // SAFETY: By the caller's promise the link is the list's to write.
        unsafe { (*rq).__bindgen_anon_1.rq_next = next };
    }

    /// # Safety
    ///
    /// `rq` must be owned by the list.
    #[inline]
    unsafe fn next(rq: *mut bindings::request) -> *mut bindings::request {
        // SAFETY: By the caller's promise the link is the list's to read.
        unsafe { (*rq).__bindgen_anon_1.rq_next }
    }
}

impl<T: Operations> Drop for RequestList<T> {
    #[inline]
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}
