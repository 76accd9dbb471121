// SPDX-License-Identifier: GPL-2.0

//! How a link uses its socket: the time limits of calls, their credentials, and memory allocation.

use core::ops::Deref;
use kernel::{
    bvec::{
        BvecDest,
        BvecSource,
        PageRing,
        RingSource, //
    },
    cred::with_kernel_creds,
    ffi,
    mm::NoReclaim,
    net::socket::{
        BlockSocket,
        Socket,
        Wait, //
    },
    prelude::*,
    time::msecs_to_jiffies, //
};

/// How long a call waits before it returns what has moved so far, in milliseconds. Some kinds of
/// sockets begin to wait again with every few KiB.
const CALL_WAIT_MS: u32 = 250;

/// How long a call waits for the next reply of a busy server, in milliseconds.
const REPLY_WAIT_MS: u32 = 10;

/// The bytes of a send that are worth a page of the ring.
const MIN_RING_BYTES: usize = 16 << 10;

/// The socket of a link. Calls use the credentials of the kernel rather than those of the task that
/// does I/O, and do not reclaim memory, which may need that I/O.
#[pin_data]
pub(crate) struct LinkSocket {
    #[pin]
    socket: BlockSocket,
    /// [`CALL_WAIT_MS`] and [`REPLY_WAIT_MS`] in jiffies.
    call_wait: ffi::c_long,
    reply_wait: ffi::c_long,
}

impl LinkSocket {
    /// Prepares a socket. Context: may sleep for the socket lock.
    pub(super) fn new(socket: Socket) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            socket <- BlockSocket::new(socket),
            call_wait: msecs_to_jiffies(CALL_WAIT_MS) as ffi::c_long,
            reply_wait: msecs_to_jiffies(REPLY_WAIT_MS) as ffi::c_long,
        })
        .pin_chain(|this| {
            this.set_send_timeout();
            Ok(())
        })
    }

    /// Replaces a timeout that a user may have set, so that calls wait and do not return at once.
    fn set_send_timeout(&self) {
        self.socket.set_send_timeout(self.call_wait);
    }

    /// As [`Socket::send`]. With [`Wait::Some`] and [`Wait::All`] it waits for [`CALL_WAIT_MS`].
    /// With [`Wait::No`] it most often fails with `EAGAIN` if the socket lock is not available.
    pub(super) fn send<const N: usize>(
        &self,
        source: &BvecSource<'_, N>,
        ring: &mut PageRing,
        wait: Wait,
    ) -> Result<usize> {
        if source.bytes() >= MIN_RING_BYTES {
            if let Some(pages) = self.copy(source, ring, wait) {
                return self.sending(wait, || self.socket.send_pages(&pages, wait));
            }
        }
        self.sending(wait, || self.socket.send(source, wait))
    }

    /// Copies to pages of `ring` what the socket has room for.
    fn copy<'a, const N: usize>(
        &self,
        source: &BvecSource<'_, N>,
        ring: &'a mut PageRing,
        wait: Wait,
    ) -> Option<RingSource<'a, N>> {
        let room = self.socket.splice_room()?;
        let limit = match wait {
            // What the socket does not take is copied again. It may take more than it has room for.
            Wait::No => room.max(MIN_RING_BYTES),
            Wait::Some | Wait::All => source.bytes(),
        };
        ring.copy(source, limit)
    }

    /// As [`Self::send`], but copies from `bytes`.
    pub(super) fn send_bytes(&self, bytes: &[u8], wait: Wait) -> Result<usize> {
        self.sending(wait, || self.socket.send_bytes(bytes, wait))
    }

    fn sending(&self, wait: Wait, send: impl FnOnce() -> Result<usize>) -> Result<usize> {
        // The owner of the socket lock may fault while it copies, and a user can delay that at
        // will.
        if wait == Wait::No && self.socket.is_locked() {
            return Err(EAGAIN);
        }
        Self::in_kernel(send).inspect_err(|error| {
            if *error == EAGAIN {
                self.set_send_timeout();
            }
        })
    }

    /// As [`Socket::receive`]. With [`Wait::Some`] it waits for [`REPLY_WAIT_MS`], with
    /// [`Wait::All`] for [`CALL_WAIT_MS`]. Context: may sleep; only the receiver calls it.
    pub(super) fn receive<const N: usize>(
        &self,
        dest: &mut BvecDest<'_, N>,
        wait: Wait,
    ) -> Result<usize> {
        match wait {
            Wait::No => {}
            Wait::Some => self.socket.set_receive_timeout(self.reply_wait),
            Wait::All => self.socket.set_receive_timeout(self.call_wait),
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
