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
    /// When the request was last sent whole, or last found to be unread after that, in jiffies. It
    /// is written before the sender lets go of the request, so that a task that finds the request
    /// unused reads this value.
    sent: Atomic<Jiffies>,
    /// The bytes that the link had sent when it had sent the request whole. It is written as `sent`
    /// is.
    end: Atomic<u64>,
}

impl RequestData {
    pub(crate) fn new() -> Self {
        Self {
            link: Atomic::new(0),
            sent: Atomic::new(0),
            end: Atomic::new(0),
        }
    }

    pub(crate) fn set_generation(&self, generation: u64) {
        self.link.store(generation, Relaxed);
    }

    /// Returns the generation of the link that the request was last pushed to.
    pub(crate) fn generation(&self) -> u64 {
        self.link.load(Relaxed)
    }

    /// Records that the request was sent whole, and that the link has sent `end` bytes by now.
    pub(crate) fn set_sent(&self, end: u64) {
        self.end.store(end, Relaxed);
        self.set_unread();
    }

    /// Returns the argument of the last [`Self::set_sent`].
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Relaxed)
    }

    /// Records that the server has not read the whole request yet.
    pub(crate) fn set_unread(&self) {
        self.sent.store(jiffies(), Relaxed);
    }

    /// Returns how long the server may have had the whole request, in jiffies.
    pub(crate) fn sent_for(&self) -> Jiffies {
        jiffies_since(self.sent.load(Relaxed))
    }
}
