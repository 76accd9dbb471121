// SPDX-License-Identifier: GPL-2.0

//! The operations that the block layer calls.

use crate::{
    device::Device,
    ioctl,
    protocol::REQUEST_LEN,
    request::{Disk, DiskOps, Queue, RequestData},
    session::Session, //
};
use kernel::{
    block::{
        mq::{DiskOperations, Operations, OwnedRequest, Request, TimeoutAction},
        BlkStatus,
    },
    prelude::*,
    sync::{Arc, ArcBorrow}, //
};

#[vtable]
impl Operations for Queue {
    type RequestData = RequestData;
    type Header = [u8; REQUEST_LEN];
    type Disk = DiskOps;
    type QueueData = Session;

    fn new_request_data() -> RequestData {
        RequestData::new()
    }

    fn queue_rq(
        session: Option<ArcBorrow<'_, Session>>,
        hctx: u32,
        rq: OwnedRequest<Self>,
        last: bool,
    ) {
        match session {
            Some(session) => session.submit(hctx, rq, last),
            None => rq.end(BlkStatus::IOERR),
        }
    }

    fn commit_rqs(session: Option<ArcBorrow<'_, Session>>, hctx: u32) {
        if let Some(session) = session {
            session.flush(hctx);
        }
    }

    fn timeout(disk: &Disk, rq: &Request<Self>) -> TimeoutAction {
        match disk.data().session() {
            Some(session) => session.timed_out(rq),
            // The end of the session finishes the request.
            None => TimeoutAction::Rearm,
        }
    }
}

#[vtable]
impl DiskOperations for DiskOps {
    type Data = Device;
    type Queue = Queue;

    fn open(disk: &Disk) -> Result {
        disk.data().open(disk)
    }

    fn release(disk: &Disk) {
        disk.data().close(disk);
    }

    fn free(device: Arc<Device>) {
        device.free();
    }

    fn ioctl(disk: &Disk, cmd: u32, arg: usize) -> Result<i32> {
        ioctl::ioctl(disk, cmd, arg)
    }
}
