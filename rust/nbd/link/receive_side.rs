// SPDX-License-Identifier: GPL-2.0

//! The state machine of the receiving side of a link: who reads from its socket.
//!
//! All transitions are methods that are called with `Link::receive_side` held, and do not sleep.
//! What a method returns is used or dropped after the lock is released.

use core::mem;

/// The state of the receiving side, with the receiver `R` of the link.
pub(super) enum ReceiveSide<R> {
    /// Nothing reads. Bytes that arrive are taken by the callback of the socket.
    Idle(R),
    /// A callback of the socket reads. If the work came meanwhile, it has to be queued again.
    Callback { wanted: bool },
    /// Bytes that arrive are left to the work.
    Deferred(R),
    /// The work reads.
    Work,
    /// Nothing can be received any more.
    Closed,
}

/// What the work does after the receiver was taken from a callback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum After {
    /// Nothing until bytes arrive.
    Wait,
    /// It has to be queued.
    Queue,
}

impl<R> ReceiveSide<R> {
    /// Creates a side whose receiver is left to the work, which reads first what arrived before.
    pub(super) fn new(receiver: R) -> Self {
        Self::Deferred(receiver)
    }

    /// Takes the receiver for a callback, if it is not for the work.
    pub(super) fn take_for_callback(&mut self) -> Option<R> {
        match mem::replace(self, Self::Callback { wanted: false }) {
            Self::Idle(receiver) => Some(receiver),
            // A callback on another CPU reads, and may have looked already. Its caller does not
            // wait, so that the work looks again.
            Self::Callback { .. } => {
                *self = Self::Callback { wanted: true };
                None
            }
            other => {
                *self = other;
                None
            }
        }
    }

    /// Takes the receiver back from a callback. With `defer` it is left to the work.
    pub(super) fn put_from_callback(&mut self, receiver: R, defer: bool) -> After {
        let wanted = matches!(self, Self::Callback { wanted: true });
        if wanted || defer {
            *self = Self::Deferred(receiver);
            return After::Queue;
        }
        *self = Self::Idle(receiver);
        After::Wait
    }

    /// Takes the receiver for the work. If a callback has it, the work is queued again.
    pub(super) fn take_for_work(&mut self) -> Option<R> {
        match mem::replace(self, Self::Work) {
            Self::Idle(receiver) | Self::Deferred(receiver) => Some(receiver),
            Self::Callback { .. } => {
                *self = Self::Callback { wanted: true };
                None
            }
            other => {
                *self = other;
                None
            }
        }
    }

    /// Takes the receiver back from the work. With `direct`, callbacks may take it. Bytes that have
    /// arrived meanwhile have queued the work.
    pub(super) fn put_from_work(&mut self, receiver: R, direct: bool) {
        *self = if direct {
            Self::Idle(receiver)
        } else {
            Self::Deferred(receiver)
        };
    }

    /// Records that nothing can be received any more, after [`Self::take_for_work`].
    pub(super) fn close(&mut self) {
        *self = Self::Closed;
    }
}

#[kernel::macros::kunit_tests(nbd_receive_side)]
mod tests {
    use super::*;

    /// The side with a receiver whose place must never be taken twice.
    type Side = ReceiveSide<u32>;

    #[test]
    fn work_reads_first() {
        let mut side = Side::new(1);
        assert_eq!(side.take_for_callback(), None);
        assert_eq!(side.take_for_work(), Some(1));
        assert_eq!(side.take_for_work(), None);
        assert_eq!(side.take_for_callback(), None);
        side.put_from_work(2, true);
        assert_eq!(side.take_for_callback(), Some(2));
        assert_eq!(side.put_from_callback(3, false), After::Wait);
        assert_eq!(side.take_for_callback(), Some(3));
    }

    #[test]
    fn one_reads_at_a_time() {
        let mut side = Side::new(1);
        assert_eq!(side.take_for_work(), Some(1));
        side.put_from_work(1, true);
        assert_eq!(side.take_for_callback(), Some(1));
        assert_eq!(side.take_for_callback(), None);
        assert_eq!(side.take_for_work(), None);
    }

    #[test]
    fn callback_leaves_to_the_work() {
        let mut side = Side::Idle(1);
        assert_eq!(side.take_for_callback(), Some(1));
        assert_eq!(side.put_from_callback(1, true), After::Queue);
        assert_eq!(side.take_for_callback(), None);
        assert_eq!(side.take_for_work(), Some(1));
    }

    #[test]
    fn nothing_that_came_meanwhile_is_forgotten() {
        for by_work in [false, true] {
            let mut side = Side::Idle(1);
            assert_eq!(side.take_for_callback(), Some(1));
            let taken = if by_work {
                side.take_for_work()
            } else {
                side.take_for_callback()
            };
            assert_eq!(taken, None);
            assert_eq!(side.put_from_callback(1, false), After::Queue);
            // The work that is queued now has it, and not the next callback.
            assert_eq!(side.take_for_callback(), None);
            assert_eq!(side.take_for_work(), Some(1));
            side.put_from_work(1, true);
            // That is over with it.
            assert_eq!(side.take_for_callback(), Some(1));
            assert_eq!(side.put_from_callback(1, false), After::Wait);
        }
    }

    #[test]
    fn work_keeps_what_callbacks_must_not_have() {
        let mut side = Side::new(1);
        assert_eq!(side.take_for_work(), Some(1));
        side.put_from_work(1, false);
        assert_eq!(side.take_for_callback(), None);
        assert_eq!(side.take_for_work(), Some(1));
    }

    #[test]
    fn closed_is_for_good() {
        let mut side = Side::new(1);
        assert_eq!(side.take_for_work(), Some(1));
        side.close();
        assert_eq!(side.take_for_callback(), None);
        assert_eq!(side.take_for_work(), None);
        assert!(matches!(side, Side::Closed));
    }
}
