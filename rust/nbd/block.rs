// SPDX-License-Identifier: GPL-2.0

//! The operations that the block layer calls.

use crate::{
    device::Device,
    ioctl,
    protocol::REQUEST_LEN,
    request::{
        Disk,
        DiskOps,
        Queue,
        RequestData, //
    },
    session::Session, //
};
use kernel::{
    block::mq::{
        DiskOperations,
        IdleRequest,
        Operations,
        Publication,
        Publish,
        Rejected,
        Request,
        TimerReturn, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

impl Publish for Queue {
    type Shared = RequestData;
    type Header = [u8; REQUEST_LEN];
}

#[vtable]
impl Operations for Queue {
    type RequestData = Publication<Self>;
    type Disk = DiskOps;
    type QueueData = Session;

    fn new_request_data() -> impl PinInit<Publication<Self>> {
        Publication::new(RequestData::new(), [0; REQUEST_LEN])
    }

    fn queue_rq(
        session: Option<ArcBorrow<'_, Session>>,
        hctx: u32,
        rq: IdleRequest<Self>,
        is_last: bool,
    ) -> Result<(), Rejected<Self>> {
        let Some(session) = session else {
            return Err(rq.reject(EIO));
        };
        session.submit(hctx, rq.start(), is_last);
        Ok(())
    }

    fn commit_rqs(session: Option<ArcBorrow<'_, Session>>, hctx: u32) {
        if let Some(session) = session {
            session.flush(hctx);
        }
    }

    fn timeout(disk: &Disk, rq: &Request<Self>) -> TimerReturn {
        match disk.data().session() {
            Some(session) => session.timed_out(rq),
            // The end of the session finishes the request.
            None => TimerReturn::ResetTimer,
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
