// SPDX-License-Identifier: GPL-2.0

//! Sockets given by user space.
//!
//! C header: [`include/linux/net.h`](srctree/include/linux/net.h)

use crate::{
    bindings,
    bvec::{BvecDest, BvecSource},
    error::to_result,
    ffi,
    fs::file::{File, LocalFile},
    net::addr::SocketAddr,
    new_mutex,
    prelude::*,
    sync::{aref::ARef, Mutex}, //
};
use core::{mem::MaybeUninit, ops::Deref, ptr::NonNull};

/// Whether a call may wait for the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Take what there is, or fail with `EAGAIN`.
    No,
    /// Wait for some, but only for as long as the socket's timeouts say.
    Some,
    /// Wait until all is there, but only for as long as the socket's timeouts say.
    All,
}

/// A byte stream: a TCP or an `AF_UNIX` stream socket, connected or not.
///
/// The value owns one reference to the socket's file, taken from user space's descriptor once and
/// given back once.
///
/// # Invariants
///
/// `file` is the file of a stream socket whose `shutdown` works.
#[derive(Clone)]
pub struct Socket {
    file: ARef<File>,
}

impl Socket {
    /// Takes a reference to the socket behind descriptor `fd` of the current task.
    ///
    /// Fails with `EBADF` for a closed descriptor, `ENOTSOCK` for a file that is no socket, and
    /// `EINVAL` for a socket of another kind.
    pub fn from_fd(fd: u32) -> Result<Self> {
        let file = LocalFile::fget(fd)?;
        // SAFETY: The file is valid.
        let sock = NonNull::new(unsafe { bindings::sock_from_file(file.as_ptr()) });
        let sock = sock.ok_or(ENOTSOCK)?.as_ptr();
        // SAFETY: The socket lives as long as its file.
        if !unsafe { bindings::sock_is_stream(sock) } {
            return Err(EINVAL);
        }
        // SAFETY: Sockets have no position: `fdget_pos` locks none of theirs.
        let file = unsafe { LocalFile::assume_no_fdget_pos(file) };
        // INVARIANT: Checked just above.
        Ok(Self { file })
    }

    #[inline]
    fn as_raw(&self) -> *mut bindings::socket {
        // SAFETY: The file is valid, and by the type invariant a socket's.
        unsafe { bindings::sock_from_file(self.file.as_ptr()) }
    }

    /// Who waits for the socket. It lives as long as the socket.
    #[inline]
    pub(crate) fn wait_queue(&self) -> *mut bindings::wait_queue_head {
        // SAFETY: The socket is valid, and the queue is a part of it.
        unsafe { &raw mut (*self.as_raw()).wq.wait }
    }

    /// Whether what is sent goes through an upper layer protocol, such as TLS, which may come at any
    /// time. Does not sleep.
    #[inline]
    pub fn has_ulp(&self) -> bool {
        // SAFETY: By the type invariant; the function reads a word.
        unsafe { bindings::inet_csk_has_ulp(self.as_raw()) }
    }

    /// Whether some task has the socket's lock just now. Does not sleep.
    #[inline]
    pub fn is_locked(&self) -> bool {
        // SAFETY: By the type invariant; the function reads a word.
        unsafe { bindings::sock_owned_by_user_nocheck(self.as_raw()) }
    }

    /// For how long, in jiffies, [`Self::send`] and [`Self::send_bytes`] wait for room at most. Other
    /// users of the socket can change that, too. Does not sleep.
    #[inline]
    pub fn set_send_timeout(&self, jiffies: ffi::c_long) {
        // SAFETY: By the type invariant; the function writes a word.
        unsafe { bindings::sock_set_sndtimeo(self.as_raw(), jiffies) };
    }

    /// For how long, in jiffies, [`Self::receive`] waits for bytes at most. Other users of the socket
    /// can change that, too. Does not sleep.
    #[inline]
    pub fn set_receive_timeout(&self, jiffies: ffi::c_long) {
        // SAFETY: By the type invariant; the function writes a word.
        unsafe { bindings::sock_set_rcvtimeo(self.as_raw(), jiffies) };
    }

