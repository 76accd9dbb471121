// SPDX-License-Identifier: GPL-2.0

//! The statistics of a link.

use kernel::{
    sync::atomic::{Atomic, Relaxed},
    time::{jiffies, jiffies_since, Jiffies}, //
};

/// The statistics of a link. Only the task that has the sender writes those of sending, and only
/// the receiver writes those of receiving.
pub(crate) struct LinkStats {
    requests: Atomic<u64>,
    replies: Atomic<u64>,
    sent: Atomic<u64>,
    received: Atomic<u64>,
    /// When bytes were last moved, in jiffies. Both directions write it, and either value is right.
    moved: Atomic<Jiffies>,
}

impl LinkStats {
    pub(super) fn new() -> Self {
        Self {
            requests: Atomic::new(0),
            replies: Atomic::new(0),
            sent: Atomic::new(0),
            received: Atomic::new(0),
            moved: Atomic::new(jiffies()),
        }
    }

    /// Adds without an atomic operation, since each counter has one writer at a time.
    fn add(counter: &Atomic<u64>, n: usize) {
        counter.store(counter.load(Relaxed).wrapping_add(n as u64), Relaxed);
    }

    /// Counts `n` requests that were sent whole.
    pub(crate) fn add_requests(&self, n: usize) {
        Self::add(&self.requests, n);
    }

    /// Counts a reply whose header has arrived.
    pub(crate) fn add_reply(&self) {
        Self::add(&self.replies, 1);
    }

    /// Whether every request that was sent has its reply. This is a hint, since both counters may
    /// be late.
    pub(crate) fn all_replied(&self) -> bool {
        self.requests.load(Relaxed) == self.replies.load(Relaxed)
    }

    /// Counts bytes that were sent.
    pub(crate) fn add_sent(&self, bytes: usize) {
        Self::add(&self.sent, bytes);
        self.moved.store(jiffies(), Relaxed);
    }

    /// Counts bytes that were received.
    pub(crate) fn add_received(&self, bytes: usize) {
        Self::add(&self.received, bytes);
        self.moved.store(jiffies(), Relaxed);
    }

    /// Returns how long no byte has moved, in jiffies.
    pub(crate) fn idle_for(&self) -> Jiffies {
        jiffies_since(self.moved.load(Relaxed))
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}
