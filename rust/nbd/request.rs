// SPDX-License-Identifier: GPL-2.0

//! What a request of the driver is: the types that the block layer's are made of, and what the driver
//! keeps of each request. What the block layer calls is in [`block`](crate::block).

use kernel::{
    block::mq::GenDisk,
    sync::atomic::{Atomic, Relaxed},
    time::{jiffies, jiffies_since, Jiffies}, //
};

/// The driver's side of the queues of requests.
pub(crate) struct Queue;

/// The driver's side of the disks.
pub(crate) struct DiskOps;

/// The block layer's side of a device.
pub(crate) type Disk = GenDisk<DiskOps>;

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
    pub(crate) fn new() -> Self {
        Self {
            link: Atomic::new(0),
            sent: Atomic::new(0),
        }
    }

    pub(crate) fn set_generation(&self, generation: u64) {
        self.link.store(generation, Relaxed);
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
}
