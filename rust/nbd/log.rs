// SPDX-License-Identifier: GPL-2.0

//! How often something is logged. Each topic has a limit of its own, so that what a server does
//! cannot keep a refusal out of the log.

use kernel::{prelude::*, ratelimit::RateLimit};

/// What a message is about.
#[derive(Clone, Copy)]
pub(crate) enum Topic {
    /// What a user asked for and did not get.
    Refusal,
    /// The beginning and the end of a session: a client that sets it up again and again has the
    /// server decide how often.
    Session,
    /// Connections that are lost, slow or new.
    Connection,
}

/// The limits of a device.
#[pin_data]
pub(crate) struct LogLimits {
    #[pin]
    refusals: RateLimit,
    #[pin]
    sessions: RateLimit,
    #[pin]
    connections: RateLimit,
}

impl LogLimits {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            refusals <- RateLimit::new(),
            sessions <- RateLimit::new(),
            connections <- RateLimit::new(),
        })
    }

    /// Whether one more message may be logged now. Does not sleep.
    pub(crate) fn allow(&self, topic: Topic) -> bool {
        match topic {
            Topic::Refusal => self.refusals.allow(c"nbd refusals"),
            Topic::Session => self.sessions.allow(c"nbd sessions"),
            Topic::Connection => self.connections.allow(c"nbd connections"),
        }
    }
}
