// SPDX-License-Identifier: GPL-2.0

//! Connections that are added, replaced and removed while a session runs.

use crate::{
    changes::ConnectionChange,
    connection::Connection,
    link::Link,
    log::Topic,
    refusal::{
        Refusal,
        MAX_CONNECTIONS, //
    },
    session::Session, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// A change for which everything is allocated.
struct Prepared {
    index: u32,
    link: Option<Arc<Link>>,
    /// For a connection that the session never had.
    connection: Option<Arc<Connection>>,
}

/// What a change has done.
#[derive(Clone, Copy)]
enum Done {
    Added,
    Replaced,
    Reconnected,
    Removed,
}

impl Done {
    fn describe(self) -> &'static str {
        match self {
            Self::Added => "was added",
            Self::Replaced => "has a new socket; the previous one drains",
            Self::Reconnected => "has a new socket",
            Self::Removed => "was removed",
        }
    }
}

impl Session {
    /// Changes connections, which are all different, or refuses all changes. Requests in flight on
    /// a link that is replaced or removed may still be answered there; new ones go to other links.
    /// Context: may sleep, but never for a peer.
    pub(crate) fn change_connections(
        self: &Arc<Self>,
        changes: KVec<ConnectionChange>,
    ) -> Result<(), Refusal> {
        let prepared = self.prepare(changes).map_err(|_| Refusal::NoMemory)?;
        let mut log = KVec::with_capacity(prepared.len(), GFP_KERNEL).map_err(no_memory)?;
        let mut retired = KVec::with_capacity(prepared.len(), GFP_KERNEL).map_err(no_memory)?;
        {
            // Only tasks that hold this add, open, replace and remove connections.
            let mut inner = self.inner.lock();
            if !inner.state.takes_links() {
                return Err(Refusal::NotConnected);
            }
            self.check(&prepared, inner.state.open_connections() > 0)?;
            // What is removed comes last, so that one connection is always open.
            for removes in [false, true] {
                let now = |change: &&Prepared| change.link.is_none() == removes;
                for change in prepared.iter().filter(now) {
                    if let Some(connection) = &change.connection {
                        self.places.add(change.index, connection.clone());
                    }
                    let Some(connection) = self.places.get(change.index) else {
                        continue;
                    };
                    let was_removed = connection.is_removed();
                    let (done, previous) = match &change.link {
                        Some(link) => {
                            let previous = connection.replace(link.clone());
                            // The end waits for receivers that were started under this lock.
                            link.launch();
                            if previous.is_some() {
                                (Done::Replaced, previous)
                            } else {
                                inner.state.reconnect();
                                let done = if was_removed {
                                    Done::Added
                                } else {
                                    Done::Reconnected
                                };
                                (done, None)
                            }
                        }
                        None => {
                            let previous = connection.remove();
                            if previous.is_some() {
                                inner.state.remove();
                            }
                            (Done::Removed, previous)
                        }
                    };
                    if let Some(link) = previous {
                        // This comes before the session can end, which spares the requests of a
                        // link that drains.
                        link.watch();
                        link.drain(|| connection.count_replay());
                        let _ = retired.push_within_capacity(link);
                    }
                    let _ = log.push_within_capacity((change.index, done));
                }
            }
        }
        self.notify_later();
        self.changed.wake_all();
        self.disk().kick_requeued();
        for link in &retired {
            // If no request is in flight, none finishes later.
            self.request_finished(link);
        }
        if !retired.is_empty() {
            self.start_clock();
        }
        for (index, done) in &log {
            if self.info().may_log(Topic::Connection) {
                dev_info!(
                    self.disk().device(),
                    "connection {} {}\n",
                    index,
                    done.describe()
                );
            }
        }
        Ok(())
    }

    /// Allocates what the changes need. Context: may sleep.
    fn prepare(self: &Arc<Self>, changes: KVec<ConnectionChange>) -> Result<KVec<Prepared>> {
        let mut prepared = KVec::with_capacity(changes.len(), GFP_KERNEL)?;
        for ConnectionChange { index, socket } in changes {
            let link = match socket {
                Some(socket) => Some(Link::new(
                    self.disk(),
                    self.info(),
                    self.workqueues(),
                    socket,
                )?),
                None => None,
            };
            let connection = match self.places.get(index) {
                None if link.is_some() => Some(Connection::new_removed(index)?),
                _ => None,
            };
            let change = Prepared {
                index,
                link,
                connection,
            };
            prepared.push(change, GFP_KERNEL)?;
        }
        Ok(prepared)
    }

    /// Checks whether all changes are possible. Context: under `Session::inner`.
    fn check(&self, changes: &[Prepared], is_live: bool) -> Result<(), Refusal> {
        let change_of = |index| changes.iter().find(|change| change.index == index);
        let existing = |index| self.places.get(index).filter(|one| !one.is_removed());
        let added = |index| change_of(index).is_some_and(|change| change.link.is_some());
        for change in changes {
            match existing(change.index) {
                Some(connection) if !connection.can_drain() && connection.has_link() => {
                    return Err(Refusal::Draining {
                        index: change.index,
                    });
                }
                Some(_) => {}
                None if change.link.is_none() => {
                    return Err(Refusal::NoConnection {
                        index: change.index,
                    });
                }
                None if !self.flags.multi_conn() => return Err(Refusal::OneConnection),
                None if change.index as usize >= MAX_CONNECTIONS => {
                    return Err(self.next_connection(existing));
                }
                // Each lower number has a connection, or gets one by this message, too.
                None => {
                    let lower = |index| existing(index).is_some() || added(index);
                    if !(0..change.index).all(lower) {
                        return Err(self.next_connection(existing));
                    }
                }
            }
        }
        if changes.iter().all(|change| change.link.is_some()) {
            return Ok(());
        }
        let stays = |one: &&Arc<Connection>| match change_of(one.index()) {
            Some(change) => change.link.is_some(),
            None => !one.is_removed() && (one.has_link() || !is_live),
        };
        let new = changes.iter().any(|change| change.link.is_some());
        if new || self.connections().any(|one| stays(&one)) {
            Ok(())
        } else {
            Err(Refusal::LastConnection)
        }
    }

    /// Returns the refusal of a connection that has not the lowest free number.
    fn next_connection<'a>(
        &self,
        existing: impl Fn(u32) -> Option<&'a Arc<Connection>>,
    ) -> Refusal {
        match (0..MAX_CONNECTIONS as u32).find(|index| existing(*index).is_none()) {
            Some(next) => Refusal::NextConnection { next },
            None => Refusal::TooManyConnections,
        }
    }
}

fn no_memory<E>(_: E) -> Refusal {
    Refusal::NoMemory
}