    /// The address that the socket is bound to. Sleeps for the socket's lock.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        // SAFETY: The socket is valid, and `addr` has room for any address.
        SocketAddr::new(|addr| unsafe { bindings::kernel_getsockname(self.as_raw(), addr) })
    }

    /// The address of the peer. Sleeps for the socket's lock. Fails with `ENOTCONN` when there is
    /// none any more.
    pub fn peer_addr(&self) -> Result<SocketAddr> {
        // SAFETY: As above.
        SocketAddr::new(|addr| unsafe { bindings::kernel_getpeername(self.as_raw(), addr) })
    }

    /// Ends both directions: the peer sees the end of the stream, and who waits in
    /// [`Self::send`] or [`Self::receive`] returns. Sleeps only for the socket's lock.
    #[inline]
    pub fn shutdown(&self) {
        // SAFETY: By the type invariant. A socket that is not connected any more needs none.
        unsafe {
            bindings::kernel_sock_shutdown(self.as_raw(), bindings::sock_shutdown_cmd_SHUT_RDWR)
        };
    }

    /// Ends the direction to the peer, who sees the end of the stream after what was sent. Sleeps
    /// only for the socket's lock.
    #[inline]
    pub fn shutdown_send(&self) {
        // SAFETY: As above.
        unsafe {
            bindings::kernel_sock_shutdown(self.as_raw(), bindings::sock_shutdown_cmd_SHUT_WR)
        };
    }

    /// Sends from `source`, which must not be empty, and returns how many bytes were taken: at least
    /// one. Never raises SIGPIPE. Sleeps.
    ///
    /// Fails with `EAGAIN` when nothing could be sent without waiting, or in time; with `EPIPE`
    /// after [`Self::shutdown`], and with `EINTR` or `ERESTARTSYS` when a signal has ended the
    /// wait.
    pub fn send<const N: usize>(&self, source: &BvecSource<'_, N>, wait: Wait) -> Result<usize> {
        if self.has_ulp() {
            return self.send_through_ulp(source, wait);
        }
        // SAFETY: `source` is borrowed for longer than the call.
        unsafe { self.send_iter(source.iter(), wait) }
    }

    /// Sends the pieces at the beginning of `source` that are all of pages that the protocol may
    /// keep references to, or all of others, of which it gets a copy: a page that has no references
    /// may be somebody else's when the protocol gives back one that it has not taken.
    // Not inlined, for its vector would be on the stack of every send.
    #[inline(never)]
    fn send_through_ulp<const N: usize>(
        &self,
        source: &BvecSource<'_, N>,
        wait: Wait,
    ) -> Result<usize> {
        let mut copied = [const { MaybeUninit::uninit() }; N];
        // SAFETY: `source` and `copied` are borrowed for longer than the call.
        unsafe { self.send_iter(source.refcounted_iter(&mut copied), wait) }
    }

    /// As [`Self::send`], but from `bytes`, wherever they are.
    pub fn send_bytes(&self, bytes: &[u8], wait: Wait) -> Result<usize> {
        let vec = bindings::kvec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut iter = bindings::iov_iter::default();
        // SAFETY: `vec` and `bytes` live longer than the call, and bytes to be sent are not
        // written.
        unsafe {
            bindings::iov_iter_kvec(&mut iter, bindings::ITER_SOURCE, &vec, 1, bytes.len());
            self.send_iter(iter, wait)
        }
    }

    /// # Safety
    ///
    /// What `msg_iter` goes through must be readable during the call.
    unsafe fn send_iter(&self, msg_iter: bindings::iov_iter, wait: Wait) -> Result<usize> {
        let mut msg = bindings::msghdr {
            msg_iter,
            msg_flags: bindings::MSG_NOSIGNAL | Self::flags(wait),
            ..bindings::msghdr::default()
        };
        // SAFETY: The socket is valid and the message complete.
        match unsafe { bindings::sock_sendmsg(self.as_raw(), &mut msg) } {
            0 => Err(EPIPE),
            sent => {
                to_result(sent)?;
                Ok(sent as usize)
            }
        }
    }

    /// Receives into `dest`, and returns how many bytes there were; 0 is the end of the stream.
    /// Sleeps.
    ///
    /// Fails with `EAGAIN` when nothing came without waiting, or in time; and
    /// with `EINTR` or `ERESTARTSYS` when a signal has ended the wait.
    pub fn receive<const N: usize>(&self, dest: &mut BvecDest<'_, N>, wait: Wait) -> Result<usize> {
        let flags = bindings::MSG_NOSIGNAL | Self::flags(wait);
        let mut msg = bindings::msghdr {
            // SAFETY: `dest` is borrowed for longer than the message lives.
            msg_iter: unsafe { dest.iter() },
            msg_flags: flags,
            ..bindings::msghdr::default()
        };
        // SAFETY: The socket is valid and the message complete.
        let received =
            unsafe { bindings::sock_recvmsg(self.as_raw(), &mut msg, flags as ffi::c_int) };
        to_result(received)?;
        Ok(received as usize)
    }

    #[inline]
    const fn flags(wait: Wait) -> u32 {
        match wait {
            Wait::No => bindings::MSG_DONTWAIT,
            Wait::Some => 0,
            Wait::All => bindings::MSG_WAITALL,
        }
    }
}

