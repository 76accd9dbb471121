// SPDX-License-Identifier: GPL-2.0

//! The changes that a netlink message requests.

use crate::{
    params::Params,
    protocol::ClientFlags, //
};
use kernel::{
    block::mq::MAX_TIMEOUT,
    net::socket::Socket,
    prelude::*, //
};

/// A change of a connection of a running session.
pub(crate) struct ConnectionChange {
    pub(crate) index: u32,
    /// The new socket. Without one the connection is removed.
    pub(crate) socket: Option<Socket>,
}

/// The changes that a netlink message requests. `None` leaves a parameter as it is.
pub(crate) struct Changes {
    /// Sockets for connections that have none.
    pub(crate) sockets: KVec<Socket>,
    /// Changes of connections by their numbers.
    pub(crate) connections: KVec<ConnectionChange>,
    pub(crate) size: Option<u64>,
    pub(crate) block_size: Option<u64>,
    pub(crate) timeout: Option<u64>,
    pub(crate) dead_conn_timeout: Option<u64>,
    pub(crate) client: Option<ClientFlags>,
}

impl Changes {
    /// Applies the changes to `params`. A timeout that is too long for the kernel is cut to the
    /// longest possible one. Fails with `EINVAL` if another value is out of range.
    pub(crate) fn apply(&self, mut params: Params) -> Result<Params> {
        let fit = |n: u64| usize::try_from(n).map_err(|_| EINVAL);
        if let Some(bytes) = self.block_size {
            params = params.with_block_size(fit(bytes)?)?;
        }
        if let Some(bytes) = self.size {
            params = params.with_size(bytes)?;
        }
        if let Some(seconds) = self.timeout {
            params = params.with_timeout(fit(seconds.min(MAX_TIMEOUT.into()))?)?;
        }
        if let Some(seconds) = self.dead_conn_timeout {
            params = params.with_dead_conn_timeout(seconds);
        }
        if let Some(client) = self.client {
            params = params.with_client(client);
        }
        Ok(params)
    }
}

#[kernel::macros::kunit_tests(nbd_changes)]
mod tests {
    use super::*;

    fn no_changes() -> Changes {
        Changes {
            sockets: KVec::new(),
            connections: KVec::new(),
            size: None,
            block_size: None,
            timeout: None,
            dead_conn_timeout: None,
            client: None,
        }
    }

    #[test]
    fn timeouts_of_a_message_are_cut() -> Result {
        let most = u64::from(MAX_TIMEOUT);
        for seconds in [0, 1, most, most + 1, 1 << 32, u64::MAX] {
            let changes = Changes {
                timeout: Some(seconds),
                ..no_changes()
            };
            let params = changes.apply(Params::default())?;
            assert_eq!(u64::from(params.timeout()), seconds.min(most));
        }
        Ok(())
    }

    #[test]
    fn changes_of_a_message() -> Result {
        let before = Params::default().with_size(1 << 20)?.with_timeout(5)?;
        assert!(no_changes().apply(before)? == before);
        let all = Changes {
            size: Some(1 << 30),
            block_size: Some(4096),
            timeout: Some(0),
            dead_conn_timeout: Some(9),
            client: Some(ClientFlags::new(1)),
            ..no_changes()
        };
        let after = Params::default()
            .with_size(1 << 30)?
            .with_block_size(4096)?
            .with_timeout(0)?
            .with_dead_conn_timeout(9)
            .with_client(ClientFlags::new(1));
        assert!(all.apply(before)? == after);
        Ok(())
    }

    #[test]
    fn one_bad_change_refuses_all() {
        let bad = [
            Changes {
                size: Some(1 << 63),
                ..no_changes()
            },
            Changes {
                block_size: Some(513),
                ..no_changes()
            },
            Changes {
                block_size: Some(u64::MAX),
                ..no_changes()
            },
        ];
        for changes in bad {
            let changed = Changes {
                client: Some(ClientFlags::new(2)),
                ..changes
            }
            .apply(Params::default());
            assert!(changed.is_err_and(|error| error == EINVAL));
        }
    }
}
