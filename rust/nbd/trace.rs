// SPDX-License-Identifier: GPL-2.0

//! Trace events.
//!
//! C header: [`include/trace/events/nbd.h`](srctree/include/trace/events/nbd.h)

use core::mem::size_of;
use kernel::{
    bindings,
    block::mq::{Operations, StartedRequest},
    do_trace,
    ffi, //
};

/// `nbd_send_request`: the header of `rq` is about to be sent on device `index`. A BPF program may
/// change the header.
#[inline(always)]
pub(crate) fn nbd_send_request<T: Operations>(
    header: &mut [u8; size_of::<bindings::nbd_request>()],
    index: impl FnOnce() -> u32,
    rq: &StartedRequest<T>,
) {
    // SAFETY: The header has the size of the C type, which is any bytes of alignment 1. The request
    // is valid.
    unsafe {
        do_trace!(nbd_send_request(
            header.as_mut_ptr().cast(),
            index() as ffi::c_int,
            rq.as_raw()
        ))
    };
}

/// Declares functions for the events that have a request and its handle on the wire.
macro_rules! transport_events {
    ($($(#[$attr:meta])* fn $name:ident;)*) => {$(
        $(#[$attr])*
        #[inline(always)]
        pub(crate) fn $name<T: Operations>(
            rq: &StartedRequest<T>,
            handle: impl FnOnce() -> u64,
        ) {
            // SAFETY: The request is valid; the event stores its address and nothing else of it.
            unsafe { do_trace!($name(rq.as_raw(), handle())) };
        }
    )*};
}

transport_events! {
    /// `nbd_header_sent`: the socket has taken the whole header of `rq`.
    fn nbd_header_sent;
    /// `nbd_payload_sent`: the socket has taken the whole payload of `rq`, which may be empty.
    fn nbd_payload_sent;
    /// `nbd_header_received`: the header of the reply to `rq` has arrived.
    fn nbd_header_received;
    /// `nbd_payload_received`: the payload of the reply to `rq`, which may be empty, has arrived.
    fn nbd_payload_received;
}
