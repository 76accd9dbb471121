// SPDX-License-Identifier: GPL-2.0

//! Stream sockets that user space passes to the kernel.
//!
//! C header: [`include/linux/net.h`](srctree/include/linux/net.h)

use crate::{
    bindings,
    bvec::{
        BvecDest,
        BvecSource,
        RingSource, //
    },
    error::to_result,
    ffi,
    fs::file::{
        File,
        LocalFile, //
    },
    net::addr::SocketAddr,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        Mutex, //
    }, //
};
use core::{
    mem::MaybeUninit,
    ops::Deref,
    ptr::NonNull, //
};

/// How long a call may wait for the peer. [`Socket`] has an example.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The call does not wait: it transfers what it can, or fails with `EAGAIN`.
    No,
    /// The call waits until it can transfer a byte, or until the socket's timeout.
    Some,
    /// The call waits until it has transferred everything, or until the socket's timeout.
    All,
}

/// A TCP or an `AF_UNIX` stream socket, connected or not.
///
/// The value owns one reference to the socket's file.
///
/// C struct: `struct socket`.
///
/// Context: any, when it is dropped.
///
/// # Examples
///
/// ```
/// use kernel::{
///     bvec::BvecDest,
///     net::socket::{
///         Socket,
///         Wait, //
///     }, //
/// };
///
/// /// Asks the server behind descriptor `fd`, and returns its answer.
/// fn ask(fd: u32, question: &[u8]) -> Result<KVec<u8>> {
///     let socket = Socket::from_fd(fd)?;
///     socket.set_receive_timeout(1000);
///     socket.send_bytes(question, Wait::All)?;
///     let mut answer = KVec::from_elem(0, 64, GFP_KERNEL)?;
///     let mut dest = BvecDest::<1>::new(usize::MAX);
///     // What is as small as this is in a slab.
///     assert!(dest.push_bytes(&mut answer));
///     let bytes = socket.receive(&mut dest, Wait::Some)?;
///     answer.truncate(bytes);
///     Ok(answer)
/// }
///
/// assert_eq!(ask(u32::MAX, b"?").err(), Some(EBADF));
/// ```
///
/// # Invariants
///
/// `file` is the file of a TCP or an `AF_UNIX` stream socket that supports `shutdown`.
#[derive(Clone)]
pub struct Socket {
    file: ARef<File>,
}

impl Socket {
    /// Takes a reference to the socket of file descriptor `fd` of the current task.
    ///
    /// Fails with `EBADF` if the descriptor is closed, with `ENOTSOCK` if its file is no socket,
    /// and with `EINVAL` if the socket is of another kind.
    ///
    /// Context: process context; does not sleep.
    pub fn from_fd(fd: u32) -> Result<Self> {
        let file = LocalFile::fget(fd)?;
        // SAFETY: The file is valid, since `file` owns a reference to it.
        let sock = NonNull::new(unsafe { bindings::sock_from_file(file.as_ptr()) });
        let sock = sock.ok_or(ENOTSOCK)?.as_ptr();
        // SAFETY: The socket is valid, since it lives as long as its file, to which `file` owns a
        // reference. It has a `struct sock`, since a file is only made for a complete socket.
        if !unsafe { bindings::sock_is_stream(sock) } {
            return Err(EINVAL);
        }
        // SAFETY: An `fdget_pos` of this file has not locked a position that other threads could
        // race for: the socket layer opens its files by `stream_open`, so that they have none.
        let file = unsafe { LocalFile::assume_no_fdget_pos(file) };
        // INVARIANT: `sock_is_stream` has checked the kind of socket and that it supports
        // `shutdown`.
        Ok(Self { file })
    }

    #[inline]
    pub(crate) fn as_raw(&self) -> *mut bindings::socket {
        // SAFETY: The file is valid, since `self.file` owns a reference to it. By the type
        // invariant it is a socket's, so that the result is not null.
        unsafe { bindings::sock_from_file(self.file.as_ptr()) }
    }

    /// Returns the queue of the tasks and callbacks that wait for the socket. It lives as long as
    /// the socket.
    ///
    /// Context: any.
    #[inline]
    pub(crate) fn wait_queue(&self) -> *mut bindings::wait_queue_head {
        // SAFETY: The socket is valid, since it lives as long as its file. The queue is a part of
        // it, of which only the address is taken.
        unsafe { &raw mut (*self.as_raw()).wq.wait }
    }

    /// Returns the `struct sock`, which lives as long as the socket.
    ///
    /// Context: any.
    #[inline]
    pub(crate) fn sk(&self) -> *mut bindings::sock {
        // SAFETY: The socket is valid, since it lives as long as its file, and has a `struct sock`.
        unsafe { bindings::sock_sk(self.as_raw()) }
    }

