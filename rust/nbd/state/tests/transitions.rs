// SPDX-License-Identifier: GPL-2.0

//! Transitions between states, and what they return.

use super::*;

#[kunit_tests(nbd_transitions)]
mod states {
    use super::*;

    #[test]
    fn life_of_a_session() -> Result {
        let world = World::default();
        let mut state: FakeState<'_> = State::Idle(Params::default());
        assert!(state.update(|params| params.with_size(1 << 20)).is_ok());
        assert!(set_sock(&world, &mut state, 5, 1).is_ok());
        assert!(set_sock(&world, &mut state, 5, 1).is_ok());
        assert!(state.update(|params| params.with_timeout(9)).is_ok());
        let mut setup = state.claim_setup(1).map_err(|refusal| refusal.errno())?;
        let params = setup.params();
        assert_eq!((params.size(), params.timeout()), (1 << 20, 9));
        // The sockets become connections, in the order in which they were added.
        let ids = [setup.pop_socket(), setup.pop_socket()].map(|s| s.map_or(0, |s| s.id));
        assert_eq!(ids, [1, 2]);
        assert!(setup.pop_socket().is_none());
        drop(setup);
        assert_eq!((world.live(), world.owners.get()), (0, 0));
        assert!(state.started(params, world.session(4)).is_ok());
        assert!(state
            .running()
            .is_some_and(|(session, params)| session.id == 4 && params.size() == 1 << 20));
        let session = state.session().map_err(|refusal| refusal.errno())?;
        assert!(session.is_some_and(|session| session.id == 4));
        // Changes apply to the session.
        let told = state.update(|params| params.with_timeout(10));
        assert!(told.is_ok_and(|session| session.is_some_and(|session| session.id == 4)));
        assert!(state
            .running()
            .is_some_and(|(_, params)| params.timeout() == 10));
        let ended = state.stopped();
        assert!(ended.is_some_and(|session| session.id == 4));
        assert_eq!(world.sessions.get(), 0);
        assert!(state.stopped().is_none());
        assert_eq!(
            (state.params().size(), state.params().timeout()),
            (1 << 20, 10)
        );
        assert!(matches!(state.last_closed(), LastClose::Clean));
        assert!(!state.finish_clean(0));
        assert!(is_idle(&state));
        assert!(state.params() == Params::default());
        Ok(())
    }

    #[test]
    fn failed_start_drops_the_setup() -> Result {
        let world = World::default();
        let mut state = make(&world, Kind::Setup)?;
        let setup = state.claim_setup(1).map_err(|refusal| refusal.errno())?;
        drop(setup);
        assert!(!state.finish_clean(1));
        assert_eq!((world.shut.get(), world.live()), (2, 0));
        assert!(is_idle(&state) && state.params().timeout() == 7);
        assert!(set_sock(&world, &mut state, 5, 2).is_ok());
        drop(state);
        assert!(world.is_clean());
        Ok(())
    }

    #[test]
    fn failed_start_of_an_unused_device_leaves_nothing() {
        for openers in [0, 1, 2] {
            let mut state: FakeState<'_> = State::Starting(some_params(0));
            assert!(!state.finish_clean(openers));
            assert!(is_idle(&state));
            // The parameters are reset, as by the last close.
            assert_eq!(state.params().timeout(), if openers == 0 { 0 } else { 7 });
        }
    }

    #[test]
    fn failed_start_takes_a_new_device_along() -> Result {
        for (client, openers, is_new, leaves) in [
            (DESTROY, 0, true, true),
            // The device is removed when it is closed.
            (DESTROY, 1, true, false),
            (DESTROY, 0, false, false),
            (CLOSE, 0, true, false),
            (0, 0, true, false),
        ] {
            let world = World::default();
            let mut state: FakeState<'_> = State::Idle(Params::default());
            let setup = world.setup(some_params(client), 5)?;
            let Ok(claimed) = state.claim(setup, openers, is_new) else {
                return Err(EINVAL);
            };
            drop(claimed);
            assert!(matches!(state, State::Starting(restore) if restore.timeout() == 0));
            assert_eq!(state.finish_clean(openers), leaves);
            assert_eq!(state.is_removing(), leaves);
            assert_eq!(is_idle(&state), !leaves && openers == 0);
            if openers > 0 {
                assert!(matches!(state.last_closed(), LastClose::Clean));
                assert!(state.finish_clean(0) && state.is_removing());
            }
            drop(state);
            assert!(world.is_clean());
        }
        Ok(())
    }

