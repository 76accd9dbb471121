// SPDX-License-Identifier: GPL-2.0

//! Addresses of sockets.
//!
//! C header: [`include/linux/socket.h`](srctree/include/linux/socket.h)

use crate::{
    bindings,
    fmt,
    prelude::*,
    str::BStr, //
};
use core::net::{
    Ipv4Addr,
    Ipv6Addr, //
};

/// The offset of the address in a `struct sockaddr_storage`, behind the family.
const FAMILY_LEN: usize = 2;

/// The address of one end of a socket.
///
/// C struct: `struct sockaddr_storage`.
///
/// # Examples
///
/// ```
/// use kernel::net::addr::SocketAddr;
///
/// fn log(peer: &SocketAddr) {
///     pr_info!("connected to {}\n", peer);
/// }
/// ```
#[repr(C, align(8))]
pub struct SocketAddr {
    bytes: [u8; 128],
    len: usize,
}

impl SocketAddr {
    /// Creates an address that `get` fills in. `get` gets a pointer to room for a `struct
    /// sockaddr_storage`, and returns the length in bytes or a negative errno, with which this
    /// fails.
    pub(super) fn new(get: impl FnOnce(*mut bindings::sockaddr) -> i32) -> Result<Self> {
        let mut addr = Self {
            bytes: [0; 128],
            len: 0,
        };
        let len = get(addr.bytes.as_mut_ptr().cast());
        crate::error::to_result(len)?;
        addr.len = addr.bytes.len().min(len as usize);
        Ok(addr)
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        for (to, from) in array.iter_mut().zip(self.bytes.iter().skip(at)) {
            *to = *from;
        }
        array
    }
}

/// Writes `192.0.2.1:10809`, `[2001:db8::1]:10809`, the path of a Unix socket, `@` and its abstract
/// name, or `unnamed`.
///
/// Context: any.
impl fmt::Display for SocketAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = u16::from_be_bytes(self.array(FAMILY_LEN));
        match u32::from(u16::from_ne_bytes(self.array(0))) {
            bindings::AF_INET => {
                write!(f, "{}:{}", Ipv4Addr::from(self.array::<4>(4)), port)
            }
            bindings::AF_INET6 => {
                write!(f, "[{}]:{}", Ipv6Addr::from(self.array::<16>(8)), port)
            }
            bindings::AF_UNIX => {
                let name = self.bytes.get(FAMILY_LEN..self.len).unwrap_or(&[]);
                let (mark, name) = match name {
                    [] => return f.write_str("unnamed"),
                    [0, name @ ..] => ("@", name),
                    path => ("", path.split(|byte| *byte == 0).next().unwrap_or(path)),
                };
                f.write_fmt(fmt!("{}{}", mark, BStr::from_bytes(name)))
            }
            family => write!(f, "family {family}"),
        }
    }
}
