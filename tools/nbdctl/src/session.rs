// SPDX-License-Identifier: GPL-2.0

//! The session of a device and its connections, as the driver tells of them.

use crate::export::Flags;
use serde::Serialize;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// At least one connection is open.
    Live,
    /// No connection is open, and requests wait for one.
    Waiting,
    /// No connection is open, and requests fail.
    Dead,
    Disconnecting,
    Ending,
    /// Of a driver that is newer than this program.
    Unknown,
}

impl SessionState {
    /// From `session-state` of the netlink specification.
    pub fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Live,
            1 => Self::Waiting,
            2 => Self::Dead,
            3 => Self::Disconnecting,
            4 => Self::Ending,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "connected",
            Self::Waiting => "waiting for a connection",
            Self::Dead => "without a connection, requests fail",
            Self::Disconnecting => "disconnecting",
            Self::Ending => "ending",
            Self::Unknown => "in an unknown state",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// There is no socket.
    Vacant,
    Open,
    /// The server is shutting down.
    Draining,
    Closing,
    /// Of a driver that is newer than this program.
    Unknown,
}

impl ConnectionState {
    /// From `connection-state` of the netlink specification.
    pub fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Vacant,
            1 => Self::Open,
            2 => Self::Draining,
            3 => Self::Closing,
            _ => Self::Unknown,
        }
    }

    /// True if a new socket is wanted.
    pub fn is_missing(self) -> bool {
        matches!(self, Self::Vacant | Self::Draining)
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vacant => "missing",
            Self::Open => "open",
            Self::Draining => "draining",
            Self::Closing => "closing",
            Self::Unknown => "unknown",
        })
    }
}

/// A place in a session. What is not known, or not there without a socket, is None.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    pub index: u32,
    pub state: ConnectionState,
    pub generation: Option<u64>,
    pub local: Option<String>,
    pub peer: Option<String>,
    pub requests: Option<u64>,
    pub in_flight: Option<u32>,
    pub replayed: Option<u64>,
    pub sent_bytes: Option<u64>,
    pub received_bytes: Option<u64>,
    pub last_error: Option<String>,
    /// Since the socket was given, or without one since the last one was lost.
    pub age_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub state: SessionState,
    pub age_ms: Option<u64>,
    /// How many connections there are.
    pub total: u32,
    pub flags: Option<Flags>,
    /// In seconds; 0 is no limit.
    pub timeout: Option<u64>,
    /// In seconds.
    pub dead_conn_timeout: Option<u64>,
    pub connections: Vec<Connection>,
}

impl Session {
    /// One of which little is known.
    #[cfg(test)]
    pub fn new_test(total: u32, connections: Vec<Connection>) -> Self {
        Self {
            state: SessionState::Live,
            age_ms: None,
            total,
            flags: None,
            timeout: None,
            dead_conn_timeout: None,
            connections,
        }
    }

    /// The number from which on connections are to be asked for.
    pub fn next_connection(&self) -> u32 {
        self.connections
            .last()
            .map_or(0, |c| c.index.saturating_add(1))
    }

    /// True if no connection is left to be asked for.
    pub fn is_complete(&self) -> bool {
        self.connections.len() >= self.total as usize
    }
}

/// How many of the connections are missing, and since when if the driver tells. Times are in
/// seconds since 1970.
pub fn missing(connections: &[Connection], unix: u64) -> (u32, Option<u64>) {
    let missing = connections.iter().filter(|c| c.state.is_missing());
    let oldest = missing.clone().filter_map(|c| c.age_ms).max();
    let count = u32::try_from(missing.count()).unwrap_or(u32::MAX);
    (count, oldest.map(|ms| unix.saturating_sub(ms / 1000)))
}

/// The connections of a driver that tells of them in debugfs only. Of each line the number, the
/// state and the last error are read, the rest is for people.
pub fn parse_debugfs(text: &str) -> Vec<Connection> {
    text.lines().filter_map(parse_debugfs_line).collect()
}

fn parse_debugfs_line(line: &str) -> Option<Connection> {
    let (index, rest) = line.split_once(": ")?;
    let state = match rest.split(' ').next()? {
        "open" => ConnectionState::Open,
        "draining" => ConnectionState::Draining,
        "closing" => ConnectionState::Closing,
        "closed" | "vacant" => ConnectionState::Vacant,
        _ => ConnectionState::Unknown,
    };
    let last_error = rest
        .rsplit_once(" last-error ")
        .map(|(_, e)| e)
        .filter(|e| *e != "none");
    Some(Connection {
        index: index.parse().ok()?,
        state,
        generation: None,
        local: None,
        peer: None,
        requests: None,
        in_flight: None,
        replayed: None,
        sent_bytes: None,
        received_bytes: None,
        last_error: last_error.map(str::to_owned),
        age_ms: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_debugfs() {
        let text =
            "0: open generation 1 local unnamed peer /run/a b: c from 12 (nbd ctl) requests 3 \
                    in-flight 0 sent 84 received 48 replayed 0 last-error none\n\
                    1: closed replayed 2 last-error the server closed the connection\n\
                    nonsense\n";
        let connections = parse_debugfs(text);
        assert_eq!(connections.len(), 2);
        assert_eq!(connections[0].state, ConnectionState::Open);
        assert_eq!(connections[0].last_error, None);
        assert_eq!(connections[1].index, 1);
        assert!(connections[1].state.is_missing());
        assert_eq!(
            connections[1].last_error.as_deref(),
            Some("the server closed the connection")
        );
    }

    #[test]
    fn those_that_are_missing() {
        let mut connections = parse_debugfs("0: open\n1: closed\n2: vacant\n3: draining\n");
        assert_eq!(missing(&connections, 100), (3, None));
        for (connection, age) in connections.iter_mut().zip([90_000, 7000, 8999]) {
            connection.age_ms = Some(age);
        }
        assert_eq!(missing(&connections, 100), (3, Some(92)));
        assert_eq!(missing(&connections[..1], 100), (0, None));
    }

    #[test]
    fn states_of_a_newer_driver() {
        assert_eq!(SessionState::from_number(99), SessionState::Unknown);
        assert!(!ConnectionState::from_number(99).is_missing());
    }

    #[test]
    fn a_session_in_parts() {
        let connection = parse_debugfs("4: open last-error none").remove(0);
        let mut session = Session::new_test(2, vec![]);
        assert_eq!(session.next_connection(), 0);
        session.connections.push(connection.clone());
        assert!(!session.is_complete());
        assert_eq!(session.next_connection(), 5);
        session.connections.push(connection);
        assert!(session.is_complete());
    }
}
