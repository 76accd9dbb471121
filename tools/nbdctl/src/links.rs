// SPDX-License-Identifier: GPL-2.0

//! Which connections of a device are missing, since when, and when to try again: the state of a
//! keeper.

use crate::backoff::Backoff;
use crate::record::Missing;
use std::time::{Duration, Instant};

/// A server that takes connections and loses them at once is not to be asked more and more often:
/// only after the connections have lasted so long do the delays begin anew.
const STABLE: Duration = Duration::from_secs(10);

/// A moment, for waiting and for people.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub instant: Instant,
    /// In seconds since 1970.
    pub unix: u64,
    /// A random number, for the delays.
    pub chance: u8,
}

#[derive(Debug)]
enum State {
    /// None is missing, since then.
    Whole(Instant),
    Broken {
        missing: Missing,
        next_attempt: Instant,
    },
}

/// The connections of a device.
#[derive(Debug)]
pub struct Links {
    total: u32,
    backoff: Backoff,
    state: State,
}

impl Links {
    /// All are there, and nothing is known of their past.
    pub fn new(total: u32, backoff: Backoff, now: Now) -> Self {
        let past = now.instant.checked_sub(STABLE).unwrap_or(now.instant);
        Self {
            total,
            backoff,
            state: State::Whole(past),
        }
    }

    pub fn total(&self) -> u32 {
        self.total
    }

    pub fn missing(&self) -> Option<&Missing> {
        match &self.state {
            State::Whole(_) => None,
            State::Broken { missing, .. } => Some(missing),
        }
    }

    /// When to try to connect. None if there is no need.
    pub fn next_attempt(&self) -> Option<Instant> {
        match &self.state {
            State::Whole(_) => None,
            State::Broken { next_attempt, .. } => Some(*next_attempt),
        }
    }

    /// The driver says how many there are and how many of them are missing, and since when if it
    /// knows.
    pub fn set(&mut self, total: u32, count: u32, since: Option<u64>, now: Now) {
        self.total = total;
        match &mut self.state {
            State::Whole(_) if count == 0 => {}
            State::Broken { .. } if count == 0 => self.state = State::Whole(now.instant),
            State::Broken { missing, .. } => missing.count = count,
            State::Whole(then) => {
                if now.instant.saturating_duration_since(*then) >= STABLE {
                    self.backoff.reset();
                }
                let delay = self.backoff.delay(now.chance);
                self.state = State::Broken {
                    missing: Missing {
                        count,
                        since: since.unwrap_or(now.unix),
                        problem: None,
                    },
                    next_attempt: now.instant + delay,
                };
            }
        }
    }

    /// The driver says that one more is missing.
    pub fn lose_one(&mut self, now: Now) {
        let count = self.missing().map_or(0, |m| m.count);
        self.set(self.total, (count + 1).min(self.total), None, now);
    }

    /// One has been connected again. The next one that is missing can follow at once.
    pub fn revive_one(&mut self, now: Now) {
        if let State::Broken {
            missing,
            next_attempt,
        } = &mut self.state
        {
            missing.problem = None;
            if missing.count > 1 {
                missing.count -= 1;
                *next_attempt = now.instant;
            } else {
                self.state = State::Whole(now.instant);
            }
        }
    }

    /// An attempt has failed. True if this is news, not what the attempt before has said.
    pub fn fail(&mut self, problem: &str, now: Now) -> bool {
        let State::Broken {
            missing,
            next_attempt,
        } = &mut self.state
        else {
            return false;
        };
        *next_attempt = now.instant + self.backoff.delay(now.chance);
        let news = missing.problem.as_deref() != Some(problem);
        if news {
            missing.problem = Some(problem.to_owned());
        }
        news
    }

