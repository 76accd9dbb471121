// SPDX-License-Identifier: GPL-2.0

//! Rate limits of log messages. Each topic has its own limit, so that messages about a server
//! cannot suppress a refusal.

use kernel::{
    prelude::*,
    ratelimit::Ratelimit, //
};

/// What a message is about.
#[derive(Clone, Copy)]
pub(crate) enum Topic {
    /// A request of a user was refused.
    Refusal,
    /// A session has started or ended. A client that connects again and again lets the server
    /// decide how often this is.
    Session,
    /// A link has failed, is slow or is new.
    Connection,
}

/// The limits of a device.
#[pin_data]
pub(crate) struct LogLimits {
    #[pin]
    refusals: Ratelimit,
    #[pin]
    sessions: Ratelimit,
    #[pin]
    connections: Ratelimit,
}

impl LogLimits {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            refusals <- Ratelimit::new(),
            sessions <- Ratelimit::new(),
            connections <- Ratelimit::new(),
        })
    }

    /// Whether another message may be logged now. Context: does not sleep.
    pub(crate) fn allow(&self, topic: Topic) -> bool {
        match topic {
            Topic::Refusal => self.refusals.ratelimit(c"nbd refusals"),
            Topic::Session => self.sessions.ratelimit(c"nbd sessions"),
            Topic::Connection => self.connections.ratelimit(c"nbd connections"),
        }
    }
}
