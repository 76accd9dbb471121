// SPDX-License-Identifier: GPL-2.0

//! The way of requests from the block layer into a session.

use crate::{device::Disk, disk_ops::DiskOps, link::Link, protocol::REQUEST_LEN};
use kernel::{
    block::{
        mq::{Operations, OwnedRequest, Request, TimeoutAction},
        BlkStatus,
    },
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    time::{jiffies, jiffies_since, Jiffies}, //
};

/// What the driver keeps of each request.
pub(crate) struct RequestData {
    /// The generation of the link that the request was last pushed to. The publication of the
    /// request orders it: who claims a request sees the link that it was published for.
    link: Atomic<u64>,
    /// When the request was last sent whole, in jiffies. Who sees that nobody uses the request any
    /// more sees this.
    sent: Atomic<Jiffies>,
}

impl RequestData {
    pub(crate) fn set_link(&self, link: &Link) {
        self.link.store(link.generation(), Relaxed);
    }

    /// The generation of the link that the request was last pushed to.
    pub(crate) fn generation(&self) -> u64 {
        self.link.load(Relaxed)
    }

    /// The request is sent whole.
    pub(crate) fn set_sent(&self) {
        self.sent.store(jiffies(), Relaxed);
    }

    /// How long ago the request was sent whole, in jiffies, if it was.
    pub(crate) fn sent_for(&self) -> Jiffies {
        jiffies_since(self.sent.load(Relaxed))
    }

    pub(crate) fn is_on(&self, link: &Link) -> bool {
        self.generation() == link.generation()
    }
}

/// The driver for requests.
pub(crate) struct Queue;

#[vtable]
impl Operations for Queue {
    type RequestData = RequestData;
    type Header = [u8; REQUEST_LEN];
    type Disk = DiskOps;

    fn new_request_data() -> RequestData {
        RequestData {
            link: Atomic::new(0),
            sent: Atomic::new(0),
        }
    }

    fn queue_rq(disk: &Disk, hctx: u32, rq: OwnedRequest<Self>, last: bool) {
        match disk.data().session() {
            Some(session) => session.submit(hctx, rq, last),
            None => rq.end(BlkStatus::IOERR),
        }
    }

    fn commit_rqs(disk: &Disk, hctx: u32) {
        if let Some(session) = disk.data().session() {
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