/// A socket that carries block I/O: it may use memory reserves, never waits for memory that only
/// block I/O can free, and its locks have classes of their own. With lockdep it keeps the module
/// loaded for as long as anybody has the socket.
///
/// A user who keeps the socket has it back without that after [`Self::give_back`], or when the value
/// is dropped, which must not be where the former must not be called.
#[pin_data(PinnedDrop)]
pub struct BlockSocket {
    socket: Socket,
    /// `None` once the socket is given back.
    #[pin]
    before: Mutex<Option<Before>>,
}

/// What a socket had before it carried block I/O.
///
/// # Invariants
///
/// Both are what `sock_set_block_io` said of the socket that the value is kept with, and nobody else
/// has them.
struct Before {
    allocation: bindings::gfp_t,
    memalloc: bool,
}

impl BlockSocket {
    /// Prepares `socket`. Takes back what its user may have set that would keep it from taking a
    /// reply as soon as that is there, from waiting for one, or from being closed at once. Sleeps for
    /// the socket's lock.
    pub fn new(socket: Socket) -> impl PinInit<Self, Error> {
        let this = try_pin_init!(Self {
            socket,
            before <- new_mutex!(None),
        });
        this.pin_chain(|this| {
            let mut allocation = 0;
            // SAFETY: The socket is valid, and `allocation` can be written.
            let memalloc =
                unsafe { bindings::sock_set_block_io(this.socket.as_raw(), &mut allocation) };
            // INVARIANT: Said just above, of the socket beside it.
            *this.before.lock() = Some(Before {
                allocation,
                memalloc,
            });
            Ok(())
        })
    }

    /// Gives the socket back to its user, or returns once whoever does has done so.
    ///
    /// Context: sleeps for the socket's lock and for the lock of processors that come and go, inside
    /// of which memory is allocated: nobody whom block I/O waits for may call this.
    pub fn give_back(&self) {
        let mut before = self.before.lock();
        if let Some(before) = before.take() {
            // SAFETY: The socket is valid. By the type invariant of `before` this takes back what was
            // done to it, and nobody does so again.
            unsafe {
                bindings::sock_clear_block_io(
                    self.socket.as_raw(),
                    before.allocation,
                    before.memalloc,
                )
            };
        }
    }
}

impl Deref for BlockSocket {
    type Target = Socket;

    #[inline]
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

#[pinned_drop]
impl PinnedDrop for BlockSocket {
    #[inline]
    fn drop(self: Pin<&mut Self>) {
        self.give_back();
    }
}