    #[test]
    fn claim_leaves_the_devices_parameters_apart() -> Result {
        let world = World::default();
        let mut state = make(&world, Kind::Idle)?;
        let params = Params::default().with_timeout(30)?;
        let Ok(claimed) = state.claim(world.setup(params, 5)?, 1, false) else {
            return Err(EINVAL);
        };
        assert!(matches!(state, State::Starting(restore) if restore.timeout() == 7));
        assert_eq!(claimed.setup.params().timeout(), 30);
        assert!(claimed.stale.is_none());
        assert_eq!(world.shut.get(), 0);
        assert!(!state.finish_clean(1));
        drop(claimed);
        assert_eq!((world.shut.get(), world.live()), (2, 0));
        assert_eq!(state.params().timeout(), 7);
        Ok(())
    }

    #[test]
    fn claim_hands_out_a_stale_setup() -> Result {
        let world = World::default();
        let mut state = make(&world, Kind::Stale)?;
        let setup = world.setup(Params::default(), 50)?;
        let Ok(claimed) = state.claim(setup, 1, false) else {
            return Err(EINVAL);
        };
        assert!(matches!(state, State::Starting(restore) if restore.timeout() == 7));
        let stale = claimed.stale.ok_or(EINVAL)?;
        assert!(stale.owner.pid == OWNER && claimed.setup.owner.pid == 50);
        assert_eq!((world.shut.get(), world.live()), (0, 4));
        drop(stale);
        assert_eq!((world.shut.get(), world.live()), (2, 2));
        drop(claimed.setup);
        drop(state);
        assert!(world.is_clean());
        Ok(())
    }

    #[test]
    fn claim_hands_a_refused_setup_back() -> Result {
        for kind in [
            Kind::Setup,
            Kind::Starting,
            Kind::Running,
            Kind::Stopped,
            Kind::Doomed,
            Kind::Removing,
        ] {
            let world = World::default();
            let mut state = make(&world, kind)?;
            let before = view(&state);
            let setup = world.setup(some_params(0), 50)?;
            let Err((refusal, setup)) = state.claim(setup, 3, false) else {
                return Err(EINVAL);
            };
            assert_eq!(refusal.errno(), EBUSY);
            assert!(view(&state) == before);
            // The setup is handed back whole and open, so that the caller can try again.
            assert_eq!((setup.owner.pid, setup.socket_count()), (50, 2));
            assert_eq!(world.shut.get(), 0);
            // Or the caller leaves the sockets open.
            world.back.set(2);
            setup.release();
            assert_eq!(world.shut.get(), 0);
            drop(state);
            assert!(world.is_clean());
        }
        Ok(())
    }

    #[test]
    fn clear_keeps_the_parameters() -> Result {
        for kind in [Kind::Setup, Kind::Stale] {
            let world = World::default();
            let mut state = make(&world, kind)?;
            let cleared = state.clear().ok_or(EINVAL)?;
            assert!(is_idle(&state) && state.params().timeout() == 7);
            // Sockets are shut down outside of the lock of the configuration.
            assert_eq!((cleared.socket_count(), world.shut.get()), (2, 0));
            drop(cleared);
            assert_eq!((world.live(), world.owners.get()), (0, 0));
            assert!(world.is_clean());
        }
        Ok(())
    }

    #[test]
    fn last_close_forgets_the_parameters() -> Result {
        for kind in [Kind::Idle, Kind::Setup, Kind::Stale] {
            let world = World::default();
            let mut state = make(&world, kind)?;
            drop(state.last_closed());
            assert!(is_idle(&state));
            assert!(state.params() == Params::default());
            assert!(world.is_clean());
        }
        Ok(())
    }

