// SPDX-License-Identifier: GPL-2.0

//! The connections of a session, and which of them a request goes to.

use kernel::{
    prelude::*,
    sync::SetOnce, //
};

/// The connections of a session. Readers take no lock: a connection that was added stays until the
/// session is dropped.
pub(super) struct Places<T> {
    /// The first ones are set.
    slots: KVec<SetOnce<T>>,
}

impl<T> Places<T> {
    /// Creates a set with room for `capacity` connections. Context: may sleep.
    pub(super) fn new(capacity: usize) -> Result<Self> {
        let mut slots = KVec::with_capacity(capacity, GFP_KERNEL)?;
        for _ in 0..capacity {
            slots.push(SetOnce::new(), GFP_KERNEL)?;
        }
        Ok(Self { slots })
    }

    /// Adds a connection with the next number, which the caller must know, in one task at a time.
    /// Returns whether there was room.
    pub(super) fn add(&self, index: u32, connection: T) -> bool {
        let slot = self.slots.get(index as usize);
        slot.is_some_and(|slot| slot.populate(connection))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().map_while(SetOnce::as_ref)
    }

    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.as_ref()
    }

    /// The connections of a hardware queue, see [`of_queue`].
    pub(super) fn of_queue(&self, queue: u32, queues: u32) -> impl Iterator<Item = &T> {
        of_queue(&self.slots, queue, queues).map_while(SetOnce::as_ref)
    }

    /// Each connection once, see [`in_turn`].
    pub(super) fn in_turn(
        &self,
        turn: u32,
        is_open: &dyn Fn(&T) -> bool,
    ) -> impl Iterator<Item = &T> {
        let set = self.slots.get(..self.iter().count()).unwrap_or_default();
        in_turn(set, turn, &|slot| slot.as_ref().is_some_and(is_open)).filter_map(SetOnce::as_ref)
    }
}

/// Returns the connections of a hardware queue: every `queues`-th one, since there may be fewer
/// queues than connections.
fn of_queue<T>(all: &[T], queue: u32, queues: u32) -> impl Iterator<Item = &T> {
    let (first, step) = (queue as usize, queues.max(1) as usize);
    all.iter().skip(first).step_by(step)
}

/// Returns which of the `count` connections of its queue the request with this tag goes to if the
/// tag decides.
pub(crate) fn pick(tag: u32, count: usize) -> usize {
    (tag as usize).checked_rem(count).unwrap_or(0)
}

/// Returns each connection once, beginning with the open one whose turn it is, so that the open
/// ones get equal shares.
fn in_turn<'a, T>(
    all: &'a [T],
    turn: u32,
    is_open: &dyn Fn(&T) -> bool,
) -> impl Iterator<Item = &'a T> + use<'a, T> {
    let count = all.iter().filter(|one| is_open(one)).count();
    let nth = (turn as usize).checked_rem(count).unwrap_or(0);
    let mut open = all.iter().enumerate().filter(|(_, one)| is_open(one));
    let first = open.nth(nth).map_or(0, |(index, _)| index);
    let (before, after) = all.split_at(first);
    Iterator::chain(after.iter(), before)
}

#[kernel::macros::kunit_tests(nbd_connections)]
mod tests {
    use super::*;

    /// One connection more than a session can have.
    fn connections() -> [u16; 257] {
        core::array::from_fn(|i| i as u16)
    }

    #[test]
    fn queue_has_every_so_many() {
        let all = connections();
        assert!(of_queue(all.get(..7).unwrap_or(&[]), 1, 3).eq(&[1, 4]));
        assert!(of_queue(all.get(..7).unwrap_or(&[]), 0, 3).eq(&[0, 3, 6]));
        assert!(of_queue(all.get(..4).unwrap_or(&[]), 0, 1).eq(&[0, 1, 2, 3]));
        assert!(of_queue(all.get(..4).unwrap_or(&[]), 3, 4).eq(&[3]));
    }

