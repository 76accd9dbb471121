// SPDX-License-Identifier: GPL-2.0

//! blk-mq for drivers that talk to something slow and unreliable.
//!
//! It differs from the kernel crate's `block::mq` in what such a driver needs: data of its own in
//! each request, a queue function that may sleep, timeouts, requeueing, and requests that a sender
//! and a receiver use at the same time. A request that the driver holds is in one of four hands,
//! each a type:
//!
//! - [`OwnedRequest`]: the driver alone has it; it is not known to anyone by tag.
//! - [`ActiveRequest`](request::ActiveRequest): published under a tag and a cookie, and kept from
//!   finishing while the value lives.
//! - no value at all: published, waiting for whoever answers to it.
//! - [`Claim`]: the one right to decide what becomes of it.
//!
//! A published request finishes when its fate is decided and nobody uses it any more, whichever
//! comes last, so that the reply may overtake the end of the send and no request can be finished
//! twice.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

mod attribute;
mod gen_disk;
mod limits;
mod operations;
mod phase;
mod registration;
mod request;
mod request_list;

pub use attribute::{Attribute, AttributeFile};
pub use gen_disk::{DiskOperations, GenDisk};
pub use limits::{is_valid_block_size, timeout_in_jiffies, MAX_TIMEOUT};
pub use operations::{Operations, TimeoutAction};
pub use registration::{DiskBuilder, RegisteredDisk};
pub use request::{Claim, Op, OwnedRequest, Request, StartedRequest};
pub use request_list::RequestList;
