// SPDX-License-Identifier: GPL-2.0

//! What is counted of a link.

use kernel::{
    sync::atomic::{Atomic, Relaxed},
    time::{jiffies, jiffies_since, Jiffies}, //
};

/// What went over a link. Only whoever sends writes what concerns sending, and only the receiver
/// what concerns receiving.
pub(crate) struct LinkStats {
    requests: Atomic<u64>,
    replies: Atomic<u64>,
    sent: Atomic<u64>,
    received: Atomic<u64>,
    /// When bytes moved last, in jiffies. Written by both: either is right.
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

    /// Adds without a locked operation: there is one writer at a time.
    fn add(counter: &Atomic<u64>, n: usize) {
        counter.store(counter.load(Relaxed).wrapping_add(n as u64), Relaxed);
    }

    /// So many requests are sent whole.
    pub(crate) fn add_requests(&self, n: usize) {
        Self::add(&self.requests, n);
    }

    /// One more reply has begun to arrive.
    pub(crate) fn add_reply(&self) {
        Self::add(&self.replies, 1);
    }

    /// Whether every request that was sent has its reply. Only a hint: either may be counted late.
    pub(crate) fn all_replied(&self) -> bool {
        self.requests.load(Relaxed) == self.replies.load(Relaxed)
    }

    /// So many bytes are sent.
    pub(crate) fn add_sent(&self, bytes: usize) {
        Self::add(&self.sent, bytes);
        self.moved.store(jiffies(), Relaxed);
    }

    /// So many bytes are received.
    pub(crate) fn add_received(&self, bytes: usize) {
        Self::add(&self.received, bytes);
        self.moved.store(jiffies(), Relaxed);
    }

    /// For how long no byte has moved, in jiffies.
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
