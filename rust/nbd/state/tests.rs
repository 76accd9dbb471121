// SPDX-License-Identifier: GPL-2.0

//! Tests of the state machine with fake sockets, owners and sessions that count themselves.

use super::*;
use crate::protocol::ClientFlags;
use fakes::{
    FakeState,
    World, //
};

mod fakes;
mod set_sock;
mod transitions;

/// The states, as far as events distinguish them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Idle,
    /// The owner is alive.
    Setup,
    /// The owner has exited.
    Stale,
    Starting,
    Running,
    /// Running, and disconnected by the close of the last opener.
    Closer,
    Stopped,
    /// Stopped, and removed after that.
    Doomed,
    Removing,
}

const KINDS: [Kind; 9] = [
    Kind::Idle,
    Kind::Setup,
    Kind::Stale,
    Kind::Starting,
    Kind::Running,
    Kind::Closer,
    Kind::Stopped,
    Kind::Doomed,
    Kind::Removing,
];

const DESTROY: u64 = 1;
const CLOSE: u64 = 2;

/// Returns parameters that are not the defaults.
fn some_params(client: u64) -> Params {
    let params = Params::default().with_timeout(7).unwrap_or_default();
    params.with_client(ClientFlags::new(client))
}

/// A description of a state that can be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
struct View {
    kind: Kind,
    params: Option<Params>,
    pid: i32,
    sockets: usize,
    /// The sockets in their order.
    ids: u32,
    session: u32,
}

fn view(state: &FakeState<'_>) -> View {
    let mut view = View {
        kind: Kind::Starting,
        params: None,
        pid: 0,
        sockets: 0,
        ids: 0,
        session: 0,
    };
    match state {
        State::Idle(params) => {
            view.kind = Kind::Idle;
            view.params = Some(*params);
        }
        State::Setup(setup) => {
            view.kind = match setup.owner.is_alive() {
                true => Kind::Setup,
                false => Kind::Stale,
            };
            view.params = Some(setup.params);
            view.pid = setup.owner.pid;
            view.sockets = setup.socket_count();
            for socket in &setup.sockets {
                view.ids = view.ids.wrapping_mul(31).wrapping_add(socket.id);
            }
        }
        State::Starting(_) => view.kind = Kind::Starting,
        State::Running { params, session } => {
            view.kind = match params.client().disconnect_on_close() {
                true => Kind::Closer,
                false => Kind::Running,
            };
            view.params = Some(*params);
            view.session = session.id;
        }
        State::Stopped(params) => {
            view.kind = match params.client().destroy_on_disconnect() {
                true => Kind::Doomed,
                false => Kind::Stopped,
            };
            view.params = Some(*params);
        }
        State::Removing => view.kind = Kind::Removing,
    }
    view
}

/// The pid of the owner that [`make`] gives a setup.
const OWNER: i32 = 10;

/// Creates a state of this kind.
fn make<'a>(world: &'a World, kind: Kind) -> Result<FakeState<'a>> {
    Ok(match kind {
        Kind::Idle => State::Idle(some_params(0)),
        Kind::Setup => State::Setup(world.setup(some_params(0), OWNER)?),
        Kind::Stale => {
            world.exited.set(OWNER);
            State::Setup(world.setup(some_params(0), OWNER)?)
        }
        Kind::Starting => State::Starting(some_params(0)),
        Kind::Running | Kind::Closer => State::Running {
            params: some_params(if kind == Kind::Closer { CLOSE } else { 0 }),
            session: world.session(1),
        },
        Kind::Stopped => State::Stopped(some_params(0)),
        Kind::Doomed => State::Stopped(some_params(DESTROY)),
        Kind::Removing => State::Removing,
    })
}

/// Why something was refused, for comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    Owned,
    Starting,
    Running,
    Previous(u32),
    NoSocket,
    TooMany,
    Removing,
    Bad,
    Other,
}

impl From<Refusal> for Why {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Owned { .. } => Self::Owned,
            Refusal::Starting => Self::Starting,
            Refusal::Running => Self::Running,
            Refusal::PreviousSession { others } => Self::Previous(others),
            Refusal::NoSocket => Self::NoSocket,
            Refusal::TooManySockets => Self::TooMany,
            Refusal::Removing => Self::Removing,
            Refusal::BadParameter(_) => Self::Bad,
            _ => Self::Other,
        }
    }
}

