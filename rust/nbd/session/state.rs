// SPDX-License-Identifier: GPL-2.0

//! The state machine of a session. All transitions are called with `Session::inner` held.

use crate::error::{
    LinkError,
    Reason, //
};
use kernel::time::{
    Instant,
    Monotonic, //
};

/// What a session does when its last link fails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnLastFailure {
    End,
    /// Requests wait for a reconnect.
    Wait,
    /// Requests fail until a reconnect.
    Fail,
}

/// The state of a session.
#[derive(Clone, Copy)]
pub(crate) enum SessionState {
    /// This many connections are open, at least one.
    Live(u32),
    /// No connection is open. Requests wait for a reconnect, for `dead_conn_timeout` from the time
    /// at which the first one arrived. `None` if no request has arrived.
    Waiting(Option<Instant<Monotonic>>),
    /// No connection is open. Requests fail until a reconnect.
    Dead,
    /// This many connections are open. The servers were told at this time that no requests follow.
    Disconnecting(u32, Instant<Monotonic>),
    /// The work that ends the session is queued or runs.
    Ending(Reason),
    /// All connections are closed and all requests are finished.
    Ended(Reason),
}

/// The state of a session for users.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Live,
    Waiting,
    Dead,
    Disconnecting,
    Ending,
}

impl Phase {
    /// Returns the name that sysfs shows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Waiting => "waiting",
            Self::Dead => "dead",
            Self::Disconnecting => "disconnecting",
            Self::Ending => "ending",
        }
    }
}

/// What [`SessionState::link_failed`] has found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkFailure {
    /// This many connections are left. The link error is reported to users.
    Report(u32),
    /// The session is ending or disconnecting, so the link error is expected.
    Expected,
}

impl SessionState {
    /// Handles a link error of a connection. Returns whether the error is reported, and the reason
    /// to end the session if the caller has to begin the end.
    pub(crate) fn link_failed(
        &mut self,
        error: LinkError,
        last: OnLastFailure,
    ) -> (LinkFailure, Option<Reason>) {
        match *self {
            Self::Live(open) => {
                let left = open.saturating_sub(1);
                let mut end = None;
                match (left, last) {
                    (1.., _) => *self = Self::Live(left),
                    (0, OnLastFailure::End) => end = Some(error.reason()),
                    (0, OnLastFailure::Wait) => *self = Self::Waiting(None),
                    (0, OnLastFailure::Fail) => *self = Self::Dead,
                }
                (LinkFailure::Report(left), end)
            }
            Self::Disconnecting(open, since) => match open.saturating_sub(1) {
                0 => (LinkFailure::Expected, Some(Reason::Requested)),
                left => {
                    *self = Self::Disconnecting(left, since);
                    (LinkFailure::Expected, None)
                }
            },
            Self::Waiting(_) | Self::Dead | Self::Ending(_) | Self::Ended(_) => {
                (LinkFailure::Expected, None)
            }
        }
    }

    /// Whether a reconnect may open a connection.
    pub(crate) fn takes_links(&self) -> bool {
        matches!(self, Self::Live(_) | Self::Waiting(_) | Self::Dead)
    }

    /// Counts a connection that a reconnect has opened, after [`Self::takes_links`].
    pub(crate) fn reconnect(&mut self) {
        match *self {
            Self::Live(open) => *self = Self::Live(open + 1),
            Self::Waiting(_) | Self::Dead => *self = Self::Live(1),
            Self::Disconnecting(..) | Self::Ending(_) | Self::Ended(_) => {}
        }
    }

    /// Counts an open connection that was removed. Another one is open.
    pub(crate) fn remove(&mut self) {
        if let Self::Live(open) = self {
            *open = open.saturating_sub(1).max(1);
        }
    }

    /// Starts a disconnect. Returns `true` if no connection is open, so that the caller has to
    /// begin the end at once.
    pub(crate) fn start_disconnect(&mut self, now: Instant<Monotonic>) -> bool {
        match *self {
            Self::Live(open) => *self = Self::Disconnecting(open, now),
            Self::Waiting(_) | Self::Dead => return true,
            Self::Disconnecting(..) | Self::Ending(_) | Self::Ended(_) => {}
        }
        false
    }

    /// Begins the end. Returns `true` if this call has begun it, so that the caller has to queue
    /// the work.
    pub(crate) fn begin_end(&mut self, reason: Reason) -> bool {
        let begins = !self.is_ending();
        if begins {
            *self = Self::Ending(reason);
        }
        begins
    }

    /// Completes the end. Returns its reason.
    pub(crate) fn end(&mut self) -> Option<Reason> {
        match *self {
            Self::Ending(reason) => {
                *self = Self::Ended(reason);
                Some(reason)
            }
            _ => None,
        }
    }

    /// Gives up waiting for a connection. Returns `false` if the session did not wait.
    pub(crate) fn give_up(&mut self) -> bool {
        let waits = matches!(self, Self::Waiting(_));
        if waits {
            *self = Self::Dead;
        }
        waits
    }