    /// Returns whether there are bytes to receive. The answer may be out of date at once.
    ///
    /// Context: any.
    #[inline]
    pub fn has_data(&self) -> bool {
        // SAFETY: The `struct sock` is valid, since it lives as long as the socket. The function
        // reads words of it, for which it needs no lock.
        unsafe { bindings::sk_has_data(self.sk()) }
    }

    /// Returns whether an upper layer protocol, such as TLS, is attached to the socket. User space
    /// can attach one at any time.
    ///
    /// Context: any.
    #[inline]
    pub fn has_ulp(&self) -> bool {
        // SAFETY: The socket is valid, since it lives as long as its file, and has a `struct sock`.
        // The function reads a word of that, for which it needs no lock.
        unsafe { bindings::sk_has_ulp(self.sk()) }
    }

    /// Returns whether a task owns the socket's lock. The answer may be out of date at once.
    ///
    /// Context: any.
    #[inline]
    pub fn is_locked(&self) -> bool {
        // SAFETY: The socket is valid, since it lives as long as its file, and has a `struct sock`.
        // The function reads a word of that, for which it needs no lock.
        unsafe { bindings::sock_owned_by_user_nocheck(self.as_raw()) }
    }

    /// Sets for how many jiffies [`Self::send`] and [`Self::send_bytes`] wait for room at most.
    /// Other users of the socket can change this, too.
    ///
    /// Context: any.
    #[inline]
    pub fn set_send_timeout(&self, jiffies: ffi::c_long) {
        // SAFETY: The socket is valid, since it lives as long as its file, and has a `struct sock`.
        // The function writes a word of that, for which it needs no lock.
        unsafe { bindings::sock_set_sndtimeo(self.as_raw(), jiffies) };
    }

    /// Sets for how many jiffies [`Self::receive`] waits for bytes at most. Other users of the
    /// socket can change this, too.
    ///
    /// Context: any.
    #[inline]
    pub fn set_receive_timeout(&self, jiffies: ffi::c_long) {
        // SAFETY: The socket is valid, since it lives as long as its file, and has a `struct sock`.
        // The function writes a word of that, for which it needs no lock.
        unsafe { bindings::sock_set_rcvtimeo(self.as_raw(), jiffies) };
    }