/// The result of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Did {
    /// The event had its effect.
    Done,
    /// The event had no effect and did not fail.
    Nothing,
    Refused(Why),
}

/// The events that can happen in any state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    /// The owner of the setup, if there is one, adds a socket. The device has two openers.
    AddOwn,
    /// Another process does.
    AddOther,
    /// Another process does, which alone has the device open.
    AddAlone,
    /// The same as the device does it: what is left of an ended session goes first.
    SetSockAlone,
    /// The device is taken to be cleaned by its only opener, with no opener, or with more openers
    /// than may be.
    RetireAlone,
    RetireUnused,
    RetireHeld,
    /// A netlink message claims the device.
    Claim,
    /// `NBD_DO_IT` claims the setup.
    Start,
    Update,
    BadUpdate,
    Session,
    Stopped,
    Clear,
    LastClosed,
    /// The owner of the setup exits.
    OwnerExits,
}

const EVENTS: [Event; 16] = [
    Event::AddOwn,
    Event::AddOther,
    Event::AddAlone,
    Event::SetSockAlone,
    Event::RetireAlone,
    Event::RetireUnused,
    Event::RetireHeld,
    Event::Claim,
    Event::Start,
    Event::Update,
    Event::BadUpdate,
    Event::Session,
    Event::Stopped,
    Event::Clear,
    Event::LastClosed,
    Event::OwnerExits,
];

/// Returns the expected result of an event in a state, and the state after it.
fn wanted(event: Event, kind: Kind) -> (Did, Kind) {
    use Did::{
        Done,
        Nothing,
        Refused, //
    };
    use Event::*;
    use Kind::{
        Closer,
        Doomed,
        Idle,
        Removing,
        Running,
        Setup,
        Stale,
        Starting, //
    };
    match (event, kind) {
        (AddOwn | AddOther | AddAlone | SetSockAlone, Idle) => (Done, Setup),
        (AddOwn, Setup) => (Done, Setup),
        (AddOwn, Stale) => (Done, Stale),
        (AddOther | AddAlone | SetSockAlone, Stale) => (Done, Setup),
        (AddOther | AddAlone | SetSockAlone | Claim, Setup) => (Refused(Why::Owned), kind),
        (AddOwn | AddOther | AddAlone | SetSockAlone | Claim, Starting) => {
            (Refused(Why::Starting), kind)
        }
        (AddOwn | AddOther | AddAlone | SetSockAlone | Claim, Running | Closer) => {
            (Refused(Why::Running), kind)
        }
        (AddOwn | AddOther, Kind::Stopped) => (Refused(Why::Previous(1)), kind),
        (AddAlone, Kind::Stopped) => (Refused(Why::Previous(0)), kind),
        (SetSockAlone, Kind::Stopped) => (Done, Setup),
        (AddOwn | AddOther | AddAlone | SetSockAlone, Doomed) => (Refused(Why::Removing), kind),
        (AddOwn | AddOther | AddAlone | SetSockAlone | Claim, Removing) => {
            (Refused(Why::Removing), kind)
        }

        (Claim, Idle | Stale) => (Done, Starting),
        (Claim, Kind::Stopped | Doomed) => (Refused(Why::Previous(2)), kind),

        (RetireAlone | RetireUnused, Kind::Stopped) => (Done, Starting),
        (RetireUnused, Doomed) => (Done, Starting),
        (RetireAlone | RetireUnused | RetireHeld, _) => (Nothing, kind),

        (Start, Setup | Stale) => (Done, Starting),
        (Start, Idle) => (Refused(Why::NoSocket), kind),
        (Start, Starting) => (Refused(Why::Starting), kind),
        (Start, Running | Closer) => (Refused(Why::Running), kind),
        (Start, Kind::Stopped | Doomed) => (Refused(Why::Previous(1)), kind),
        (Start, Removing) => (Refused(Why::Removing), kind),

        (Update | BadUpdate | Session, Starting) => (Refused(Why::Starting), kind),
        (Update | BadUpdate, Removing) => (Refused(Why::Removing), kind),
        (Update, _) => (Done, kind),
        (BadUpdate, _) => (Refused(Why::Bad), kind),

        (Session, Running | Closer) => (Done, kind),
        (Session, _) => (Nothing, kind),

        (Stopped, Running | Closer) => (Done, Kind::Stopped),
        (Stopped, _) => (Nothing, kind),

        (Clear, Setup | Stale) => (Done, Idle),
        (Clear, _) => (Nothing, kind),

        (LastClosed, Idle | Setup | Stale) => (Done, Idle),
        (LastClosed, Closer) => (Done, Closer),
        (LastClosed, Kind::Stopped | Doomed) => (Done, Starting),
        (LastClosed, Starting | Running | Removing) => (Nothing, kind),

        (OwnerExits, Setup | Stale) => (Done, Stale),
        (OwnerExits, _) => (Nothing, kind),
    }
}

