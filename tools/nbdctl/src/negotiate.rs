// SPDX-License-Identifier: GPL-2.0

//! Connects to a server and agrees on an export, all by libnbd, up to the point where the kernel
//! takes the socket over.

use crate::error::{Error, Kind, Result};
use crate::export::{Export, Flags};
use crate::libnbd::{Failure, Handle, State};
use crate::process::Signals;
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::net::{recv, sockopt, RecvFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// A connection in the transmission phase, of which no byte has been read or written.
#[derive(Debug)]
pub struct Negotiated {
    pub socket: OwnedFd,
    pub export: Export,
}

/// Refuses a URI of a kind that the kernel cannot go on with, in clearer words than libnbd would.
/// Whether it is valid is for libnbd to say.
pub fn check_uri(uri: &str) -> Result<()> {
    let scheme = uri
        .split_once("://")
        .map_or(uri, |(scheme, _)| scheme)
        .to_ascii_lowercase();
    let refuse = |reason: &str, hint: &str| {
        Err(Error::new(Kind::Usage, format!("{uri}: {reason}")).hint(hint.to_owned()))
    };
    match scheme.as_str() {
        "nbd" | "nbd+unix" => Ok(()),
        "nbds" | "nbds+unix" | "nbds+vsock" | "nbds+ssh" => refuse(
            "the kernel cannot take over a connection that libnbd has encrypted with TLS",
            "use nbd:// in a trusted network, or through a tunnel such as WireGuard or stunnel",
        ),
        "nbd+ssh" | "nbd+vsock" => refuse(
            "the kernel takes TCP and Unix sockets only",
            "use nbd:// or nbd+unix://",
        ),
        _ => refuse(
            "this is not the URI of an NBD server",
            "for example nbd://server/export or nbd+unix:///export?socket=/run/nbd.sock",
        ),
    }
}

fn wrong(uri: &str, failure: &Failure) -> Error {
    Error::new(Kind::Server, format!("{uri}: {}", reason(&failure.0)))
}

/// libnbd puts the name of the function that failed before its words.
fn reason(message: &str) -> &str {
    match message.split_once(": ") {
        Some((function, rest)) if function.starts_with("nbd_") => rest,
        _ => message,
    }
}

/// Connects and negotiates, within `timeout` unless it takes longer to resolve the name; one of
/// `signals` ends it while it waits. Context: may sleep.
pub fn connect(uri: &str, timeout: Duration, signals: Option<&Signals>) -> Result<Negotiated> {
    check_uri(uri)?;
    let text = CString::new(uri).map_err(|_| Error::new(Kind::Usage, "the URI has a null byte"))?;
    let deadline = Instant::now() + timeout;
    let mut handle = Handle::new().map_err(|f| wrong(uri, &f))?;

    if let Err(failure) = handle.start(&text) {
        let mut error = wrong(uri, &failure);
        if matches!(handle.state(), Ok(State::Created)) {
            error.kind = Kind::Usage;
        }
        return Err(error);
    }
    loop {
        match handle.state().map_err(|f| wrong(uri, &f))? {
            State::Ready => break,
            State::Dead => {
                return Err(Error::new(
                    Kind::Server,
                    format!("{uri}: the server has closed the connection"),
                ));
            }
            State::Created | State::Busy => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(
                Kind::Server,
                format!("{uri}: no answer within {} s", timeout.as_secs()),
            ));
        }
        if signals.is_some_and(Signals::is_set) {
            return Err(Error::new(Kind::Failed, format!("{uri}: interrupted")));
        }
        // A whole millisecond, or it would spin through the last one.
        handle
            .step(signals.map(AsFd::as_fd), left.max(Duration::from_millis(1)))
            .map_err(|f| wrong(uri, &f))?;
    }

    if handle.is_beyond_kernel().map_err(|f| wrong(uri, &f))? {
        return Err(Error::new(
            Kind::Server,
            format!("{uri}: the server insists on replies that the kernel does not understand"),
        ));
    }
    let export = describe(&handle).map_err(|f| wrong(uri, &f))?;
    let failed = |e: std::io::Error| Error::new(Kind::Server, format!("{uri}: {e}"));
    let socket = handle.into_socket().map_err(failed)?;
    check_silent(&socket).map_err(failed)?;
    prepare(&socket).map_err(|e| failed(e.into()))?;
    Ok(Negotiated { socket, export })
}

fn describe(handle: &Handle) -> std::result::Result<Export, Failure> {
    let flags = Flags::HAS_FLAGS
        .with(Flags::READ_ONLY, handle.is_read_only()?)
        .with(Flags::FLUSH, handle.can_flush()?)
        .with(Flags::FUA, handle.can_fua()?)
        .with(Flags::ROTATIONAL, handle.is_rotational()?)
        .with(Flags::TRIM, handle.can_trim()?)
        .with(Flags::WRITE_ZEROES, handle.can_zero()?)
        .with(Flags::MULTI_CONN, handle.can_multi_conn()?);
    Ok(Export {
        size: handle.size()?,
        flags,
        minimum_block: handle.minimum_block()?,
    })
}

/// A server says nothing until it is asked. libnbd reads exactly the bytes of the handshake, so
/// what would be here is not lost, but the kernel would take it for a reply.
fn check_silent(socket: &OwnedFd) -> std::io::Result<()> {
    let mut byte = [0_u8; 1];
    match recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(e) => Err(e.into()),
        Ok((0, _)) => Err(std::io::Error::other(
            "the server has closed the connection",
        )),
        Ok(_) => Err(std::io::Error::other(
            "the server talks without being asked",
        )),
    }
}

/// Undoes what libnbd needed, and has TCP notice a peer that vanishes while nothing is sent.
fn prepare(socket: &OwnedFd) -> rustix::io::Result<()> {
    let socket = socket.as_fd();
    fcntl_setfl(socket, fcntl_getfl(socket)? - OFlags::NONBLOCK)?;
    sockopt::set_socket_keepalive(socket, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_for_the_kernel() {
        for uri in [
            "nbd://host",
            "nbd://host:1/x",
            "nbd+unix:///?socket=/s",
            "NBD://[::1]/",
        ] {
            assert_eq!(check_uri(uri), Ok(()), "{uri}");
        }
    }

    #[test]
    fn other_uris_say_why_not() {
        for (uri, word) in [
            ("nbds://host", "TLS"),
            ("nbds+unix:///?socket=/s", "TLS"),
            ("nbd+vsock://2", "TCP and Unix"),
            ("nbd+ssh://host", "TCP and Unix"),
            ("http://host", "not the URI"),
            ("host", "not the URI"),
        ] {
            let error = check_uri(uri).unwrap_err();
            assert_eq!(error.kind, Kind::Usage);
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn the_function_is_left_out() {
        assert_eq!(
            reason("nbd_aio_connect_uri: connect: refused"),
            "connect: refused"
        );
        assert_eq!(reason("connect: refused"), "connect: refused");
    }
}
