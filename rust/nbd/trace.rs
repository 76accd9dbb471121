// SPDX-License-Identifier: GPL-2.0

//! Trace events.
//!
//! C headers: [`include/trace/events/nbd.h`](srctree/include/trace/events/nbd.h),
//! [`include/trace/events/nbd_io.h`](srctree/include/trace/events/nbd_io.h)

use core::mem::size_of;
use kernel::{
    bindings,
    block::{
        mq::{
            Operations,
            StartedRequest, //
        },
        BlkStatus, //
    },
    ffi, //
};

/// What C defines.
mod events {
    use kernel::{
        bindings,
        ffi, //
    };

    kernel::declare_trace! {
        /// # Safety
        ///
        /// `header` must be valid for reads and writes, and `rq` must be a valid request.
        pub(super) unsafe fn nbd_send_request(
            header: *mut bindings::nbd_request,
            index: ffi::c_int,
            rq: *mut bindings::request,
        );
        /// # Safety
        ///
        /// `rq` must be a valid request.
        pub(super) unsafe fn nbd_header_sent(rq: *mut bindings::request, handle: u64);
        /// # Safety
        ///
        /// `rq` must be a valid request.
        pub(super) unsafe fn nbd_payload_sent(rq: *mut bindings::request, handle: u64);
        /// # Safety
        ///
        /// `rq` must be a valid request.
        pub(super) unsafe fn nbd_header_received(rq: *mut bindings::request, handle: u64);
        /// # Safety
        ///
        /// `rq` must be a valid request.
        pub(super) unsafe fn nbd_payload_received(rq: *mut bindings::request, handle: u64);
        /// # Safety
        ///
        /// `rq` must be a valid request.
        pub(super) unsafe fn nbd_reply(
            rq: *mut bindings::request,
            handle: u64,
            index: ffi::c_int,
            connection: ffi::c_uint,
            sent_ns: u64,
            latency_ns: u64,
            status: u8,
        );
        /// # Safety
        ///
        /// `rq` must be a valid request.
        pub(super) unsafe fn nbd_requeue(
            rq: *mut bindings::request,
            handle: u64,
            index: ffi::c_int,
            connection: ffi::c_uint,
            latency_ns: u64,
        );
    }
}

/// `nbd_send_request`: the header of `rq` is about to be sent on device `index`. A BPF program may
/// change the header.
#[inline(always)]
pub(crate) fn nbd_send_request<T: Operations>(
    header: &mut [u8; size_of::<bindings::nbd_request>()],
    index: impl FnOnce() -> u32,
    rq: &StartedRequest<T>,
) {
    if events::nbd_send_request_enabled() {
        let header = header.as_mut_ptr().cast();
        // SAFETY: The header has the size of the C type, which is any bytes of alignment 1. The
        // request is valid.
        unsafe { events::nbd_send_request(header, index() as ffi::c_int, rq.as_raw()) };
    }
}

/// Declares functions for the events that have a request and its handle on the wire, which is only
/// asked for when the event is on.
macro_rules! transport_events {
    ($($(#[$attr:meta])* fn $name:ident if $enabled:ident;)*) => {$(
        $(#[$attr])*
        #[inline(always)]
        pub(crate) fn $name<T: Operations>(
            rq: &StartedRequest<T>,
            handle: impl FnOnce() -> u64,
        ) {
            if events::$enabled() {
                // SAFETY: The request is valid; the event stores its address and nothing else of
                // it.
                unsafe { events::$name(rq.as_raw(), handle()) };
            }
        }
    )*};
}

transport_events! {
    /// `nbd_header_sent`: the socket has taken the whole header of `rq`.
    fn nbd_header_sent if nbd_header_sent_enabled;
    /// `nbd_payload_sent`: the socket has taken the whole payload of `rq`, which may be empty.
    fn nbd_payload_sent if nbd_payload_sent_enabled;
    /// `nbd_header_received`: the header of the reply to `rq` has arrived.
    fn nbd_header_received if nbd_header_received_enabled;
    /// `nbd_payload_received`: the payload of the reply to `rq`, which may be empty, has arrived.
    fn nbd_payload_received if nbd_payload_received_enabled;
}

/// What the events know of a request that was on a connection.
pub(crate) struct Attempt {
    pub(crate) handle: u64,
    /// The number of the device.
    pub(crate) index: u32,
    /// The number of the connection.
    pub(crate) connection: u32,
    /// How long it took until the request was sent whole, and until now, in nanoseconds. 0 if that
    /// is not known.
    pub(crate) sent_ns: u64,
    pub(crate) latency_ns: u64,
}

/// Whether an event is on that needs times.
#[inline(always)]
pub(crate) fn needs_times() -> bool {
    events::nbd_reply_enabled() || events::nbd_requeue_enabled()
}

/// `nbd_reply`: the reply to `rq` is complete. An attempt whose times are not known is left out.
#[inline(always)]
pub(crate) fn nbd_reply<T: Operations>(
    rq: &StartedRequest<T>,
    attempt: impl FnOnce() -> Attempt,
    status: BlkStatus,
) {
    if !events::nbd_reply_enabled() {
        return;
    }
    let attempt = attempt();
    if attempt.latency_ns > 0 {
        // SAFETY: The request is valid and started, so that the block layer leaves alone what the
        // event reads of it.
        unsafe {
            events::nbd_reply(
                rq.as_raw(),
                attempt.handle,
                attempt.index as ffi::c_int,
                attempt.connection,
                attempt.sent_ns,
                attempt.latency_ns,
                status.into_raw(),
            )
        };
    }
}

/// `nbd_requeue`: `rq` is taken back from a connection that does not answer it.
#[inline(always)]
pub(crate) fn nbd_requeue<T: Operations>(
    rq: &StartedRequest<T>,
    attempt: impl FnOnce() -> Attempt,
) {
    if !events::nbd_requeue_enabled() {
        return;
    }
    let attempt = attempt();
    // SAFETY: The request is valid; the event stores its address and nothing else of it.
    unsafe {
        events::nbd_requeue(
            rq.as_raw(),
            attempt.handle,
            attempt.index as ffi::c_int,
            attempt.connection,
            attempt.latency_ns,
        )
    };
}
