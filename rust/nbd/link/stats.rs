// SPDX-License-Identifier: GPL-2.0

//! The statistics of a link.

use kernel::{
    sync::atomic::{
        Acquire,
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
    /// Only a task that holds the lock of the sending side writes it.
    queued: Atomic<u64>,
    requests: Atomic<u64>,
    replies: Atomic<u64>,
    sent: Atomic<u64>,
    received: Atomic<u64>,
    /// The bytes that the server was last found to have read. The sender and the timeout of
    /// requests write it, and either value is right.
    read: Atomic<u64>,
    /// When bytes were last moved, in jiffies. All that count bytes write it, and each value is
    /// right.
    moved: Atomic<Jiffies>,
}

impl LinkStats {
    pub(super) fn new() -> Self {
        Self {
            created: Instant::now(),
            queued: Atomic::new(0),
            requests: Atomic::new(0),
            replies: Atomic::new(0),
            sent: Atomic::new(0),
            received: Atomic::new(0),
            read: Atomic::new(0),
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

    /// Counts a request that was queued.
    pub(super) fn add_queued(&self) {
        Self::add(&self.queued, 1);
    }

    /// Counts `n` requests that were sent whole.
    pub(crate) fn add_requests(&self, n: usize) {
        Self::add(&self.requests, n);
    }

    /// Counts a reply whose header has arrived.
    pub(crate) fn add_reply(&self) {
        Self::add(&self.replies, 1);
    }

    /// Returns how many requests the link has that were not answered. This is a hint, since both
    /// counters may be late.
    pub(crate) fn unanswered(&self) -> u64 {
        let replies = self.replies.load(Relaxed);
        self.queued.load(Relaxed).saturating_sub(replies)
    }

    /// Counts bytes that were sent. The server does not have the last `unread` bytes then, by which
    /// the next [`Self::reads_on`] knows whether it has read since.
    pub(super) fn add_sent(&self, bytes: usize, unread: usize) {
        Self::add(&self.sent, bytes);
        let read = self.sent().saturating_sub(unread as u64);
        self.read.store(read, Relaxed);
        self.moved.store(jiffies(), Relaxed);
    }

    /// Counts bytes that were received.
    pub(crate) fn add_received(&self, bytes: usize) {
        Self::add(&self.received, bytes);
        self.moved.store(jiffies(), Relaxed);
    }

    /// Whether the server has read since the last call or send, if it has the first `read` bytes
    /// now. That counts as a move of bytes at this time, since nothing tells when it happened: with
    /// an earlier time a server that reads might be given up.
    pub(super) fn reads_on(&self, read: u64) -> bool {
        let reads = read > self.read.load(Relaxed);
        if reads {
            self.moved.store(jiffies(), Relaxed);
        }
        self.read.store(read, Relaxed);
        reads
    }

    /// Returns how long no byte has moved, in jiffies.
    pub(super) fn idle_for(&self) -> Jiffies {
        jiffies_since(self.moved.load(Relaxed))
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Returns the bytes that were sent. What the socket is asked afterwards covers all of them.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Acquire)
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
    fn reading_is_moving() {
        let stats = LinkStats::new();
        stats.add_sent(100, 60);
        stats.moved.store(ago(LIMIT), Relaxed);
        for read in [40, 20, 20] {
            assert!(!stats.reads_on(read));
            assert!(stats.idle_for() >= LIMIT);
        }
        assert!(stats.reads_on(21));
        assert!(stats.idle_for() < LIMIT);
        // The next look finds nothing new.
        assert!(!stats.reads_on(21));
    }

    #[test]
    fn what_was_read_before_a_send_is_no_news() {
        let stats = LinkStats::new();
        stats.add_sent(100, 100);
        stats.add_sent(100, 150);
        assert!(!stats.reads_on(50));
        // A protocol above the socket's may add bytes of its own.
        stats.add_sent(100, 1000);
        assert!(!stats.reads_on(0));
    }
}