/// The events that leave [`State::Starting`].
#[derive(Clone, Copy, Debug)]
enum Finish {
    Started,
    StartedCloser,
    /// The device is clean, without and with an opener.
    Cleaned,
    CleanedUsed,
    /// The device is clean and to be removed, without and with an opener.
    Removed,
    RemovedUsed,
}

const FINISHES: [(Finish, Kind); 6] = [
    (Finish::Started, Kind::Running),
    (Finish::StartedCloser, Kind::Closer),
    (Finish::Cleaned, Kind::Idle),
    (Finish::CleanedUsed, Kind::Idle),
    (Finish::Removed, Kind::Removing),
    (Finish::RemovedUsed, Kind::Doomed),
];

fn finish<'a>(world: &'a World, state: &mut FakeState<'a>, finish: Finish) -> Did {
    let (client, openers) = match finish {
        Finish::Started | Finish::StartedCloser => {
            let (client, id) = match finish {
                Finish::Started => (0, 2),
                _ => (CLOSE, 3),
            };
            return match state.started(some_params(client), world.session(id)) {
                Ok(()) => Did::Done,
                Err(_) => Did::Nothing,
            };
        }
        Finish::Cleaned => (0, 0),
        Finish::CleanedUsed => (0, 1),
        Finish::Removed => (DESTROY, 0),
        Finish::RemovedUsed => (DESTROY, 1),
    };
    let State::Starting(restore) = state else {
        let kind = view(state).kind;
        assert!(!state.finish_clean(openers) && view(state).kind == kind);
        return Did::Nothing;
    };
    *restore = some_params(client);
    match state.finish_clean(openers) == state.is_removing() {
        true => Did::Done,
        false => Did::Nothing,
    }
}

/// Applies `event` and drops what it returns. Returns `None` without memory.
fn apply<'a>(world: &'a World, state: &mut FakeState<'a>, event: Event) -> Option<Did> {
    let owner = match state {
        State::Setup(setup) => setup.owner.pid,
        _ => world.exited.get() + 1,
    };
    let socket = |state: &mut FakeState<'a>, pid, openers| {
        let added = state.add_socket(world.owner(pid), openers, world.socket());
        match added {
            Ok(_) => Some(Did::Done),
            Err((refusal, socket)) => {
                world.refused(socket);
                match refusal {
                    Refusal::NoMemory => None,
                    refusal => Some(Did::Refused(refusal.into())),
                }
            }
        }
    };
    let some = |is_some| Some(if is_some { Did::Done } else { Did::Nothing });
    match event {
        Event::AddOwn => socket(state, owner, 2),
        Event::AddOther => socket(state, owner + 1, 2),
        Event::AddAlone => socket(state, owner + 1, 1),
        Event::SetSockAlone => match set_sock(world, state, owner + 1, 1) {
            Ok(()) => Some(Did::Done),
            Err(Refusal::NoMemory) => None,
            Err(refusal) => Some(Did::Refused(refusal.into())),
        },
        Event::RetireAlone => some(state.start_clean(1, 1)),
        Event::RetireUnused => some(state.start_clean(0, 1)),
        Event::RetireHeld => some(state.start_clean(2, 1)),
        Event::Claim => {
            let setup = world.setup(some_params(0), owner + 1).ok()?;
            match state.claim(setup, 2, false) {
                Ok(_) => Some(Did::Done),
                Err((refusal, _setup)) => Some(Did::Refused(refusal.into())),
            }
        }
        Event::Start => match state.claim_setup(2) {
            Ok(_) => Some(Did::Done),
            Err(refusal) => Some(Did::Refused(refusal.into())),
        },
        Event::Update => match state.update(|params| params.with_size(params.size() ^ 512)) {
            Ok(session) => (session.is_some() == state.running().is_some()).then_some(Did::Done),
            Err(refusal) => Some(Did::Refused(refusal.into())),
        },
        Event::BadUpdate => match state.update(|params| params.with_size(u64::MAX)) {
            Ok(_) => Some(Did::Done),
            Err(refusal) => Some(Did::Refused(refusal.into())),
        },
        Event::Session => match state.session() {
            Ok(session) => some(session.is_some()),
            Err(refusal) => Some(Did::Refused(refusal.into())),
        },
        Event::Stopped => some(state.stopped().is_some()),
        Event::Clear => some(state.clear().is_some()),
        Event::LastClosed => match state.last_closed() {
            // An idle device resets its parameters.
            LastClose::Nothing => some(is_idle(state)),
            LastClose::Drop(_) => some(is_idle(state)),
            LastClose::Clean => some(matches!(state, State::Starting(_))),
            LastClose::Disconnect(_) => some(state.running().is_some()),
        },
        Event::OwnerExits => {
            let State::Setup(setup) = state else {
                return some(false);
            };
            world.exited.set(setup.owner.pid);
            some(true)
        }
    }
}

