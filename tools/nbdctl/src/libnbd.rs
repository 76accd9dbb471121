// SPDX-License-Identifier: GPL-2.0

//! The few functions of libnbd's C API that a negotiation takes; see libnbd(3). All foreign
//! functions of this program are here.

use std::ffi::{c_char, c_int, CStr, CString};
use std::marker::{PhantomData, PhantomPinned};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

// From libnbd.h.
const TLS_DISABLE: c_int = 0;
const ALLOW_TRANSPORT_TCP: u32 = 1;
const ALLOW_TRANSPORT_UNIX: u32 = 2;
const SIZE_MINIMUM: c_int = 0;

#[repr(C)]
struct NbdHandle {
    _data: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

#[link(name = "nbd")]
unsafe extern "C" {
    fn nbd_create() -> *mut NbdHandle;
    fn nbd_close(h: *mut NbdHandle);
    fn nbd_get_error() -> *const c_char;
    fn nbd_set_request_structured_replies(h: *mut NbdHandle, request: bool) -> c_int;
    fn nbd_set_request_extended_headers(h: *mut NbdHandle, request: bool) -> c_int;
    fn nbd_set_request_meta_context(h: *mut NbdHandle, request: bool) -> c_int;
    fn nbd_set_uri_allow_tls(h: *mut NbdHandle, tls: c_int) -> c_int;
    fn nbd_set_uri_allow_transports(h: *mut NbdHandle, mask: u32) -> c_int;
    fn nbd_aio_connect_uri(h: *mut NbdHandle, uri: *const c_char) -> c_int;
    fn nbd_poll2(h: *mut NbdHandle, fd: c_int, timeout: c_int) -> c_int;
    fn nbd_aio_is_created(h: *mut NbdHandle) -> c_int;
    fn nbd_aio_is_ready(h: *mut NbdHandle) -> c_int;
    fn nbd_aio_is_dead(h: *mut NbdHandle) -> c_int;
    fn nbd_aio_is_closed(h: *mut NbdHandle) -> c_int;
    fn nbd_aio_get_fd(h: *mut NbdHandle) -> c_int;
    fn nbd_get_structured_replies_negotiated(h: *mut NbdHandle) -> c_int;
    fn nbd_get_extended_headers_negotiated(h: *mut NbdHandle) -> c_int;
    fn nbd_get_tls_negotiated(h: *mut NbdHandle) -> c_int;
    fn nbd_get_size(h: *mut NbdHandle) -> i64;
    fn nbd_get_block_size(h: *mut NbdHandle, size_type: c_int) -> i64;
    fn nbd_is_read_only(h: *mut NbdHandle) -> c_int;
    fn nbd_is_rotational(h: *mut NbdHandle) -> c_int;
    fn nbd_can_flush(h: *mut NbdHandle) -> c_int;
    fn nbd_can_fua(h: *mut NbdHandle) -> c_int;
    fn nbd_can_trim(h: *mut NbdHandle) -> c_int;
    fn nbd_can_zero(h: *mut NbdHandle) -> c_int;
    fn nbd_can_multi_conn(h: *mut NbdHandle) -> c_int;
}

/// What libnbd says of a call that failed.
#[derive(Debug)]
pub struct Failure(pub String);

type Result<T> = std::result::Result<T, Failure>;

/// The last error of a call in this thread.
fn failure() -> Failure {
    // SAFETY: It may be called at any time, and looks at this thread's last error only.
    let message = unsafe { nbd_get_error() };
    if message.is_null() {
        return Failure("unknown error of libnbd".to_owned());
    }
    // SAFETY: It is not null, so it is a C string that lives until the next call of libnbd in
    // this thread; it is not used after that.
    let message = unsafe { CStr::from_ptr(message) };
    Failure(message.to_string_lossy().into_owned())
}

/// What the state of a connection is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing has been sent to a server.
    Created,
    /// Connecting, or negotiating.
    Busy,
    /// The negotiation has succeeded.
    Ready,
    /// The connection has failed, or the server has closed it.
    Dead,
}

/// A connection to a server.
///
/// # Invariants
///
/// The pointer is what `nbd_create` has returned, and `nbd_close` has not been called with it.
pub struct Handle(NonNull<NbdHandle>);

type Ask = unsafe extern "C" fn(*mut NbdHandle) -> c_int;

