// SPDX-License-Identifier: GPL-2.0

//! The block layer's multi-queue interface, for drivers of disks.
//!
//! A driver implements [`Operations`] for its requests and [`DiskOperations`] for its disks. It
//! creates a [`TagSet`], which holds the requests, and with a [`GenDiskBuilder`] a disk, which is
//! there until the [`RegisteredDisk`] is dropped.
//!
//! The block layer hands a request to the driver as an [`IdleRequest`]. The driver rejects it, or
//! starts it and has an [`OwnedRequest`], the only reference, which it ends, requeues, or
//! [completes](OwnedRequest::complete) by softirq.
//!
//! A driver whose requests are served by a peer that is slow and not to be trusted has them in more
//! hands than one. It implements [`Publish`], too.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)
//!
//! # Examples
//!
//! ```
//! use kernel::{
//!     block::{
//!         mq::{
//!             tag_set::Flags,
//!             DiskOperations,
//!             GenDiskBuilder,
//!             IdleRequest,
//!             Operations,
//!             Rejected,
//!             RegisteredDisk,
//!             TagSet, //
//!         },
//!         BlkStatus, //
//!     },
//!     sync::{
//!         Arc,
//!         ArcBorrow, //
//!     }, //
//! };
//!
//! struct MyDisk;
//!
//! #[vtable]
//! impl DiskOperations for MyDisk {
//!     type Data = ();
//!     type Queue = Self;
//! }
//!
//! #[vtable]
//! impl Operations for MyDisk {
//!     type RequestData = ();
//!     type Disk = Self;
//!     type QueueData = ();
//!
//!     fn new_request_data() -> impl PinInit<()> {}
//!
//!     fn queue_rq(
//!         _data: Option<ArcBorrow<'_, ()>>,
//!         _hctx: u32,
//!         rq: IdleRequest<Self>,
//!         _is_last: bool,
//!     ) -> Result<(), Rejected<Self>> {
//!         rq.start().end(BlkStatus::OK);
//!         Ok(())
//!     }
//! }
//!
//! let tag_set = Arc::pin_init(TagSet::new(1, 256, 1, Flags::empty()), GFP_KERNEL)?;
//! let disk: RegisteredDisk<MyDisk> = GenDiskBuilder::new()
//!     .capacity_sectors(4096)
//!     .build(fmt!("myblk"), tag_set, Arc::new((), GFP_KERNEL)?)?;
//! disk.set_capacity(8192);
//! # Ok::<(), Error>(())
//! ```

mod attribute;
mod cursor;
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
pub use cursor::{
    HoldsRequest,
    RequestCursor, //
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