/// Applies `event`. Returns whether the result is [`wanted`].
fn step<'a>(world: &'a World, state: &mut FakeState<'a>, event: Event) -> bool {
    let before = view(state);
    let (did, next) = wanted(event, before.kind);
    let result = apply(world, state, event);
    let after = view(state);
    let ok = result == Some(did)
        && after.kind == next
        // An event that was refused or had no effect changes nothing.
        && (did == Did::Done || before == after)
        // The sockets of the state exist, and no others.
        && world.live() == after.sockets as u32
        && world.owners.get() == i32::from(after.sockets > 0)
        && world.sessions.get() == i32::from(after.session > 0)
        && world.shut_again.get() == 0
        && (world.made.get())
            .wrapping_sub(world.back.get())
            .wrapping_sub(world.shut.get())
            == after.sockets as u32;
    if !ok {
        pr_err!(
            "{:?} in {:?}: {:?}, then {:?}; not {:?}, then {:?}\n",
            event,
            before.kind,
            result,
            after.kind,
            did,
            next
        );
    }
    ok
}

fn is_idle(state: &FakeState<'_>) -> bool {
    view(state).kind == Kind::Idle
}

struct Shown<'a, 'b>(&'b FakeState<'a>);

impl fmt::Display for Shown<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f)
    }
}

fn contains(text: &impl fmt::Display, wanted: &str) -> bool {
    kernel::str::CString::try_from_fmt(fmt!("{}", text)).is_ok_and(|text| {
        let text = text.to_bytes();
        text.windows(wanted.len())
            .any(|part| part == wanted.as_bytes())
    })
}

/// Sets a socket as the device does: an ended session is cleaned up first if possible.
fn set_sock<'a>(
    world: &'a World,
    state: &mut FakeState<'a>,
    pid: i32,
    openers: u32,
) -> Result<(), Refusal> {
    if state.start_clean(openers, 1) {
        state.finish_clean(openers);
    }
    match state.add_socket(world.owner(pid), openers, world.socket()) {
        Ok(_) => Ok(()),
        Err((refusal, socket)) => {
            world.refused(socket);
            Err(refusal)
        }
    }
}

/// Tests every event in every state.
#[kunit_tests(nbd_state)]
mod table {
    use super::*;

    #[test]
    fn makes_each_kind() -> Result {
        for kind in KINDS {
            let world = World::default();
            let state = make(&world, kind)?;
            assert!(view(&state).kind == kind);
            drop(state);
            assert!(world.is_clean());
        }
        Ok(())
    }

    #[test]
    fn every_event_in_every_state() -> Result {
        let mut wrong = 0;
        for kind in KINDS {
            for event in EVENTS {
                let world = World::default();
                let mut state = make(&world, kind)?;
                wrong += u32::from(!step(&world, &mut state, event));
                drop(state);
                wrong += u32::from(!world.is_clean());
            }
        }
        assert_eq!(wrong, 0);
        Ok(())
    }