    /// Whether the end has begun.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self, Self::Ending(_) | Self::Ended(_))
    }

    /// Returns the reason of an end that is not completed.
    pub(crate) fn ending(&self) -> Option<Reason> {
        match self {
            Self::Ending(reason) => Some(*reason),
            _ => None,
        }
    }

    /// Returns the reason of an end that is completed.
    pub(crate) fn ended(&self) -> Option<Reason> {
        match self {
            Self::Ended(reason) => Some(*reason),
            _ => None,
        }
    }

    /// Returns the state for users.
    pub(crate) fn phase(&self) -> Phase {
        match self {
            Self::Live(_) => Phase::Live,
            Self::Waiting(_) => Phase::Waiting,
            Self::Dead => Phase::Dead,
            Self::Disconnecting(..) => Phase::Disconnecting,
            Self::Ending(_) | Self::Ended(_) => Phase::Ending,
        }
    }

    /// Returns how many connections are open.
    pub(crate) fn open_connections(&self) -> u32 {
        match self {
            Self::Live(open) | Self::Disconnecting(open, _) => *open,
            Self::Waiting(_) | Self::Dead | Self::Ending(_) | Self::Ended(_) => 0,
        }
    }

    /// Returns the name of the state for debugfs.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::Live(_) => "running",
            Self::Waiting(_) => "waiting for a connection",
            Self::Dead => "without connection",
            Self::Disconnecting(..) => "disconnecting",
            Self::Ending(_) | Self::Ended(_) => "ending",
        }
    }
}

/// Whether the task in `NBD_DO_IT` is in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DoIt {
    Waiting,
    /// The task has left the kernel to handle a signal, and comes back or exits.
    Interrupted,
    /// The session has ended.
    Ended,
}

impl DoIt {
    pub(super) fn new() -> Self {
        Self::Waiting
    }

    /// The task leaves the kernel. Returns whether it may; it may not once the session has ended.
    pub(super) fn interrupt(&mut self) -> bool {
        if *self == Self::Ended {
            return false;
        }
        *self = Self::Interrupted;
        true
    }

    pub(super) fn is_interrupted(&self) -> bool {
        *self == Self::Interrupted
    }

    /// The task is back. Returns whether it had left.
    pub(super) fn resume(&mut self) -> bool {
        let was_interrupted = self.is_interrupted();
        if was_interrupted {
            *self = Self::Waiting;
        }
        was_interrupted
    }

    /// The session has ended. Returns whether the task had left the kernel, and has to be told.
    pub(super) fn end(&mut self) -> bool {
        let was_interrupted = self.is_interrupted();
        *self = Self::Ended;
        was_interrupted
    }
}

#[kernel::macros::kunit_tests(nbd_session_state)]
mod tests {
    use super::*;
    use crate::error::ReceiveError;
    use kernel::prelude::*;

    const ERROR: LinkError = LinkError::TimedOut;

    /// All states with their names. Those that count connections appear twice.
    fn states() -> [(&'static str, SessionState); 9] {
        let now = Instant::now();
        [
            ("live 1", SessionState::Live(1)),
            ("live 2", SessionState::Live(2)),
            ("waiting", SessionState::Waiting(None)),
            ("waiting since", SessionState::Waiting(Some(now))),
            ("dead", SessionState::Dead),
            ("disconnecting 1", SessionState::Disconnecting(1, now)),
            ("disconnecting 2", SessionState::Disconnecting(2, now)),
            ("ending", SessionState::Ending(Reason::Requested)),
            ("ended", SessionState::Ended(Reason::Requested)),
        ]
    }

    /// Returns the name of a state.
    fn name(state: &SessionState) -> &'static str {
        match state {
            SessionState::Live(1) => "live 1",
            SessionState::Live(2) => "live 2",
            SessionState::Live(_) => "live 3",
            SessionState::Waiting(None) => "waiting",
            SessionState::Waiting(Some(_)) => "waiting since",
            SessionState::Dead => "dead",
            SessionState::Disconnecting(1, _) => "disconnecting 1",
            SessionState::Disconnecting(..) => "disconnecting 2",
            SessionState::Ending(Reason::Interrupted) => "ending by this",
            SessionState::Ending(_) => "ending",
            SessionState::Ended(_) => "ended",
        }
    }

    /// Whether `event` takes each state, in the order of [`states`], to the state of this name.
    fn goes(wanted: [&str; 9], event: impl Fn(&mut SessionState)) -> bool {
        states()
            .into_iter()
            .zip(wanted)
            .all(|((_, mut state), to)| {
                event(&mut state);
                name(&state) == to
            })
    }

    /// The names of [`states`].
    const SAME: [&str; 9] = [
        "live 1",
        "live 2",
        "waiting",
        "waiting since",
        "dead",
        "disconnecting 1",
        "disconnecting 2",
        "ending",
        "ended",
    ];

