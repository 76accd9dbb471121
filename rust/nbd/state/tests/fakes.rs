// SPDX-License-Identifier: GPL-2.0

//! Fake sockets, owners and sessions that count themselves.

use crate::{
    params::Params,
    state::{
        Endpoint,
        Identity,
        Setup,
        State, //
    }, //
};
use core::cell::Cell;
use kernel::{
    prelude::*,
    task::Comm, //
};

/// Counts what a test has created, and what became of it.
#[derive(Default)]
pub(super) struct World {
    /// Sockets that were created, dropped, and handed back by the machine.
    pub(super) made: Cell<u32>,
    pub(super) dropped: Cell<u32>,
    pub(super) back: Cell<u32>,
    /// Sockets that were shut down, and those that were shut down twice.
    pub(super) shut: Cell<u32>,
    pub(super) shut_again: Cell<u32>,
    /// Owners and references to sessions that exist.
    pub(super) owners: Cell<i32>,
    pub(super) sessions: Cell<i32>,
    /// Processes up to this pid have exited.
    pub(super) exited: Cell<i32>,
}

fn add(counter: &Cell<u32>) {
    counter.set(counter.get() + 1);
}

impl World {
    pub(super) fn socket(&self) -> FakeSocket<'_> {
        add(&self.made);
        FakeSocket {
            world: self,
            id: self.made.get(),
            shut: Cell::new(false),
        }
    }

    pub(super) fn owner(&self, pid: i32) -> FakeOwner<'_> {
        self.owners.set(self.owners.get() + 1);
        FakeOwner { world: self, pid }
    }

    pub(super) fn session(&self, id: u32) -> FakeSession<'_> {
        self.sessions.set(self.sessions.get() + 1);
        FakeSession { world: self, id }
    }

    pub(super) fn setup(&self, params: Params, pid: i32) -> Result<FakeSetup<'_>> {
        let mut setup = Setup::new(params, self.owner(pid), self.socket()).map_err(|_| ENOMEM)?;
        setup.add(self.socket()).map_err(|_| ENOMEM)?;
        Ok(setup)
    }

    /// Records that the machine has refused this socket.
    pub(super) fn refused(&self, socket: FakeSocket<'_>) {
        add(&self.back);
        // The caller shuts down a refused socket, not the machine.
        if socket.shut.get() {
            add(&self.shut_again);
        }
    }

    pub(super) fn live(&self) -> u32 {
        self.made.get().wrapping_sub(self.dropped.get())
    }

    /// Whether nothing is left and every socket of a setup was shut down exactly once.
    pub(super) fn is_clean(&self) -> bool {
        self.live() == 0
            && self.owners.get() == 0
            && self.sessions.get() == 0
            && self.shut_again.get() == 0
            && self.shut.get() == self.made.get().wrapping_sub(self.back.get())
    }
}

pub(super) struct FakeSocket<'a> {
    world: &'a World,
    pub(super) id: u32,
    pub(super) shut: Cell<bool>,
}

impl Endpoint for FakeSocket<'_> {
    fn shutdown(&self) {
        add(if self.shut.replace(true) {
            &self.world.shut_again
        } else {
            &self.world.shut
        });
    }
}

impl Drop for FakeSocket<'_> {
    fn drop(&mut self) {
        add(&self.world.dropped);
    }
}

pub(super) struct FakeOwner<'a> {
    world: &'a World,
    pub(super) pid: i32,
}

impl Identity for FakeOwner<'_> {
    fn is(&self, other: &Self) -> bool {
        self.pid == other.pid
    }

    fn is_alive(&self) -> bool {
        self.pid > self.world.exited.get()
    }

    fn pid(&self) -> i32 {
        self.pid
    }

    fn comm(&self) -> Comm {
        (*b"tester\0leftover\0").into()
    }
}

impl Drop for FakeOwner<'_> {
    fn drop(&mut self) {
        self.world.owners.set(self.world.owners.get() - 1);
    }
}

pub(super) struct FakeSession<'a> {
    world: &'a World,
    pub(super) id: u32,
}

impl Clone for FakeSession<'_> {
    fn clone(&self) -> Self {
        self.world.session(self.id)
    }
}

impl Drop for FakeSession<'_> {
    fn drop(&mut self) {
        self.world.sessions.set(self.world.sessions.get() - 1);
    }
}

pub(super) type FakeState<'a> = State<FakeOwner<'a>, FakeSocket<'a>, FakeSession<'a>>;
pub(super) type FakeSetup<'a> = Setup<FakeOwner<'a>, FakeSocket<'a>>;