    /// Returns the address that the socket is bound to. Fails as the protocol does.
    ///
    /// Context: process context; sleeps for the socket's lock.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        // SAFETY: The socket is valid, since it lives as long as its file. `SocketAddr::new` passes
        // a pointer to room for an address of any family.
        SocketAddr::new(|addr| unsafe { bindings::kernel_getsockname(self.as_raw(), addr) })
    }

    /// Returns the address of the peer. Fails with `ENOTCONN` if the socket is not connected.
    ///
    /// Context: process context; sleeps for the socket's lock.
    pub fn peer_addr(&self) -> Result<SocketAddr> {
        // SAFETY: The socket is valid, since it lives as long as its file. `SocketAddr::new` passes
        // a pointer to room for an address of any family.
        SocketAddr::new(|addr| unsafe { bindings::kernel_getpeername(self.as_raw(), addr) })
    }

    /// Shuts both directions down: the peer sees the end of the stream, and tasks that wait in
    /// [`Self::send`] or [`Self::receive`] return.
    ///
    /// Context: process context; sleeps for the socket's lock, but not for the peer.
    #[inline]
    pub fn shutdown(&self) {
        // SAFETY: The socket is valid, since it lives as long as its file, and supports `shutdown`
        // by the type invariant. The only failure is that it is not connected, so that there is
        // nothing to shut down.
        unsafe {
            bindings::kernel_sock_shutdown(self.as_raw(), bindings::sock_shutdown_cmd_SHUT_RDWR)
        };
    }

    /// Shuts the direction to the peer down: the peer sees the end of the stream after what was
    /// sent.
    ///
    /// Context: process context; sleeps for the socket's lock, but not for the peer.
    #[inline]
    pub fn shutdown_send(&self) {
        // SAFETY: The socket is valid, since it lives as long as its file, and supports `shutdown`
        // by the type invariant. The only failure is that it is not connected.
        unsafe {
            bindings::kernel_sock_shutdown(self.as_raw(), bindings::sock_shutdown_cmd_SHUT_WR)
        };
    }

    /// Sends from `source`, which must not be empty, and returns the number of bytes that the
    /// socket has accepted, 1 at least. It raises no `SIGPIPE`.
    ///
    /// Fails with `EAGAIN` if nothing could be sent without waiting, or before the timeout, with
    /// `EPIPE` after [`Self::shutdown`], with `EINTR` or `ERESTARTSYS` if a signal has interrupted
    /// the wait, and with the error of the connection, such as `ECONNRESET`.
    ///
    /// Context: may sleep: for the socket's lock and for memory in any case, and for the peer
    /// unless `wait` is [`Wait::No`].
    pub fn send<const N: usize>(&self, source: &BvecSource<'_, N>, wait: Wait) -> Result<usize> {
        if self.has_ulp() {
            return self.send_through_ulp(source, wait);
        }
        // SAFETY: `source`, and by its invariant its data, is borrowed during the call, and is not
        // moved.
        unsafe { self.send_iter(source.iter(), wait, 0) }
    }

    /// Returns how many bytes of what was sent the peer does not have yet: a TCP peer has not
    /// acknowledged them, and an `AF_UNIX` peer has not read them. The answer may be out of date at
    /// once.
    ///
    /// Context: process context; does not sleep.
    #[inline]
    pub fn unread(&self) -> usize {
        // SAFETY: The socket is valid, since it lives as long as its file, and has a `struct sock`.
        // The function reads words of that, for which it needs no lock, and of the peer, for which
        // it takes the lock under which an `AF_UNIX` socket has its peer.
        unsafe { bindings::sock_unread(self.as_raw()) as usize }
    }

    /// Returns how many bytes [`Self::send_pages`] can send without waiting, or [`None`] if it
    /// would copy them. The answer may be out of date at once.
    ///
    /// Context: any.
    #[inline]
    pub fn splice_room(&self) -> Option<usize> {
        // SAFETY: The socket is valid, since it lives as long as its file, and has a `struct sock`.
        // The function reads words of that, for which it needs no lock.
        usize::try_from(unsafe { bindings::sock_splice_room(self.as_raw()) }).ok()
    }

    /// As [`Self::send`], but does not copy the data: the socket keeps references to the pages.
    ///
    /// Context: that of [`Self::send`].
    pub fn send_pages<const N: usize>(
        &self,
        source: &RingSource<'_, N>,
        wait: Wait,
    ) -> Result<usize> {
        // SAFETY: `source`, and by its invariant its data, is borrowed during the call, and is not
        // moved. By its type invariant the references to its pages are counted.
        unsafe { self.send_iter(source.iter(), wait, bindings::MSG_SPLICE_PAGES) }
    }

    /// Sends the first pieces of `source` that are all in pages with counted references, which the
    /// protocol may keep, or all in others, which it copies. A page whose references are not
    /// counted may belong to another user by the time the protocol drops a reference that was never
    /// taken.
    // This is not inlined, since its array would take stack in every send.
    #[inline(never)]
    fn send_through_ulp<const N: usize>(
        &self,
        source: &BvecSource<'_, N>,
        wait: Wait,
    ) -> Result<usize> {
        let mut copied = [const { MaybeUninit::uninit() }; N];
        // SAFETY: `source`, and by its invariant its data, and `copied` are borrowed during the
        // call, and are not moved.
        unsafe { self.send_iter(source.refcounted_iter(&mut copied), wait, 0) }
    }

    /// Sends from `bytes`, which must not be empty and may be in any memory, and returns the number
    /// of bytes that the socket has accepted, 1 at least. It fails as [`Self::send`] does.
    ///
    /// Context: that of [`Self::send`].
    pub fn send_bytes(&self, bytes: &[u8], wait: Wait) -> Result<usize> {
        let vec = bindings::kvec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut iter = bindings::iov_iter::default();
        // SAFETY: `vec` and `bytes` live longer than the call, and `bytes` is as long as the
        // iterator says. It is a source, so that the bytes are only read.
        unsafe {
            bindings::iov_iter_kvec(&mut iter, bindings::ITER_SOURCE, &vec, 1, bytes.len());
            self.send_iter(iter, wait, 0)
        }
    }

    /// # Safety
    ///
    /// The memory that `msg_iter` goes through, and its vectors, must be valid for reads during the
    /// call. If `flags` has `MSG_SPLICE_PAGES`, the references to its pages must be counted.
    unsafe fn send_iter(
        &self,
        msg_iter: bindings::iov_iter,
        wait: Wait,
        flags: u32,
    ) -> Result<usize> {
        let mut msg = bindings::msghdr {
            msg_iter,
            msg_flags: bindings::MSG_NOSIGNAL | Self::flags(wait) | flags,
            ..bindings::msghdr::default()
        };
        // SAFETY: The socket is valid, since it lives as long as its file. The message is
        // initialised, without an address or control data, and by the safety requirements its
        // iterator is valid.
        match unsafe { bindings::sock_sendmsg(self.as_raw(), &mut msg) } {
            0 => Err(EPIPE),
            sent => {
                to_result(sent)?;
                Ok(sent as usize)
            }
        }
    }

    /// Receives into `dest` and returns the number of bytes, of which 0 is the end of the stream.
    ///
    /// Fails with `EAGAIN` if nothing came without waiting, or before the timeout, with `EINTR` or
    /// `ERESTARTSYS` if a signal has interrupted the wait, and with the error of the connection,
    /// such as `ECONNRESET`.
    ///
    /// Context: may sleep: for the socket's lock in any case, and for the peer unless `wait` is
    /// [`Wait::No`].
    pub fn receive<const N: usize>(&self, dest: &mut BvecDest<'_, N>, wait: Wait) -> Result<usize> {
        let flags = bindings::MSG_NOSIGNAL | Self::flags(wait);
        let mut msg = bindings::msghdr {
            // SAFETY: `dest`, and by its invariant its data, is borrowed for longer than the
            // message lives, and is not moved.
            msg_iter: unsafe { dest.iter() },
            msg_flags: flags,
            ..bindings::msghdr::default()
        };
        // SAFETY: The socket is valid, since it lives as long as its file. The message is
        // initialised, without an address or control data. Its iterator is one over the pieces of
        // `dest`, which is borrowed during the call, and by its type invariant they are valid for
        // writes.
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

/// A socket that carries block I/O: it may use memory reserves, does not wait for memory that only
/// block I/O can free, has room for long writes, and its locks have lock classes of their own. With
/// lockdep, the socket keeps the module loaded until it is freed.
///
/// [`Self::give_back`] and the drop of the value restore the settings of the socket's user.
///
/// Context: the drop has the context of [`Self::give_back`].
///
/// # Examples
///
/// ```
/// use kernel::net::socket::{
///     BlockSocket,
///     Socket, //
/// };
///
/// fn carry_block_io(fd: u32) -> Result<Pin<KBox<BlockSocket>>> {
///     KBox::pin_init(BlockSocket::new(Socket::from_fd(fd)?), GFP_KERNEL)
/// }
/// ```
#[pin_data(PinnedDrop)]
pub struct BlockSocket {
    socket: Socket,
    /// [`None`] after the settings were restored.
    #[pin]
    before: Mutex<Option<Before>>,
}

/// The settings of a socket before it carried block I/O.
///
/// # Invariants
///
/// All are what `sock_set_block_io` has returned for the socket that the value is kept with, and
/// there is no other value for that call.
struct Before {
    allocation: bindings::gfp_t,
    sndbuf: ffi::c_int,
    memalloc: bool,
}

impl BlockSocket {
    /// Prepares `socket` for block I/O. This also resets those settings of the user that would make
    /// a receive wait for more than a reply, or a close linger.
    ///
    /// Context: process context; sleeps for the socket's lock, and for `cpus_read_lock` and the
    /// mutex of jump labels.
    pub fn new(socket: Socket) -> impl PinInit<Self, Error> {
        let this = try_pin_init!(Self {
            socket,
            before <- new_mutex!(None),
        });
        this.pin_chain(|this| {
            let (mut allocation, mut sndbuf) = (0, 0);
            let sock = this.socket.as_raw();
            // SAFETY: The socket is valid, since it lives as long as its file, and has a `struct
            // sock`. `allocation` and `sndbuf` can be written.
            let memalloc =
                unsafe { bindings::sock_set_block_io(sock, &mut allocation, &mut sndbuf) };
            // INVARIANT: `sock_set_block_io` has just returned all for the socket in the same
            // value.
            *this.before.lock() = Some(Before {
                allocation,
                sndbuf,
                memalloc,
            });
            Ok(())
        })
    }

    /// Restores the settings of the socket's user, once. A second call waits for the first.
    ///
    /// Context: process context; sleeps for the socket's lock, and for `cpus_read_lock` and the
    /// mutex of jump labels, under which memory is allocated: no task that block I/O waits for may
    /// call this.
    pub fn give_back(&self) {
        self.restore(&mut self.before.lock());
    }

    fn restore(&self, before: &mut Option<Before>) {
        if let Some(before) = before.take() {
            // SAFETY: The socket is valid, since it lives as long as its file. By the type
            // invariant of `Before` these are the values that `sock_set_block_io` has returned for
            // it, and they are used once, since this function has taken the only value.
            unsafe {
                bindings::sock_clear_block_io(
                    self.socket.as_raw(),
                    before.allocation,
                    before.sndbuf,
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
        // No other task has the value, so that the mutex is free. A task that block I/O waits for
        // may drop a value whose socket is given back, and must not wait for a mutex under which
        // memory is allocated.
        if let Some(mut before) = self.before.try_lock() {
            self.restore(&mut before);
        }
    }
}