    #[test]
    fn places_are_added_in_order() -> Result {
        let places = Places::new(3)?;
        assert_eq!(places.iter().count(), 0);
        assert_eq!(places.in_turn(5, &|_| true).count(), 0);
        assert!(places.add(0, 10u16));
        assert!(!places.add(0, 11));
        assert!(places.add(1, 11));
        assert_eq!(places.get(1), Some(&11));
        assert_eq!(places.get(2), None);
        assert!(places.of_queue(0, 1).eq(&[10, 11]));
        assert!(places.of_queue(1, 2).eq(&[11]));
        assert!(places.in_turn(1, &|_| true).eq(&[11, 10]));
        assert!(places.in_turn(0, &|one| *one == 11).eq(&[11, 10]));
        assert!(places.add(2, 12));
        assert!(!places.add(3, 13));
        assert!(places.of_queue(0, 2).eq(&[10, 12]));
        assert!(places.iter().eq(&[10, 11, 12]));
        Ok(())
    }

    #[test]
    fn every_connection_has_one_queue() {
        let all = connections();
        for count in [1, 2, 3, 4, 5, 8, 16, 255, 256, 257] {
            let all = all.get(..count).unwrap_or(&[]);
            for queues in [1, 2, 3, 4, 5, 8, 16, 64, 256, 300] {
                let mut seen = [0u32; 257];
                for queue in 0..queues {
                    for index in of_queue(all, queue, queues) {
                        assert_eq!(u32::from(*index) % queues, queue);
                        if let Some(seen) = seen.get_mut(usize::from(*index)) {
                            *seen += 1;
                        }
                    }
                }
                assert!(seen.iter().take(count).all(|n| *n == 1));
                assert!(seen.iter().skip(count).all(|n| *n == 0));
            }
        }
    }

    #[test]
    fn queue_without_connection() {
        let all = connections();
        assert_eq!(of_queue(all.get(..4).unwrap_or(&[]), 4, 8).count(), 0);
        assert_eq!(
            of_queue(all.get(..4).unwrap_or(&[]), u32::MAX, 8).count(),
            0
        );
        assert_eq!(of_queue::<u16>(&[], 0, 1).count(), 0);
        // A session never has 0 queues. The result is as with one queue.
        assert_eq!(of_queue(all.get(..4).unwrap_or(&[]), 0, 0).count(), 4);
        assert_eq!(
            of_queue(all.get(..4).unwrap_or(&[]), 0, u32::MAX).count(),
            1
        );
    }

    #[test]
    fn tags_are_spread() {
        for count in 1..=256usize {
            let mut seen = [0u32; 256];
            for tag in 0..512u32 {
                let pick = pick(tag, count);
                assert!(pick < count);
                if let Some(seen) = seen.get_mut(pick) {
                    *seen += 1;
                }
            }
            let fair = 512 / count as u32;
            assert!(seen
                .iter()
                .take(count)
                .all(|n| *n == fair || *n == fair + 1));
        }
        // Without connections the index is 0, and the lookup fails later.
        assert_eq!(pick(7, 0), 0);
        // The upper half of a tag is the number of the hardware queue.
        assert!(pick(u32::MAX, 3) < 3);
    }

    #[test]
    fn fallback_tries_each_once() {
        let all = connections();
        for count in [1, 2, 3, 4, 16, 256] {
            let all = all.get(..count).unwrap_or(&[]);
            for turn in [0, 1, 2, 3, 255, 256, 257, u32::MAX - 1, u32::MAX] {
                let mut seen = [0u32; 257];
                for (nth, index) in in_turn(all, turn, &|_| true).enumerate() {
                    assert_eq!(usize::from(*index), (turn as usize % count + nth) % count);
                    if let Some(seen) = seen.get_mut(usize::from(*index)) {
                        *seen += 1;
                    }
                }
                assert!(seen.iter().take(count).all(|n| *n == 1));
                assert!(seen.iter().skip(count).all(|n| *n == 0));
            }
        }
        assert_eq!(in_turn::<u16>(&[], 5, &|_| true).count(), 0);
        // Connections that are closed now may be open when they are tried.
        assert_eq!(in_turn(&[0u16, 1, 2], 5, &|_| false).count(), 3);
    }

    #[test]
    fn fallback_is_fair() {
        let all = [0u16, 1, 2, 3, 4];
        // Two of five connections are closed. The others get equal shares.
        let mut seen = [0u32; 5];
        for turn in 0..300 {
            let first = in_turn(&all, turn, &|i| !matches!(*i, 1 | 3)).next();
            if let Some(n) = first.and_then(|i| seen.get_mut(usize::from(*i))) {
                *n += 1;
            }
        }
        assert_eq!(seen, [100, 0, 100, 0, 100]);
    }
}
