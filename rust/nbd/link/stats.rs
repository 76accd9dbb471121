// SPDX-License-Identifier: GPL-2.0

//! The statistics of a link.

use kernel::{
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        jiffies,
        jiffies_since,
        Instant,
        Jiffies,
        Monotonic, //
    }, //
};

/// The statistics of a link. Only the task that has the sender writes those of sending, and only
/// the receiver writes those of receiving.
pub(crate) struct LinkStats {
    created: Instant<Monotonic>,
    requests: Atomic<u64>,
    replies: Atomic<u64>,
    sent: Atomic<u64>,
    received: Atomic<u64>,
    /// The bytes that the server was last found to have read, by what the socket had, and when that
    /// was, in jiffies. The sender and the timeout of requests write them, and either value is
    /// right.
    read: Atomic<u64>,
    asked: Atomic<Jiffies>,
    /// When bytes were last moved, in jiffies. All that count bytes write it, and each value is
    /// right.
    moved: Atomic<Jiffies>,
}

impl LinkStats {
    pub(super) fn new() -> Self {
        Self {
            created: Instant::now(),
            requests: Atomic::new(0),
            replies: Atomic::new(0),
            sent: Atomic::new(0),
            received: Atomic::new(0),
            read: Atomic::new(0),
            asked: Atomic::new(jiffies()),
            moved: Atomic::new(jiffies()),
        }
    }

    /// When the link was created.
    pub(crate) fn created(&self) -> Instant<Monotonic> {
        self.created
    }

    /// Returns how old the link is, in nanoseconds, and never 0.
    pub(super) fn age(&self) -> u64 {
        self.created.elapsed().as_nanos().max(1) as u64
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

    /// Counts bytes that were sent. The socket has `outq` bytes for the server then, by which the
    /// next [`Self::reads_on`] knows whether the server has read since.
    pub(super) fn add_sent(&self, bytes: usize, outq: usize) {
        Self::add(&self.sent, bytes);
        self.note_read(outq);
        self.moved.store(jiffies(), Relaxed);
    }

    /// Counts bytes that were received.
    pub(crate) fn add_received(&self, bytes: usize) {
        Self::add(&self.received, bytes);
        self.moved.store(jiffies(), Relaxed);
    }

    /// Returns how many of the bytes that were sent the server has, if it does not have the last
    /// `unread` of them.
    pub(super) fn read(&self, unread: usize) -> u64 {
        self.sent().saturating_sub(unread as u64)
    }

    /// Notes what the server has read, if the socket has `outq` bytes for it now.
    fn note_read(&self, outq: usize) {
        self.read.store(self.read(outq), Relaxed);
        self.asked.store(jiffies(), Relaxed);
    }

    /// Whether the server has read since the last call or send, if the socket has `outq` bytes for
    /// it now. That counts as a move of bytes if the last time is less than `limit` jiffies ago:
    /// otherwise it may have happened at any time since.
    pub(super) fn reads_on(&self, outq: usize, limit: Jiffies) -> bool {
        let reads = self.read(outq) > self.read.load(Relaxed);
        if reads && jiffies_since(self.asked.load(Relaxed)) < limit {
            self.moved.store(jiffies(), Relaxed);
        }
        self.note_read(outq);
        reads
    }

    /// Returns how long no byte has moved, in jiffies.
    pub(super) fn idle_for(&self) -> Jiffies {
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

#[kernel::macros::kunit_tests(nbd_link_stats)]
mod tests {
    use super::*;

    const LIMIT: Jiffies = 1000;

    fn ago(jiffies_ago: Jiffies) -> Jiffies {
        jiffies().wrapping_sub(jiffies_ago)
    }

    #[test]
    fn what_is_unread_was_not_read() {
        let stats = LinkStats::new();
        assert_eq!(stats.read(0), 0);
        stats.add_sent(100, 100);
        assert_eq!(stats.read(100), 0);
        assert_eq!(stats.read(30), 70);
        // A protocol above may add bytes of its own.
        assert_eq!(stats.read(130), 0);
    }

    #[test]
    fn reading_is_moving() {
        let stats = LinkStats::new();
        stats.add_sent(100, 60);
        stats.moved.store(ago(LIMIT), Relaxed);
        for outq in [60, 80, 80] {
            assert!(!stats.reads_on(outq, LIMIT));
            assert!(stats.idle_for() >= LIMIT);
        }
        assert!(stats.reads_on(79, LIMIT));
        assert!(stats.idle_for() < LIMIT);
    }

    #[test]
    fn reading_since_long_ago_is_not_moving() {
        let stats = LinkStats::new();
        stats.add_sent(100, 100);
        stats.moved.store(ago(2 * LIMIT), Relaxed);
        stats.asked.store(ago(LIMIT), Relaxed);
        assert!(stats.reads_on(60, LIMIT));
        assert!(stats.idle_for() >= 2 * LIMIT);
        // The next look knows since when.
        assert!(stats.reads_on(59, LIMIT));
        assert!(stats.idle_for() < LIMIT);
    }
}
