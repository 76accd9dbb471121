// SPDX-License-Identifier: GPL-2.0

//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// Delays that double from a first one up to a longest one.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        let first = first.min(longest);
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// Begins again with the first delay.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next delay. Many clients of a server that comes back must not come all at once: of the
    /// delay the upper half is left to chance, `chance` of the 256 values of a byte.
    pub fn delay(&mut self, chance: u8) -> Duration {
        let half = self.next / 2;
        let delay = half + half * u32::from(chance) / 255;
        self.next = (self.next * 2).min(self.longest);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        let delays: Vec<_> = (0..5).map(|_| backoff.delay(255).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 500, 500]);
        backoff.reset();
        assert_eq!(backoff.delay(255).as_millis(), 100);
    }

    #[test]
    fn chance_takes_at_most_half() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));
        assert_eq!(backoff.delay(0).as_millis(), 500);
        let middle = backoff.delay(128).as_millis();
        assert!((700..800).contains(&middle), "{middle}");
    }

    #[test]
    fn the_first_delay_is_no_longer_than_the_longest() {
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(1));
        assert_eq!(backoff.delay(255).as_secs(), 1);
    }
}
