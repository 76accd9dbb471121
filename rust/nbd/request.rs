// SPDX-License-Identifier: GPL-2.0

//! The types of the driver for the block layer, and what the driver keeps for each request.
//! [`block`](crate::block) implements the operations.

use kernel::{
    block::mq::GenDisk,
    sync::atomic::{Atomic, Relaxed},
    time::{jiffies, jiffies_since, Jiffies}, //
};

/// The type that implements the queue operations.
pub(crate) struct Queue;

/// The type that implements the disk operations.
pub(crate) struct DiskOps;

/// A disk of the driver.
pub(crate) type Disk = GenDisk<DiskOps>;

/// What the driver keeps for each request.
pub(crate) struct RequestData {
    /// The generation of the link that the request was last pushed to. It is written before the
    /// request is published, so that a task that claims the request reads the link of this
    /// publication.
    link: Atomic<u64>,
    /// When the request was last sent whole, in jiffies. It is written before the sender lets go of
    /// the request, so that a task that finds the request unused reads this value.
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

    /// Returns the generation of the link that the request was last pushed to.
    pub(crate) fn generation(&self) -> u64 {
        self.link.load(Relaxed)
    }

    /// Records that the request was sent whole.
    pub(crate) fn set_sent(&self) {
        self.sent.store(jiffies(), Relaxed);
    }

    /// Returns how long ago the request was last sent whole, in jiffies.
    pub(crate) fn sent_for(&self) -> Jiffies {
        jiffies_since(self.sent.load(Relaxed))
    }
}
