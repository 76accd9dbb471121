// SPDX-License-Identifier: GPL-2.0

//! blk-mq for drivers whose requests are served by a slow and unreliable peer.
//!
//! It has what such a driver needs: data of its own in each request, a queue function that may
//! sleep, timeouts, requeueing, and requests that a sender and a receiver use at the same time. A
//! request that the driver holds is in one of four states, each a type or the lack of one:
//!
//! - [`OwnedRequest`]: the driver holds the only reference; the request cannot be found by its tag.
//! - [`ActiveRequest`]: the request is published under a tag and a cookie, and cannot finish while
//!   the value lives.
//! - no value at all: the request is published and waits until a task claims it.
//! - [`Claim`]: the only right to decide the request's result.
//!
//! A published request finishes when its result is decided and no value for it is left, whichever
//! comes last. The reply may therefore overtake the end of the send, and no request can be finished
//! twice.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

mod attribute;
pub mod gen_disk;
mod limits;
mod operations;
mod phase;
mod publish;
pub mod request;
mod request_list;
pub mod tag_set;
mod tests;

pub use attribute::{
    Attribute,
    AttributeFile, //
};
pub use gen_disk::{
    DiskOperations,
    GenDisk,
    GenDiskBuilder,
    QueueGuard,
    RegisteredDisk, //
};
pub use limits::{
    is_valid_block_size,
    timeout_in_jiffies,
    MAX_TIMEOUT, //
};
pub use operations::{
    Operations,
    TimerReturn, //
};
pub use publish::{
    ActiveRequest,
    Claim,
    Publication,
    Publish, //
};
pub use request::{
    IdleRequest,
    Op,
    OwnedRequest,
    Rejected,
    Request,
    StartedRequest, //
};
pub use request_list::RequestList;
pub use tag_set::TagSet;