    /// Continues the record of an earlier keeper: they have been missing since then.
    pub fn continue_since(&mut self, earlier: u64) {
        if let State::Broken { missing, .. } = &mut self.state {
            missing.since = missing.since.min(earlier);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);

    struct Clock(Now);

    impl Clock {
        fn new() -> Self {
            Self(Now {
                instant: Instant::now() + Duration::from_secs(100),
                unix: 1000,
                chance: 255,
            })
        }

        fn after(&mut self, seconds: u64) -> Now {
            self.0.instant += Duration::from_secs(seconds);
            self.0.unix += seconds;
            self.0
        }
    }

    fn links(total: u32, now: Now) -> Links {
        Links::new(total, Backoff::new(FIRST, Duration::from_secs(5)), now)
    }

    fn count(links: &Links) -> u32 {
        links.missing().map_or(0, |m| m.count)
    }

    #[test]
    fn the_first_attempt_is_soon() {
        let mut clock = Clock::new();
        let mut links = links(2, clock.0);
        assert_eq!(links.next_attempt(), None);
        let now = clock.after(1);
        links.lose_one(now);
        assert_eq!(links.next_attempt(), Some(now.instant + FIRST));
        assert_eq!(links.missing().unwrap().since, 1001);
    }

    #[test]
    fn no_more_than_all_are_missing() {
        let mut clock = Clock::new();
        let mut links = links(2, clock.0);
        for _ in 0..5 {
            links.lose_one(clock.after(1));
        }
        assert_eq!(count(&links), 2);
        assert_eq!(links.missing().unwrap().since, 1001);
    }

    #[test]
    fn failures_are_news_once_and_wait_longer() {
        let mut clock = Clock::new();
        let mut links = links(1, clock.0);
        links.lose_one(clock.after(1));
        let now = clock.after(1);
        assert!(links.fail("refused", now));
        assert_eq!(links.next_attempt(), Some(now.instant + FIRST * 2));
        assert!(!links.fail("refused", now));
        assert_eq!(links.next_attempt(), Some(now.instant + FIRST * 4));
        assert!(links.fail("no route", now));
        assert_eq!(
            links.missing().unwrap().problem.as_deref(),
            Some("no route")
        );
    }

    #[test]
    fn the_others_follow_at_once() {
        let mut clock = Clock::new();
        let mut links = links(3, clock.0);
        links.set(3, 3, None, clock.after(1));
        let now = clock.after(1);
        links.revive_one(now);
        assert_eq!(
            (count(&links), links.next_attempt()),
            (2, Some(now.instant))
        );
        links.revive_one(now);
        links.revive_one(now);
        assert_eq!((count(&links), links.next_attempt()), (0, None));
    }

    #[test]
    fn short_lives_keep_the_delays() {
        let mut clock = Clock::new();
        let mut links = links(1, clock.0);
        for round in 1..=3_u32 {
            let now = clock.after(1);
            links.lose_one(now);
            assert_eq!(
                links.next_attempt(),
                Some(now.instant + FIRST * (1 << (round - 1)))
            );
            links.revive_one(now);
        }
        let now = clock.after(STABLE.as_secs());
        links.lose_one(now);
        assert_eq!(links.next_attempt(), Some(now.instant + FIRST));
    }

    #[test]
    fn the_driver_knows_better() {
        let mut clock = Clock::new();
        let mut links = links(2, clock.0);
        links.lose_one(clock.after(1));
        links.set(4, 3, Some(5), clock.after(1));
        assert_eq!((links.total(), count(&links)), (4, 3));
        assert_eq!(links.missing().unwrap().since, 1001);
        links.set(4, 0, None, clock.after(1));
        assert_eq!(links.missing(), None);
        links.set(4, 1, Some(900), clock.after(1));
        assert_eq!(links.missing().unwrap().since, 900);
        links.continue_since(800);
        assert_eq!(links.missing().unwrap().since, 800);
    }

    #[test]
    fn a_failure_of_nothing_is_no_news() {
        let clock = Clock::new();
        assert!(!links(1, clock.0).fail("refused", clock.0));
    }
}
