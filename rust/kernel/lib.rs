// SPDX-License-Identifier: GPL-2.0

//! What the `kernel` crate lacks for this driver, each file at the path it would have upstream.

pub(crate) mod block;
pub(crate) mod bvec;
pub(crate) mod capability;
pub(crate) mod cred;
pub(crate) mod debugfs;
pub(crate) mod mm;
pub(crate) mod module;
pub(crate) mod module_param;
pub(crate) mod net;
pub(crate) mod ratelimit;
pub(crate) mod sync;
pub(crate) mod task;
pub(crate) mod time;
pub(crate) mod trace;
pub(crate) mod tracepoint;
pub(crate) mod workqueue;

/// Prototypes of the C helpers under `rust/helpers`, and what else the kernel's bindings lack.
#[allow(
    clippy::all,
    dead_code,
    improper_ctypes,
    missing_docs,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]
pub(crate) mod bindings {
    use kernel::{bindings::*, ffi};

    include!(env!("NBD_BINDINGS"));
}
