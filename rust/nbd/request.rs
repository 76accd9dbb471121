// SPDX-License-Identifier: GPL-2.0

//! The types of the driver for the block layer, and what the driver keeps for each request.
//! [`block`](crate::block) implements the operations.

use kernel::{
    block::mq::GenDisk,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        jiffies,
        jiffies_since,
        Jiffies, //
    }, //
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
    /// The bytes that the link had sent when it had sent the request whole, or [`u64::MAX`] before
    /// that. It is written as `sent` is.
    end: Atomic<u64>,
    /// When the link got the request and when it had sent it, in nanoseconds of the link's
    /// age. 0 if no trace event needs that.
    queued_at: Atomic<u64>,
    sent_at: Atomic<u64>,
}

impl RequestData {
    pub(crate) fn new() -> Self {
        Self {
            link: Atomic::new(0),
            sent: Atomic::new(0),
            end: Atomic::new(0),
            queued_at: Atomic::new(0),
            sent_at: Atomic::new(0),
        }
    }

    /// Records that the request is pushed to the link of this generation, and was not sent.
    pub(crate) fn set_generation(&self, generation: u64) {
        self.link.store(generation, Relaxed);
        self.end.store(u64::MAX, Relaxed);
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

    /// Records at what age the link got the request, and that it was not sent.
    pub(crate) fn set_queued_at(&self, age: u64) {
        self.queued_at.store(age, Relaxed);
        self.sent_at.store(0, Relaxed);
    }

    /// Records at what age the link had sent the request.
    pub(crate) fn set_sent_at(&self, age: u64) {
        self.sent_at.store(age, Relaxed);
    }

    /// Returns how long it took until the request was sent, and until the link has this `age`, in
    /// nanoseconds. 0 if that is not known.
    pub(crate) fn took(&self, age: u64) -> (u64, u64) {
        let since = |at: u64| match self.queued_at.load(Relaxed) {
            0 => 0,
            queued => at.saturating_sub(queued),
        };
        (since(self.sent_at.load(Relaxed)), since(age))
    }

    /// Returns how many bytes the link had sent when it had sent the request whole. There are never
    /// so many before that.
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
