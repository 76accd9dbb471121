// SPDX-License-Identifier: GPL-2.0

//! The state machine of a request, packed into one word: whether its result is decided, and how
//! many values for it exist.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use crate::block::BlkStatus;

/// The result of a published request, which takes effect when no value for it is left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// No result is decided: the request waits for a claim.
    Open,
    /// The request returns to the block layer's queue, which hands it to the driver again.
    Requeue,
    /// The request is finished with this status.
    End(BlkStatus),
}

/// The state of a request, packed into one atomic word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Phase {
    /// The request is published.
    pub(super) live: bool,
    /// A [`Claim`](super::Claim) exists, or has decided the result.
    pub(super) claimed: bool,
    pub(super) fate: Fate,
    /// The number of values of [`ActiveRequest`](super::request::ActiveRequest) and of claims that
    /// have not decided the result.
    pub(super) users: u8,
    /// The number of the publication, by which a reply to an earlier one is told from a reply to
    /// this one.
    pub(super) cookie: u32,
}

impl Phase {
    /// The packed phase of a request that is not published.
    pub(super) const IDLE: u64 = 0;

    pub(super) fn pack(self) -> u64 {
        let (kind, status) = match self.fate {
            Fate::Open => (0u64, 0u8),
            Fate::Requeue => (1, 0),
            Fate::End(status) => (2, status.into_raw()),
        };
        u64::from(self.live)
            | u64::from(self.claimed) << 1
            | kind << 2
            | u64::from(self.users) << 8
            | u64::from(status) << 16
            | u64::from(self.cookie) << 32
    }

    pub(super) fn unpack(word: u64) -> Self {
        Self {
            live: word & 1 != 0,
            claimed: word & 2 != 0,
            fate: match (word >> 2) & 3 {
                0 => Fate::Open,
                1 => Fate::Requeue,
                _ => Fate::End(BlkStatus::from_raw((word >> 16) as u8)),
            },
            users: (word >> 8) as u8,
            cookie: (word >> 32) as u32,
        }
    }

    /// Returns the phase of a request that is published under `cookie` and has one user.
    pub(super) fn published(cookie: u32) -> Self {
        Self {
            live: true,
            claimed: false,
            fate: Fate::Open,
            users: 1,
            cookie,
        }
    }

    /// Returns the phase with a claim and one more user. [`None`] if the request is not published,
    /// is claimed already, has too many users, or has a cookie that is not the one given.
    #[inline]
    pub(super) fn claim(self, cookie: Option<u32>) -> Option<Self> {
        let named = cookie.is_none_or(|cookie| cookie == self.cookie);
        if !self.live || self.claimed || !named {
            return None;
        }
        Some(Self {
            claimed: true,
            users: self.users.checked_add(1)?,
            ..self
        })
    }

    /// Returns the phase without the claim and with one user less.
    #[inline]
    pub(super) fn unclaim(self) -> Self {
        Self {
            claimed: false,
            users: self.users.saturating_sub(1),
            ..self
        }
    }

    /// Returns the phase with one user less, which has decided on `fate` if that is [`Some`]. The
    /// request is no longer published if no user is left and the result is decided.
    #[inline]
    pub(super) fn put_user(mut self, fate: Option<Fate>) -> Self {
        self.users = self.users.saturating_sub(1);
        if let Some(fate) = fate {
            self.fate = fate;
        }
        if self.users == 0 && self.fate != Fate::Open {
            self.live = false;
        }
        self
    }
}

#[crate::macros::kunit_tests(rust_block_mq_phase)]
mod tests {
    use super::*;

