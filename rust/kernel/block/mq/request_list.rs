// SPDX-License-Identifier: GPL-2.0

//! First-in, first-out lists of requests that need no memory of their own.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h) (`struct rq_list`)

use super::{
    publish::{
        ActiveRequest,
        Publish, //
    },
    request::StartedRequest, //
};
use crate::bindings;
use core::{
    marker::PhantomData,
    mem,
    ptr::{
        self,
        NonNull, //
    }, //
};

/// A list of requests, which are linked through `rq_next`.
///
/// Context: any. Dropping the list drops its requests.
///
/// # Invariants
///
/// `head` and the requests that are linked behind it are requests of which the list owns the
/// `ActiveRequest`. `tail` is the last of them, or null if there is none. Nothing else uses their
/// links.
///
/// # Examples
///
/// ```
/// use kernel::block::mq::{
///     OwnedRequest,
///     Publish,
///     RequestList, //
/// };
///
/// fn queue<T: Publish>(list: &mut RequestList<T>, rq: OwnedRequest<T>, cookie: u32) {
///     list.push_back(rq.publish(cookie));
/// }
///
/// fn send_all<T: Publish>(list: &mut RequestList<T>, send: impl Fn(&T::Header)) {
///     while let Some(rq) = list.pop_front() {
///         send(rq.header());
///     }
///     assert!(list.is_empty());
/// }
/// ```
pub struct RequestList<T: Publish> {
    head: *mut bindings::request,
    tail: *mut bindings::request,
    _owned: PhantomData<ActiveRequest<T>>,
}

// SAFETY: The list only points to requests of which it owns the `ActiveRequest`, and that is
// `Send`.
unsafe impl<T: Publish> Send for RequestList<T> {}

impl<T: Publish> RequestList<T> {
    /// Creates an empty list.
    ///
    /// Context: any.
    #[expect(clippy::new_without_default)]
    #[inline]
    pub const fn new() -> Self {
        // INVARIANT: There is no request, and both ends are null.
        Self {
            head: ptr::null_mut(),
            tail: ptr::null_mut(),
            _owned: PhantomData,
        }
    }

    /// Returns whether there is no request in the list.
    ///
    /// Context: any.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Adds a request at the end.
    ///
    /// Context: any.
    pub fn push_back(&mut self, rq: ActiveRequest<T>) {
        let rq = rq.into_raw().as_ptr();
        // SAFETY: The list has taken over the `ActiveRequest`. While the request is started, the
        // block layer does not use its link.
        unsafe { Self::set_next(rq, ptr::null_mut()) };
        match NonNull::new(self.tail) {
            // SAFETY: By the type invariant the list owns the last request.
            Some(tail) => unsafe { Self::set_next(tail.as_ptr(), rq) },
            None => self.head = rq,
        }
        // INVARIANT: The list has taken over the value, and the request is the last one that is
        // linked.
        self.tail = rq;
    }

    /// Removes the first request and returns it.
    ///
    /// Context: any.
    #[inline]
    pub fn pop_front(&mut self) -> Option<ActiveRequest<T>> {
        let rq = NonNull::new(self.head)?;
        // SAFETY: By the type invariant the list owns the first request.
        // INVARIANT: `head` is the request that was linked behind the first one.
        self.head = unsafe { Self::next(rq.as_ptr()) };
        if self.head.is_null() {
            self.tail = ptr::null_mut();
        }
        // SAFETY: `push_back` got the pointer from `ActiveRequest::into_raw`. The request is no
        // longer in the list, so that this is the only `from_raw` for it.
        Some(unsafe { ActiveRequest::from_raw(rq) })
    }

    /// Returns the list's requests as a list, and leaves this one empty.
    ///
    /// Context: any.
    #[inline]
    pub fn take(&mut self) -> Self {
        mem::replace(self, Self::new())
    }

    /// Returns the first request.
    ///
    /// Context: any.
    #[inline]
    pub fn front(&self) -> Option<&StartedRequest<T>> {
        self.iter().next()
    }

    /// Returns an iterator over the requests, from the first to the last.
    ///
    /// Context: any.
    pub fn iter(&self) -> impl Iterator<Item = &StartedRequest<T>> {
        let mut next: &*mut bindings::request = &self.head;
        core::iter::from_fn(move || {
            let current = next;
            if current.is_null() {
                return None;
            }
            // SAFETY: By the type invariant `current` is a request that the list owns, and the list
            // is borrowed: its links are not written.
            next = unsafe { &(**current).__bindgen_anon_1.rq_next };
            // SAFETY: `StartedRequest` is transparent over a non-null pointer, and `current` is not
            // null. The request stays started while the list owns its `ActiveRequest`, and the list
            // is borrowed.
            Some(unsafe { &*ptr::from_ref(current).cast::<StartedRequest<T>>() })
        })
    }

    /// # Safety
    ///
    /// The list must own the `ActiveRequest` of `rq`, be it linked already or about to be.
    #[inline]
    unsafe fn set_next(rq: *mut bindings::request, next: *mut bindings::request) {
        // SAFETY: By the safety requirements the request is started and the list's, so that nothing
        // else uses its link, the active member of the union.
        unsafe { (*rq).__bindgen_anon_1.rq_next = next };
    }

    /// # Safety
    ///
    /// `rq` must be in the list.
    #[inline]
    unsafe fn next(rq: *mut bindings::request) -> *mut bindings::request {
        // SAFETY: By the safety requirements the request is in the list, and `push_back` has
        // written its link, the active member of the union.
        unsafe { (*rq).__bindgen_anon_1.rq_next }
    }
}

impl<T: Publish> Drop for RequestList<T> {
    #[inline]
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}
