// SPDX-License-Identifier: GPL-2.0

//! `NBD_SET_SOCK`: what the table of all events in all states does not look at.

use super::*;

#[kunit_tests(nbd_set_sock)]
mod set_sock_table {
    use super::*;

    #[test]
    fn idle_caller_becomes_owner() {
        for openers in [1, 2, 1000] {
            let world = World::default();
            let mut state: FakeState<'_> = State::Idle(some_params(0));
            assert!(set_sock(&world, &mut state, 5, openers).is_ok());
            let after = view(&state);
            assert!(after.kind == Kind::Setup);
            assert_eq!((after.pid, after.sockets), (5, 1));
            // The parameters stay.
            assert!(after.params == Some(some_params(0)));
            drop(state);
            assert!(world.is_clean());
        }
    }

    #[test]
    fn setup_same_owner_adds() {
        let world = World::default();
        let mut state: FakeState<'_> = State::Idle(some_params(0));
        for n in 1..=5 {
            assert!(set_sock(&world, &mut state, 5, 2).is_ok());
            let after = view(&state);
            assert_eq!((after.pid, after.sockets), (5, n));
            // There is one owner for all sockets.
            assert_eq!(world.owners.get(), 1);
        }
        drop(state);
        assert!(world.is_clean());
    }

    #[test]
    fn setup_other_owner_alive_is_refused() -> Result {
        let world = World::default();
        let mut state = make(&world, Kind::Setup)?;
        let before = view(&state);
        for openers in [1, 2] {
            let Err(refusal) = set_sock(&world, &mut state, OWNER + 1, openers) else {
                return Err(EINVAL);
            };
            assert_eq!(refusal.errno(), EBUSY);
            // The log names its pid and comm.
            assert!(contains(&refusal, "process 10 (\"tester\")"));
            assert!(view(&state) == before);
            assert_eq!((world.live(), world.owners.get()), (2, 1));
        }
        drop(state);
        assert!(world.is_clean());
        Ok(())
    }

    #[test]
    fn setup_of_exited_owner_is_dropped_whole() -> Result {
        let world = World::default();
        let mut state = make(&world, Kind::Stale)?;
        assert!(set_sock(&world, &mut state, OWNER + 1, 2).is_ok());
        let after = view(&state);
        assert!(after.kind == Kind::Setup);
        assert_eq!((after.pid, after.sockets), (OWNER + 1, 1));
        // The peers of both sockets see the end of the stream.
        assert_eq!((world.shut.get(), world.live()), (2, 1));
        assert_eq!(world.owners.get(), 1);
        drop(state);
        assert!(world.is_clean());
        Ok(())
    }

    #[test]
    fn stale_setup_is_handed_out_before_it_is_dropped() -> Result {
        let world = World::default();
        let mut state = make(&world, Kind::Stale)?;
        let added = state.add_socket(world.owner(OWNER + 1), 2, world.socket());
        let Ok(Some(stale)) = added else {
            return Err(EINVAL);
        };
        // Sockets are shut down outside of the lock of the configuration.
        assert_eq!((stale.socket_count(), world.shut.get()), (2, 0));
        drop(stale);
        assert_eq!((world.shut.get(), world.live()), (2, 1));
        drop(state);
        assert!(world.is_clean());
        Ok(())
    }

    #[test]
    fn stopped_with_others_is_refused() -> Result {
        let world = World::default();
        let mut state = make(&world, Kind::Stopped)?;
        let before = view(&state);
        let Err(refusal) = set_sock(&world, &mut state, 5, 4) else {
            return Err(EINVAL);
        };
        assert_eq!(refusal.errno(), EBUSY);
        // The text says that the session has ended and how many openers remain.
        assert!(contains(
            &refusal,
            "previous session ended, but 3 opener(s)"
        ));
        assert!(view(&state) == before);
        assert_eq!((world.live(), world.owners.get()), (0, 0));
        // It succeeds once the last of them has closed the device.
        assert!(set_sock(&world, &mut state, 5, 1).is_ok());
        drop(state);
        assert!(world.is_clean());
        Ok(())
    }

    #[test]
    fn refused_socket_is_the_callers() -> Result {
        for kind in [Kind::Setup, Kind::Starting, Kind::Running, Kind::Stopped] {
            let world = World::default();
            let mut state = make(&world, kind)?;
            let socket = world.socket();
            let id = socket.id;
            let Err((_, socket)) = state.add_socket(world.owner(99), 2, socket) else {
                return Err(EINVAL);
            };
            // The same socket is handed back open, and the owner is dropped.
            assert!(socket.id == id && !socket.shut.get());
            assert_eq!(world.owners.get(), i32::from(kind == Kind::Setup));
            world.refused(socket);
            drop(state);
            assert!(world.is_clean());
        }
        Ok(())
    }

    #[test]
    fn one_socket_too_many() {
        let world = World::default();
        let mut state: FakeState<'_> = State::Idle(some_params(0));
        for _ in 0..MAX_CONNECTIONS {
            assert!(set_sock(&world, &mut state, 5, 1).is_ok());
        }
        let before = view(&state);
        assert_eq!((before.sockets, MAX_CONNECTIONS), (256, 256));
        for _ in 0..3 {
            let socket = world.socket();
            let id = socket.id;
            match state.add_socket(world.owner(5), 1, socket) {
                Err((refusal, socket)) => {
                    assert_eq!(refusal.errno(), ENOSPC);
                    assert!(contains(&refusal, "256 sockets already"));
                    assert!(socket.id == id && !socket.shut.get());
                    world.refused(socket);
                }
                Ok(_) => assert_eq!(id, 0),
            }
            assert!(view(&state) == before);
            assert_eq!((world.live(), world.owners.get()), (256, 1));
        }
        drop(state);
        assert!(world.is_clean());
        assert_eq!(world.shut.get(), 256);
    }

    #[test]
    fn a_thousand_rounds_pile_nothing_up() -> Result {
        let world = World::default();
        let mut state: FakeState<'_> = State::Idle(Params::default());
        for _ in 0..1000 {
            assert!(set_sock(&world, &mut state, 5, 2).is_ok());
            assert!(state.clear().is_some());
            assert_eq!((world.live(), world.owners.get()), (0, 0));
        }
        assert_eq!(world.shut.get(), 1000);
        Ok(())
    }
}