    const COOKIES: [u32; 6] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xdead_beef, u32::MAX];

    /// Drops one user, and increments `ends` if the caller has to finish the request then.
    fn put(phase: &mut Phase, fate: Option<Fate>, ends: &mut u32) {
        let next = phase.put_user(fate);
        *ends += u32::from(phase.live && !next.live);
        *phase = Phase::unpack(next.pack());
    }

    #[test]
    fn every_phase_survives_packing() {
        for flags in 0..4 {
            for kind in 0..=257 {
                for users in [0, 1, 2, 127, 128, 255] {
                    for cookie in COOKIES {
                        let phase = Phase {
                            live: flags & 1 != 0,
                            claimed: flags & 2 != 0,
                            fate: match kind {
                                256 => Fate::Open,
                                257 => Fate::Requeue,
                                status => Fate::End(BlkStatus::from_raw(status as u8)),
                            },
                            users,
                            cookie,
                        };
                        assert!(Phase::unpack(phase.pack()) == phase);
                    }
                }
            }
        }
    }

    #[test]
    fn idle_is_in_nobodys_hands() {
        let phase = Phase::unpack(Phase::IDLE);
        assert!(!phase.live && !phase.claimed && phase.fate == Fate::Open && phase.users == 0);
        assert!(phase.claim(None).is_none());
        assert!(phase.claim(Some(0)).is_none());
    }

    #[test]
    fn published_is_alive_with_one_user() {
        for cookie in COOKIES {
            let phase = Phase::unpack(Phase::published(cookie).pack());
            assert!(phase.live && !phase.claimed && phase.fate == Fate::Open);
            assert_eq!((phase.users, phase.cookie), (1, cookie));
        }
    }

    #[test]
    fn claimed_once_and_by_its_cookie_only() {
        for cookie in COOKIES {
            let phase = Phase::published(cookie);
            for other in COOKIES {
                assert_eq!(phase.claim(Some(other)).is_some(), other == cookie);
            }
            for given in [None, Some(cookie)] {
                let Some(claimed) = phase.claim(given) else {
                    assert!(given.is_none() && given.is_some());
                    continue;
                };
                assert!(claimed.live && claimed.claimed && claimed.fate == Fate::Open);
                assert_eq!((claimed.users, claimed.cookie), (2, cookie));
                assert!(claimed.claim(None).is_none());
                assert!(claimed.claim(Some(cookie)).is_none());
            }
        }
    }

    #[test]
    fn users_do_not_overflow() {
        let mut phase = Phase::published(1);
        phase.users = u8::MAX;
        assert!(phase.claim(None).is_none());
        phase.users = 0;
        assert_eq!(phase.put_user(None).users, 0);
    }

    #[test]
    fn undecided_goes_on_waiting() {
        let mut ends = 0;
        let mut phase = Phase::published(7);
        put(&mut phase, None, &mut ends);
        assert!(phase.live && ends == 0);
        // A reply can claim the request.
        assert!(phase.claim(Some(7)).is_some());
    }

    #[test]
    fn released_can_be_claimed_again() {
        for sender_first in [false, true] {
            let mut ends = 0;
            let mut phase = Phase::published(7);
            if sender_first {
                put(&mut phase, None, &mut ends);
            }
            if let Some(claimed) = phase.claim(Some(7)) {
                phase = claimed.unclaim();
            }
            assert!(phase.live && !phase.claimed && phase.fate == Fate::Open);
            assert_eq!(phase.users, u8::from(!sender_first));
            if !sender_first {
                put(&mut phase, None, &mut ends);
            }
            assert!(phase.claim(Some(6)).is_none());
            if let Some(claimed) = phase.claim(Some(7)) {
                phase = claimed;
            }
            put(&mut phase, Some(Fate::Requeue), &mut ends);
            assert!(ends == 1 && !phase.live);
        }
    }

    #[test]
    fn finished_once_in_every_order() {
        let fates = [
            Fate::Requeue,
            Fate::End(BlkStatus::OK),
            Fate::End(BlkStatus::IOERR),
        ];
        for fate in fates {
            // The sender drops its user before the claim, between claim and decision, or after the
            // decision.
            for sender in 0..3 {
                let mut ends = 0;
                let mut phase = Phase::published(3);
                if sender == 0 {
                    put(&mut phase, None, &mut ends);
                }
                assert!(ends == 0 && phase.live);
                if let Some(claimed) = phase.claim(Some(3)) {
                    phase = claimed;
                }
                assert!(phase.claimed);
                if sender == 1 {
                    put(&mut phase, None, &mut ends);
                    assert!(ends == 0 && phase.live);
                }
                put(&mut phase, Some(fate), &mut ends);
                assert_eq!(ends, u32::from(sender < 2));
                // The request is either claimed or no longer published, so that nothing can decide
                // again.
                assert!(phase.claim(None).is_none());
                if sender == 2 {
                    put(&mut phase, None, &mut ends);
                }
                assert_eq!(ends, 1);
                assert!(!phase.live && phase.users == 0 && phase.fate == fate);
                assert!(phase.claim(None).is_none());
            }
        }
    }

    #[test]
    fn published_anew_knows_nothing_of_before() {
        let mut ends = 0;
        let mut phase = Phase::published(3);
        put(&mut phase, None, &mut ends);
        if let Some(claimed) = phase.claim(None) {
            phase = claimed;
        }
        put(&mut phase, Some(Fate::Requeue), &mut ends);
        assert_eq!(ends, 1);
        let phase = Phase::published(4);
        assert!(phase.claim(Some(3)).is_none());
        assert!(phase.claim(Some(4)).is_some());
    }
}
