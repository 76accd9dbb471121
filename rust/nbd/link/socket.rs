// SPDX-License-Identifier: GPL-2.0

//! How a link uses its socket: for how long it waits, in whose name, and with which memory.

use core::ops::Deref;
use kernel::{
    bvec::{BvecDest, BvecSource},
    cred::with_kernel_creds,
    ffi,
    mm::NoReclaim,
    net::socket::{BlockSocket, Socket, Wait},
    prelude::*,
    time::msecs_to_jiffies, //
};

/// How long a call waits before it comes back with what moved meanwhile, in milliseconds. Some kinds
/// of sockets begin anew with each few KiB.
const MOMENT_MS: u32 = 250;

/// How long a call waits for the next reply of a busy server, in milliseconds.
const PAUSE_MS: u32 = 10;

/// The socket of a link. What is done for a user's I/O is not done in the user's name, and does not
/// wait for memory that only that I/O can free.
#[pin_data]
pub(crate) struct LinkSocket {
    #[pin]
    socket: BlockSocket,
}

impl LinkSocket {
    /// Prepares a socket. Sleeps for the socket's lock.
    pub(super) fn new(socket: Socket) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            socket <- BlockSocket::new(socket),
        })
        .pin_chain(|this| {
            this.set_send_timeout();
            Ok(())
        })
    }

    /// Takes back what a user may have set: whoever sends again is to wait, not to come back at once.
    fn set_send_timeout(&self) {
        let moment = msecs_to_jiffies(MOMENT_MS) as ffi::c_long;
        self.socket.set_send_timeout(moment);
    }

    /// As [`Socket::send`]. [`Wait::Some`] and [`Wait::All`] mean a moment; [`Wait::No`] most often
    /// fails with `EAGAIN`, too, if somebody has the socket's lock.
    pub(super) fn send<const N: usize>(
        &self,
        source: &BvecSource<'_, N>,
        wait: Wait,
    ) -> Result<usize> {
        self.sending(wait, || self.socket.send(source, wait))
    }

    /// As [`Self::send`], but from `bytes`, wherever they are.
    pub(super) fn send_bytes(&self, bytes: &[u8], wait: Wait) -> Result<usize> {
        self.sending(wait, || self.socket.send_bytes(bytes, wait))
    }

    fn sending(&self, wait: Wait, send: impl FnOnce() -> Result<usize>) -> Result<usize> {
        // Whoever has the socket's lock may fault while it copies, and be kept for as long as a user
        // likes.
        if wait == Wait::No && self.socket.is_locked() {
            return Err(EAGAIN);
        }
        Self::in_kernel(send).inspect_err(|error| {
            if *error == EAGAIN {
                self.set_send_timeout();
            }
        })
    }

    /// As [`Socket::receive`]. [`Wait::Some`] means the pause between two replies, [`Wait::All`] a
    /// moment. Only the receiver calls it.
    pub(super) fn receive<const N: usize>(
        &self,
        dest: &mut BvecDest<'_, N>,
        wait: Wait,
    ) -> Result<usize> {
        let timeout = match wait {
            Wait::No => None,
            Wait::Some => Some(PAUSE_MS),
            Wait::All => Some(MOMENT_MS),
        };
        if let Some(ms) = timeout {
            let jiffies = msecs_to_jiffies(ms) as ffi::c_long;
            self.socket.set_receive_timeout(jiffies);
        }
        Self::in_kernel(|| self.socket.receive(dest, wait))
    }

    fn in_kernel(call: impl FnOnce() -> Result<usize>) -> Result<usize> {
        let _noreclaim = NoReclaim::enter();
        with_kernel_creds(call)
    }
}

impl Deref for LinkSocket {
    type Target = BlockSocket;

    fn deref(&self) -> &BlockSocket {
        &self.socket
    }
}
