// SPDX-License-Identifier: GPL-2.0

//! This is a Rust implementation of the C null block driver.

mod configfs;

use kernel::{
    block::{
        self,
        mq::{
            DiskBuilder,
            DiskOperations,
            GenDisk,
            Operations,
            OwnedRequest,
            RegisteredDisk,
            Request,
            TimeoutAction, //
        },
        BlkStatus, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    time::msecs_to_jiffies, //
};

module! {
    type: NullBlkModule,
    name: "rnull_mod",
    authors: ["Andreas Hindborg"],
    description: "Rust implementation of the C null block driver",
    license: "GPL v2",
}

#[pin_data]
struct NullBlkModule {
    #[pin]
    configfs_subsystem: kernel::configfs::Subsystem<configfs::Config>,
}

impl kernel::InPlaceModule for NullBlkModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pr_info!("Rust null_blk loaded\n");

        try_pin_init!(Self {
            configfs_subsystem <- configfs::subsystem(),
        })
    }
}

struct NullBlkDevice;

impl NullBlkDevice {
    fn new(
        name: &CStr,
        block_size: u32,
        rotational: bool,
        capacity_mib: u64,
    ) -> Result<RegisteredDisk<Self>> {
        let disk = DiskBuilder {
            name: fmt!("{}", name.to_str()?),
            // The block layer finds a number.
            major: 0,
            first_minor: 0,
            minors: 0,
            hw_queues: 1,
            queue_depth: 256,
            // The block layer's defaults.
            max_bytes: 0,
            io_opt: 0,
        }
        .build(Arc::new((), GFP_KERNEL)?)?;

        // Without a size the disk has no requests to wait for.
        disk.update_limits(msecs_to_jiffies(1000), |limits| {
            limits.block_size(block_size).rotational(rotational);
        })?;
        disk.set_capacity_and_notify(capacity_mib << (20 - block::SECTOR_SHIFT), true);
        Ok(disk)
    }
}

#[vtable]
impl Operations for NullBlkDevice {
    type RequestData = ();
    type Header = [u8; 0];
    type Disk = Self;
    type QueueData = ();

    #[inline(always)]
    fn new_request_data() {}

    #[inline(always)]
    fn queue_rq(
        _data: Option<ArcBorrow<'_, ()>>,
        _hctx: u32,
        rq: OwnedRequest<Self>,
        _is_last: bool,
    ) {
        rq.end(BlkStatus::OK);
    }

    fn commit_rqs(_data: Option<ArcBorrow<'_, ()>>, _hctx: u32) {}

    fn timeout(_disk: &GenDisk<Self>, _rq: &Request<Self>) -> TimeoutAction {
        // A request is finished where it is queued.
        TimeoutAction::Rearm
    }
}

impl DiskOperations for NullBlkDevice {
    type Data = ();
    type Queue = Self;
    type OwnerModule = NullBlkModule;

    fn open(_disk: &GenDisk<Self>) -> Result {
        Ok(())
    }

    fn release(_disk: &GenDisk<Self>) {}

    fn free(_data: Arc<()>) {}

    fn ioctl(_disk: &GenDisk<Self>, _cmd: u32, _arg: usize) -> Result<i32> {
        Err(ENOTTY)
    }
}