    /// [`SAME`] with these changes.
    fn same_but<const N: usize>(changes: [(usize, &'static str); N]) -> [&'static str; 9] {
        let mut wanted = SAME;
        for (at, to) in changes {
            if let Some(slot) = wanted.get_mut(at) {
                *slot = to;
            }
        }
        wanted
    }

    #[test]
    fn loses() {
        for (last, to) in [
            (OnLastFailure::End, "live 1"),
            (OnLastFailure::Wait, "waiting"),
            (OnLastFailure::Fail, "dead"),
        ] {
            let wanted = same_but([(0, to), (1, "live 1"), (6, "disconnecting 1")]);
            assert!(goes(wanted, |state| {
                let (before, copy) = (name(state), *state);
                let (lost, end) = state.link_failed(ERROR, last);
                let left = match copy {
                    SessionState::Live(open) => LinkFailure::Report(open - 1),
                    _ => LinkFailure::Expected,
                };
                assert!(lost == left);
                let ends = match before {
                    "live 1" if last == OnLastFailure::End => Some(Reason::TimedOut),
                    "disconnecting 1" => Some(Reason::Requested),
                    _ => None,
                };
                assert!(end == ends);
            }));
        }
    }

    #[test]
    fn errors_have_their_reasons() {
        for (error, reason) in [
            (
                LinkError::Receive(ReceiveError::Closed),
                Reason::LinksFailed,
            ),
            (LinkError::Send(EPIPE), Reason::LinksFailed),
            (LinkError::TimedOut, Reason::TimedOut),
            (LinkError::ShuttingDown, Reason::ShuttingDown),
        ] {
            assert!(
                SessionState::Live(1)
                    .link_failed(error, OnLastFailure::End)
                    .1
                    == Some(reason)
            );
        }
    }

    #[test]
    fn reconnects() {
        let wanted = same_but([
            (0, "live 2"),
            (1, "live 3"),
            (2, "live 1"),
            (3, "live 1"),
            (4, "live 1"),
        ]);
        assert!(goes(wanted, SessionState::reconnect));
        for (name, state) in states() {
            let takes = !name.starts_with("disconnecting") && !name.starts_with("end");
            assert_eq!(state.takes_links(), takes);
        }
    }

    #[test]
    fn removes() {
        assert!(goes(same_but([(1, "live 1")]), SessionState::remove));
    }

    #[test]
    fn disconnects() {
        let wanted = same_but([(0, "disconnecting 1"), (1, "disconnecting 2")]);
        assert!(goes(wanted, |state| {
            let before = name(state);
            let at_once = state.start_disconnect(Instant::now());
            let none = ["waiting", "waiting since", "dead"].contains(&before);
            assert_eq!(at_once, none);
        }));
    }

    #[test]
    fn ends_once() {
        let mut wanted = ["ending by this"; 9];
        for (slot, same) in wanted.iter_mut().zip(SAME).skip(7) {
            *slot = same;
        }
        assert!(goes(wanted, |state| {
            let begins = !state.is_ending();
            assert_eq!(state.begin_end(Reason::Interrupted), begins);
        }));
        assert!(goes(same_but([(7, "ended")]), |state| {
            let ending = name(state) == "ending";
            assert!(state.end() == ending.then_some(Reason::Requested));
        }));
        for (name, state) in states() {
            assert_eq!(state.ended().is_some(), name == "ended");
            assert_eq!(state.ending().is_some(), name == "ending");
        }
    }

    #[test]
    fn is_shown() {
        use Phase::{
            Dead,
            Disconnecting,
            Ending,
            Live,
            Waiting, //
        };

        let shown = [
            (Live, 1),
            (Live, 2),
            (Waiting, 0),
            (Waiting, 0),
            (Dead, 0),
            (Disconnecting, 1),
            (Disconnecting, 2),
            (Ending, 0),
            (Ending, 0),
        ];
        for ((_, state), (phase, open)) in states().into_iter().zip(shown) {
            assert_eq!(state.phase(), phase);
            assert_eq!(state.open_connections(), open);
        }
    }

    #[test]
    fn gives_up() {
        assert!(goes(same_but([(2, "dead"), (3, "dead")]), |state| {
            let waits = name(state).starts_with("waiting");
            assert_eq!(state.give_up(), waits);
        }));
    }

    #[test]
    fn task_in_do_it() {
        use DoIt::{
            Ended,
            Interrupted,
            Waiting, //
        };

        type Event = fn(&mut DoIt) -> bool;
        type Row = (DoIt, [(Event, bool, DoIt); 3]);
        let table: [Row; 3] = [
            (
                Waiting,
                [
                    (DoIt::interrupt, true, Interrupted),
                    (DoIt::resume, false, Waiting),
                    (DoIt::end, false, Ended),
                ],
            ),
            (
                Interrupted,
                [
                    (DoIt::interrupt, true, Interrupted),
                    (DoIt::resume, true, Waiting),
                    (DoIt::end, true, Ended),
                ],
            ),
            (
                Ended,
                [
                    (DoIt::interrupt, false, Ended),
                    (DoIt::resume, false, Ended),
                    (DoIt::end, false, Ended),
                ],
            ),
        ];
        assert_eq!(DoIt::new(), Waiting);
        for (state, events) in table {
            for (event, result, to) in events {
                let mut now = state;
                assert_eq!(event(&mut now), result);
                assert_eq!(now, to);
                assert_eq!(now.is_interrupted(), to == Interrupted);
            }
        }
    }
}