impl Handle {
    /// A handle for a session that the kernel can take over: with simple replies, no encryption,
    /// over TCP or Unix sockets.
    pub fn new() -> Result<Self> {
        // SAFETY: It may be called at any time.
        let handle = NonNull::new(unsafe { nbd_create() }).ok_or_else(failure)?;
        // INVARIANT: `nbd_create` has just returned it.
        let handle = Self(handle);
        let h = handle.0.as_ptr();
        // SAFETY: By the type invariant `h` is a live handle. It has not been connected, which is
        // when these may be called.
        let results = unsafe {
            [
                nbd_set_request_structured_replies(h, false),
                nbd_set_request_extended_headers(h, false),
                nbd_set_request_meta_context(h, false),
                nbd_set_uri_allow_tls(h, TLS_DISABLE),
                nbd_set_uri_allow_transports(h, ALLOW_TRANSPORT_TCP | ALLOW_TRANSPORT_UNIX),
            ]
        };
        if results.contains(&-1) {
            Err(failure())
        } else {
            Ok(handle)
        }
    }

    fn ask(&self, question: Ask) -> Result<bool> {
        // SAFETY: By the type invariant the pointer is a live handle. The functions that are passed
        // here take nothing else, may be called in any state and report a wrong one as an error.
        match unsafe { question(self.0.as_ptr()) } {
            -1 => Err(failure()),
            answer => Ok(answer != 0),
        }
    }

    /// Begins to connect. Context: may sleep, until a name is resolved.
    pub fn start(&mut self, uri: &CString) -> Result<()> {
        // SAFETY: By the type invariant the pointer is a live handle, and `uri` is a C string that
        // libnbd copies.
        match unsafe { nbd_aio_connect_uri(self.0.as_ptr(), uri.as_ptr()) } {
            -1 => Err(failure()),
            _ => Ok(()),
        }
    }

    /// Goes on with the negotiation when the server has said something; returns at the latest after
    /// `timeout`, or when `wake` can be read.
    pub fn step(&mut self, wake: Option<BorrowedFd<'_>>, timeout: Duration) -> Result<()> {
        let timeout = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        let wake = wake.map_or(-1, |fd| fd.as_raw_fd());
        // SAFETY: By the type invariant the pointer is a live handle, and `wake` is -1, for none,
        // or is open during the call.
        match unsafe { nbd_poll2(self.0.as_ptr(), wake, timeout) } {
            -1 => Err(failure()),
            _ => Ok(()),
        }
    }

    pub fn state(&self) -> Result<State> {
        Ok(if self.ask(nbd_aio_is_ready)? {
            State::Ready
        } else if self.ask(nbd_aio_is_dead)? || self.ask(nbd_aio_is_closed)? {
            State::Dead
        } else if self.ask(nbd_aio_is_created)? {
            State::Created
        } else {
            State::Busy
        })
    }

    /// True if the connection is one whose replies the kernel does not understand.
    pub fn is_beyond_kernel(&self) -> Result<bool> {
        Ok(self.ask(nbd_get_structured_replies_negotiated)?
            || self.ask(nbd_get_extended_headers_negotiated)?
            || self.ask(nbd_get_tls_negotiated)?)
    }

    /// The size of the export in bytes.
    pub fn size(&self) -> Result<u64> {
        // SAFETY: By the type invariant the pointer is a live handle.
        let size = unsafe { nbd_get_size(self.0.as_ptr()) };
        u64::try_from(size).map_err(|_| failure())
    }

    /// The smallest block in bytes; 0 if the server does not say.
    pub fn minimum_block(&self) -> Result<u64> {
        // SAFETY: By the type invariant the pointer is a live handle.
        let size = unsafe { nbd_get_block_size(self.0.as_ptr(), SIZE_MINIMUM) };
        u64::try_from(size).map_err(|_| failure())
    }

    pub fn is_read_only(&self) -> Result<bool> {
        self.ask(nbd_is_read_only)
    }

    pub fn is_rotational(&self) -> Result<bool> {
        self.ask(nbd_is_rotational)
    }

    pub fn can_flush(&self) -> Result<bool> {
        self.ask(nbd_can_flush)
    }

    pub fn can_fua(&self) -> Result<bool> {
        self.ask(nbd_can_fua)
    }

    pub fn can_trim(&self) -> Result<bool> {
        self.ask(nbd_can_trim)
    }

    pub fn can_zero(&self) -> Result<bool> {
        self.ask(nbd_can_zero)
    }

    pub fn can_multi_conn(&self) -> Result<bool> {
        self.ask(nbd_can_multi_conn)
    }

    /// Takes the connection away from libnbd. What `nbd_close` closes after that is another
    /// descriptor of the same socket: it neither shuts the socket down nor sends anything.
    pub fn into_socket(self) -> std::io::Result<OwnedFd> {
        // SAFETY: By the type invariant the pointer is a live handle.
        let fd = unsafe { nbd_aio_get_fd(self.0.as_ptr()) };
        if fd < 0 {
            return Err(std::io::Error::other(failure().0));
        }
        // SAFETY: The descriptor is open until `nbd_close`, which comes after the borrow, when
        // `self` is dropped.
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the pointer is a live handle, and nobody uses it after
        // this.
        unsafe { nbd_close(self.0.as_ptr()) }
    }
}