    #[test]
    fn every_two_events_in_every_state() -> Result {
        let mut wrong = 0;
        for kind in KINDS {
            for first in EVENTS {
                for second in EVENTS {
                    let world = World::default();
                    let mut state = make(&world, kind)?;
                    wrong += u32::from(!step(&world, &mut state, first));
                    wrong += u32::from(!step(&world, &mut state, second));
                    drop(state);
                    wrong += u32::from(!world.is_clean());
                    // A few examples are enough.
                    assert!(wrong < 10);
                }
            }
        }
        assert_eq!(wrong, 0);
        Ok(())
    }

    #[test]
    fn every_way_out_of_starting() {
        for (way, kind) in FINISHES {
            let world = World::default();
            let mut state: FakeState<'_> = State::Starting(some_params(0));
            assert_eq!(finish(&world, &mut state, way), Did::Done);
            assert!(view(&state).kind == kind);
            drop(state);
            assert!(world.is_clean());
        }
    }

    /// These events have an effect in one state only.
    #[test]
    fn out_of_turn_nothing_happens() -> Result {
        for kind in KINDS {
            for (way, next) in FINISHES {
                let world = World::default();
                let mut state = make(&world, kind)?;
                let did = finish(&world, &mut state, way);
                let in_turn = kind == Kind::Starting;
                assert_eq!(did, if in_turn { Did::Done } else { Did::Nothing });
                assert!(view(&state).kind == if in_turn { next } else { kind });
                drop(state);
                assert!(world.is_clean());
            }
        }
        Ok(())
    }

    #[test]
    fn random_walk() {
        let mut seed = 0x1dea_5eedu32;
        let mut random = |n: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) as usize % n
        };
        let mut seen = [0u32; KINDS.len()];
        for _ in 0..20 {
            let world = World::default();
            let mut state: FakeState<'_> = State::Idle(Params::default());
            for _ in 0..500 {
                let kind = view(&state).kind;
                let index = KINDS.iter().position(|other| *other == kind);
                if let Some(seen) = index.and_then(|index| seen.get_mut(index)) {
                    *seen += 1;
                }
                // Otherwise the walk would stay in these two states.
                if kind == Kind::Removing {
                    state = State::Idle(Params::default());
                }
                if kind == Kind::Starting && random(2) == 0 {
                    if let Some((way, next)) = FINISHES.get(random(FINISHES.len())) {
                        assert_eq!(finish(&world, &mut state, *way), Did::Done);
                        assert!(view(&state).kind == *next);
                    }
                } else {
                    let event = EVENTS.get(random(EVENTS.len()));
                    assert!(event.is_some_and(|event| step(&world, &mut state, *event)));
                }
            }
            drop(state);
            assert!(world.is_clean());
        }
        // Every state was visited.
        assert!(seen.iter().all(|n| *n > 0));
    }

    #[test]
    fn asks_and_answers() -> Result {
        for kind in KINDS {
            let world = World::default();
            let state = make(&world, kind)?;
            assert_eq!(is_idle(&state), kind == Kind::Idle);
            assert_eq!(
                state.is_unused(),
                matches!(kind, Kind::Idle | Kind::Removing)
            );
            assert_eq!(state.is_removing(), kind == Kind::Removing);
            assert_eq!(state.is_starting(), kind == Kind::Starting);
            assert_eq!(
                state.is_held(),
                matches!(kind, Kind::Stopped | Kind::Doomed | Kind::Starting)
            );
            let runs = matches!(kind, Kind::Running | Kind::Closer);
            assert_eq!(state.running().is_some(), runs);
            let timeout = match kind {
                Kind::Starting | Kind::Removing => 0,
                _ => 7,
            };
            assert_eq!(state.params().timeout(), timeout);
            assert!(contains(
                &Shown(&state),
                match kind {
                    Kind::Idle => "idle",
                    Kind::Setup => "setup of 2 socket(s) by process 10 (tester), which is alive",
                    Kind::Stale => "setup of 2 socket(s) by process 10 (tester), which has exited",
                    Kind::Starting => "starting",
                    Kind::Running | Kind::Closer => "running",
                    Kind::Stopped | Kind::Doomed => "stopped",
                    Kind::Removing => "removed",
                }
            ));
        }
        Ok(())
    }
}