    #[test]
    fn last_close_ends_a_session_that_wants_it() -> Result {
        let world = World::default();
        let mut state = make(&world, Kind::Closer)?;
        let LastClose::Disconnect(session) = state.last_closed() else {
            return Err(EINVAL);
        };
        assert_eq!((session.id, world.sessions.get()), (1, 2));
        drop(session);
        assert!(state.running().is_some());
        let mut state = make(&world, Kind::Running)?;
        assert!(matches!(state.last_closed(), LastClose::Nothing));
        assert!(state.running().is_some());
        Ok(())
    }

    #[test]
    fn retire_heeds_the_openers() {
        for openers in 0..4 {
            for limit in [0, 1, 2, u32::MAX] {
                let mut state: FakeState<'_> = State::Stopped(some_params(0));
                let taken = state.start_clean(openers, limit);
                assert_eq!(taken, openers <= limit);
                assert_eq!(matches!(state, State::Starting(_)), openers <= limit);
                // A device that will be removed is not taken from its openers.
                let mut state: FakeState<'_> = State::Stopped(some_params(DESTROY));
                assert_eq!(state.start_clean(openers, limit), openers == 0);
            }
        }
    }

    #[test]
    fn retired_waits_for_who_opened_meanwhile() {
        for openers in [0, 1, 2, u32::MAX] {
            let mut state: FakeState<'_> = State::Starting(some_params(0));
            assert!(!state.finish_clean(openers));
            assert!(is_idle(&state));
            // Openers from that time find the parameters, later ones do not.
            assert_eq!(state.params().timeout(), if openers == 0 { 0 } else { 7 });
            let mut state: FakeState<'_> = State::Starting(some_params(DESTROY));
            assert_eq!(state.finish_clean(openers), openers == 0);
            assert_eq!(state.is_removing(), openers == 0);
            assert_eq!((view(&state).kind == Kind::Doomed), openers > 0);
        }
    }

    #[test]
    fn setup_shuts_down_what_it_still_has() -> Result {
        let world = World::default();
        let mut setup = world.setup(Params::default(), 5)?;
        assert_eq!(setup.socket_count(), 2);
        let popped = setup.pop_socket().ok_or(EINVAL)?;
        assert_eq!((popped.id, setup.socket_count()), (1, 1));
        drop(setup);
        assert_eq!((world.shut.get(), world.live()), (1, 1));
        assert!(!popped.shut.get());
        drop(popped);
        assert_eq!((world.live(), world.owners.get()), (0, 0));
        Ok(())
    }

    #[test]
    fn every_refusal_has_its_errno() {
        let owned = || Refusal::Owned {
            pid: 1,
            comm: [b'x'; 16].into(),
        };
        for (refusal, errno) in [
            (owned(), EBUSY),
            (Refusal::Starting, EBUSY),
            (Refusal::Running, EBUSY),
            (Refusal::PreviousSession { others: 1 }, EBUSY),
            (Refusal::NoSocket, EINVAL),
            (Refusal::TooManySockets, ENOSPC),
            (Refusal::NoMemory, ENOMEM),
            (Refusal::BadParameter(EINVAL), EINVAL),
            (Refusal::BadParameter(ERANGE), ERANGE),
            (Refusal::Removing, EBUSY),
            (Refusal::NotConnected, EINVAL),
            (Refusal::NetlinkSession, EINVAL),
            (Refusal::OtherBackend, EINVAL),
            (Refusal::Dead, EBUSY),
            (Refusal::InFlight, EBUSY),
        ] {
            assert_eq!(refusal.errno(), errno);
            // The text says why, and then what to do.
            assert!(contains(&refusal, "; ") || contains(&refusal, ", "));
        }
        // A name that fills its array has no NUL.
        assert!(contains(&owned(), "process 1 (\"xxxxxxxxxxxxxxxx\")"));
    }
}
