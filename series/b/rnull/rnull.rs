// SPDX-License-Identifier: GPL-2.0

//! This is a Rust implementation of the C null block driver.

mod configfs;

use configfs::IRQMode;
use kernel::{
    block::{
        self,
        mq::{
            gen_disk::{
                DiskOperations,
                GenDiskBuilder,
                RegisteredDisk, //
            },
            tag_set::Flags,
            IdleRequest,
            Operations,
            OwnedRequest,
            Rejected,
            TagSet, //
        },
        BlkStatus, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
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
        irq_mode: IRQMode,
    ) -> Result<RegisteredDisk<Self>> {
        let tagset = Arc::pin_init(TagSet::new(1, 256, 1, Flags::empty()), GFP_KERNEL)?;

        let data = Arc::new(DiskData { irq_mode }, GFP_KERNEL)?;

        GenDiskBuilder::new()
            .capacity_sectors(capacity_mib << (20 - block::SECTOR_SHIFT))
            .logical_block_size(block_size)?
            .physical_block_size(block_size)?
            .rotational(rotational)
            .build(fmt!("{}", name.to_str()?), tagset, data)
    }
}

struct DiskData {
    irq_mode: IRQMode,
}

#[vtable]
impl DiskOperations for NullBlkDevice {
    type Data = DiskData;
    type Queue = Self;
}

#[vtable]
impl Operations for NullBlkDevice {
    type RequestData = ();
    type Disk = Self;
    type QueueData = ();

    fn new_request_data() -> impl PinInit<()> {}

    #[inline(always)]
    fn queue_rq(
        _queue_data: Option<ArcBorrow<'_, ()>>,
        _hctx: u32,
        rq: IdleRequest<Self>,
        _is_last: bool,
    ) -> Result<(), Rejected<Self>> {
        let rq = rq.start();
        let irq_mode = rq.disk().data().irq_mode;
        match irq_mode {
            IRQMode::None => rq.end(BlkStatus::OK),
            IRQMode::Soft => rq.complete(),
        }
        Ok(())
    }

    fn complete(rq: OwnedRequest<Self>) {
        rq.end(BlkStatus::OK);
    }
}
