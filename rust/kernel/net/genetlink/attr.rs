// SPDX-License-Identifier: GPL-2.0

//! Attributes of netlink messages.
//!
//! C header: [`include/net/netlink.h`](srctree/include/net/netlink.h)

use super::Info;
use crate::{bindings, error::to_result, ffi, prelude::*};
use core::{marker::PhantomData, ptr};

/// The header of an attribute: its length and its type, 16 bits each.
pub(super) const ATTR_HEADER: usize = size_of::<bindings::nlattr>();

/// `size` as attributes are aligned.
#[inline]
const fn attr_align(size: usize) -> usize {
    size.next_multiple_of(bindings::NLA_ALIGNTO as usize)
}

/// What an attribute with `payload` bytes takes in a message.
#[inline]
pub const fn attr_size(payload: usize) -> usize {
    attr_align(ATTR_HEADER + payload)
}

/// What an attribute must be like. The index in an array of these is the number of the attribute.
///
/// # Invariants
///
/// The policy points to nothing.
#[repr(transparent)]
pub struct Policy(bindings::nla_policy);

// SAFETY: The value is never written, and points to nothing by the type invariant.
unsafe impl Sync for Policy {}

impl Policy {
    /// Anything goes; also what is before the first attribute.
    pub const UNSPEC: Self = Self::new(bindings::NLA_UNSPEC);
    /// At least 4 bytes.
    pub const U32: Self = Self::new(bindings::NLA_U32);
    /// At least 8 bytes.
    pub const U64: Self = Self::new(bindings::NLA_U64);
    /// Nothing, or at least a header's 4 bytes. The attributes in it are not looked at before
    /// [`Attr::items`] or [`Attr::parse`].
    pub const NESTED: Self = Self::new(bindings::NLA_NESTED);
    /// At least one byte, with or without a NUL at the end.
    pub const STRING: Self = Self::new(bindings::NLA_STRING);

    #[inline]
    const fn new(kind: u32) -> Self {
        // INVARIANT: All zeroes but for the type.
        Self(bindings::nla_policy {
            type_: kind as u8,
            ..pin_init::zeroed()
        })
    }
}

/// An attribute of a command.
///
/// # Invariants
///
/// The slice is one attribute: a header, which has the slice's length and is aligned as all
/// attributes are, and the payload. Nobody writes it.
#[derive(Clone, Copy)]
pub struct Attr<'a>(&'a [u8]);

impl<'a> Attr<'a> {
    /// An attribute from an array of them; none if the pointer is null.
    ///
    /// # Safety
    ///
    /// `attr` is null or points to an attribute of at least a header, which is valid and not
    /// written for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(attr: *const bindings::nlattr) -> Option<Self> {
        if attr.is_null() {
            return None;
        }
        // SAFETY: By the contract, the attribute has a header and as many bytes as that says.
        let bytes = unsafe { core::slice::from_raw_parts(attr.cast(), (*attr).nla_len.into()) };
        // INVARIANT: As the header says; by the contract.
        Some(Self(bytes))
    }

    #[inline]
    pub(super) fn as_raw(&self) -> *const bindings::nlattr {
        self.0.as_ptr().cast()
    }

    /// The number that the attribute has among its siblings.
    #[inline]
    pub fn kind(&self) -> u16 {
        u16::from_ne_bytes([self.0[2], self.0[3]]) & bindings::NLA_TYPE_MASK as u16
    }

    /// The payload.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        &self.0[ATTR_HEADER..]
    }

    /// The payload without a NUL at the end, if there is one. There may be others.
    #[inline]
    pub fn string(&self) -> &'a [u8] {
        let bytes = self.bytes();
        bytes.strip_suffix(b"\0").unwrap_or(bytes)
    }

    /// The integer that the payload starts with. Fails with `EINVAL` if it is too short.
    pub fn u32(&self) -> Result<u32> {
        let bytes = self.bytes().first_chunk().ok_or(EINVAL)?;
        Ok(u32::from_ne_bytes(*bytes))
    }

    /// The integer that the payload starts with. Fails with `EINVAL` if it is too short.
    pub fn u64(&self) -> Result<u64> {
        let bytes = self.bytes().first_chunk().ok_or(EINVAL)?;
        Ok(u64::from_ne_bytes(*bytes))
    }

    /// The attributes in the payload, up to the first that is not whole.
    #[inline]
    pub fn items(&self) -> Items<'a> {
        // INVARIANT: The header that the payload follows has the size that attributes are aligned
        // to.
        Items(self.bytes())
    }

    /// Finds the attributes in the payload by their numbers, those that `policy` has; the last, if
    /// there are more of a number.
    ///
    /// Fails with `EINVAL` or `ERANGE` if one is not as in `policy`, and tells the sender of
    /// `info` which.
    pub fn parse<const N: usize>(
        &self,
        policy: &'static [Policy; N],
        info: &Info<'_>,
    ) -> Result<Parsed<'a, N>> {
        const { assert!(N > 1, "no attributes to find") };
        let mut attrs = [ptr::null_mut(); N];
        let payload = self.bytes();
        // SAFETY: `attrs` and `policy` have an entry for each number up to the last; the payload is
        // valid and aligned as attributes are, and not longer than 65535 bytes; the report is null
        // or valid and ours to write, as in `Info::require`. It keeps a pointer to the policy,
        // which is a static of the module, and used before `genl_rcv` releases `cb_lock`, which the
        // module waits for in `Registration::drop`.
        to_result(unsafe {
            bindings::__nla_parse(
                attrs.as_mut_ptr(),
                N as ffi::c_int - 1,
                payload.as_ptr().cast(),
                payload.len() as ffi::c_int,
                policy.as_ptr().cast(),
                bindings::netlink_validation_NL_VALIDATE_LIBERAL,
                (*info.info).extack,
            )
        })?;
        // INVARIANT: `__nla_parse` has set all entries, to null or to attributes in the payload
        // that it found whole; the payload is valid for `'a` and not written.
        Ok(Parsed {
            attrs,
            _payload: PhantomData,
        })
    }
}

/// The attributes in another.
///
/// # Invariants
///
/// The slice starts where an attribute may, as to alignment. Nobody writes it.
pub struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let size = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        if size < ATTR_HEADER {
            return None;
        }
        // INVARIANT: The slice has the length that the header says, which is at least the header's.
        let attr = Attr(self.0.get(..size)?);
        // INVARIANT: The next one starts at a multiple of the alignment from this one.
        self.0 = self.0.get(attr_align(size)..).unwrap_or_default();
        Some(attr)
    }
}

/// The attributes in another, by their numbers.
///
/// # Invariants
///
/// The entries are null, or point to attributes that are valid and not written for `'a`.
pub struct Parsed<'a, const N: usize> {
    attrs: [*mut bindings::nlattr; N],
    _payload: PhantomData<&'a [u8]>,
}

impl<'a, const N: usize> Parsed<'a, N> {
    /// The attribute of number `n`, if there is one.
    #[inline]
    pub fn attr(&self, n: u16) -> Option<Attr<'a>> {
        let attr = self.attrs.get(usize::from(n))?;
        // SAFETY: By the type invariant.
        unsafe { Attr::from_raw(*attr) }
    }
}
