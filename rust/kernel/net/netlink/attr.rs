// SPDX-License-Identifier: GPL-2.0

//! Attributes of netlink messages.
//!
//! C header: [`include/net/netlink.h`](srctree/include/net/netlink.h)

use super::command::Info;
use crate::{
    bindings,
    error::to_result,
    ffi,
    prelude::*, //
};
use core::{
    marker::PhantomData,
    ptr, //
};

/// The header of an attribute: its length and its type, 16 bits each.
const ATTR_HEADER: usize = size_of::<bindings::nlattr>();

/// Rounds `size`, in bytes, up to the alignment of attributes.
#[inline]
const fn attr_align(size: usize) -> usize {
    size.next_multiple_of(bindings::NLA_ALIGNTO as usize)
}

/// Returns how many bytes an attribute with `payload` bytes takes in a message.
///
/// Context: any.
///
/// # Examples
///
/// ```
/// use kernel::net::netlink::attr_size;
///
/// // The header has four bytes, and the next attribute is aligned.
/// assert_eq!(attr_size(1), 8);
/// ```
#[inline]
pub const fn attr_size(payload: usize) -> usize {
    attr_align(ATTR_HEADER + payload)
}

/// The type that an attribute must have. The index in an array of these is the number of the
/// attribute. [`Family::with_commands`](super::Family::with_commands) has an example.
///
/// C struct: `struct nla_policy`.
///
/// # Invariants
///
/// The policy has no pointer that is not null.
#[repr(transparent)]
pub struct Policy(bindings::nla_policy);

// SAFETY: A shared policy is never written, and by the type invariant it refers to no other memory.
unsafe impl Sync for Policy {}

impl Policy {
    /// Any payload is accepted. This is also the entry 0 of an array, which stands for no
    /// attribute.
    pub const UNSPEC: Self = Self::new(bindings::NLA_UNSPEC);
    /// The payload has at least 4 bytes.
    pub const U32: Self = Self::new(bindings::NLA_U32);
    /// The payload has at least 8 bytes.
    pub const U64: Self = Self::new(bindings::NLA_U64);
    /// The payload is empty or has at least the 4 bytes of a header. The attributes in it are not
    /// checked before [`Attr::items`] or [`Attr::parse`].
    pub const NESTED: Self = Self::new(bindings::NLA_NESTED);
    /// The payload has at least one byte. It may end with a NUL or not.
    pub const STRING: Self = Self::new(bindings::NLA_STRING);

    #[inline]
    const fn new(kind: u32) -> Self {
        // INVARIANT: All fields but the type are zero, and pointers null.
        Self(bindings::nla_policy {
            type_: kind as u8,
            ..pin_init::zeroed()
        })
    }
}

/// An attribute of a command.
///
/// C struct: `struct nlattr`.
///
/// # Examples
///
/// ```
/// use kernel::net::netlink::{
///     Attr,
///     Info,
///     Policy, //
/// };
///
/// const VALUE: c_int = 1;
/// static ITEM: [Policy; 2] = [Policy::UNSPEC, Policy::U32];
///
/// /// Returns the sum of the values that the items of `list` have.
/// fn sum(list: Attr<'_>, info: &Info<'_>) -> Result<u32> {
///     let mut sum = 0u32;
///     for item in list.items() {
///         if let Some(value) = item.parse(&ITEM, info)?.attr(VALUE) {
///             sum = sum.checked_add(value.u32()?).ok_or(EOVERFLOW)?;
///         }
///     }
///     Ok(sum)
/// }
/// ```
///
/// # Invariants
///
/// The slice is one attribute: a header, which has the slice's length and the alignment of
/// attributes, and the payload. It is not written for `'a`.
#[derive(Clone, Copy)]
pub struct Attr<'a>(&'a [u8]);

impl<'a> Attr<'a> {
    /// Creates a reference to the attribute that `attr` points to; [`None`] if that is null.
    ///
    /// # Safety
    ///
    /// `attr` must be null or point to an attribute of at least a header, with as many bytes as the
    /// header says, that is valid and not written for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(attr: *const bindings::nlattr) -> Option<Self> {
        if attr.is_null() {
            return None;
        }
        // SAFETY: `attr` is not null, so that by the safety requirements it points to as many bytes
        // as its header says, which are valid and not written for `'a`.
        let bytes = unsafe { core::slice::from_raw_parts(attr.cast(), (*attr).nla_len.into()) };
        // INVARIANT: The slice has the length that the header says, and by the safety requirements
        // it is an attribute, hence aligned, and not written.
        Some(Self(bytes))
    }

    #[inline]
    pub(super) fn as_raw(&self) -> *const bindings::nlattr {
        self.0.as_ptr().cast()
    }

    /// Returns the number of the attribute.
    ///
    /// Context: any.
    #[inline]
    pub fn kind(&self) -> c_int {
        let kind = u16::from_ne_bytes([self.0[2], self.0[3]]);
        c_int::from(kind & bindings::NLA_TYPE_MASK as u16)
    }

    /// Returns the payload.
    ///
    /// Context: any.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        &self.0[ATTR_HEADER..]
    }

    /// Returns the payload without a NUL at its end, if there is one. There may be other NULs in
    /// it.
    ///
    /// Context: any.
    #[inline]
    pub fn string(&self) -> &'a [u8] {
        let bytes = self.bytes();
        bytes.strip_suffix(b"\0").unwrap_or(bytes)
    }

    /// Returns the integer at the start of the payload, in native byte order. Fails with `EINVAL`
    /// if the payload is too short.
    ///
    /// Context: any.
    #[inline]
    pub fn u32(&self) -> Result<u32> {
        let bytes = self.bytes().first_chunk().ok_or(EINVAL)?;
        Ok(u32::from_ne_bytes(*bytes))
    }

    /// Returns the integer at the start of the payload, in native byte order. Fails with `EINVAL`
    /// if the payload is too short.
    ///
    /// Context: any.
    #[inline]
    pub fn u64(&self) -> Result<u64> {
        let bytes = self.bytes().first_chunk().ok_or(EINVAL)?;
        Ok(u64::from_ne_bytes(*bytes))
    }

    /// Returns an iterator over the attributes in the payload, up to the first one that is not
    /// whole.
    ///
    /// Context: any.
    #[inline]
    pub fn items(&self) -> Items<'a> {
        // INVARIANT: The payload follows the attribute's header, whose size is a multiple of the
        // alignment. It is not written, like the attribute.
        Items(self.bytes())
    }

    /// Finds the attributes in the payload that `policy` has an entry for, and the last of each
    /// number.
    ///
    /// Fails with `EINVAL` or `ERANGE` if one does not match the policy, and names it in the answer
    /// to the sender of `info`.
    ///
    /// Context: any.
    pub fn parse<const N: usize>(
        &self,
        policy: &'static [Policy; N],
        info: &Info<'_>,
    ) -> Result<Parsed<'a, N>> {
        const { assert!(N > 1, "no attributes to find") };
        let mut attrs = [ptr::null_mut(); N];
        let payload = self.bytes();
        // SAFETY: `attrs` and `policy` have an entry for each number up to the greatest one, `N -
        // 1`. By the type invariant the payload is valid and has the alignment of attributes, and
        // it has less than 65536 bytes. The report is null, or is on the stack of the current task,
        // which runs the command, since `Info` is not `Send`. It keeps a pointer to the policy,
        // which is a static of the module: netlink uses it before `genl_rcv` releases `cb_lock`,
        // which the drop of the registration takes for writing before the module is unloaded.
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
        // INVARIANT: `__nla_parse` has set each entry to null or to a whole attribute in the
        // payload, which is valid for `'a` and not written.
        Ok(Parsed {
            attrs,
            _payload: PhantomData,
        })
    }
}

/// An iterator over the attributes in another one.
///
/// # Examples
///
/// ```
/// use kernel::net::netlink::Attr;
///
/// const NAME: c_int = 2;
///
/// /// Returns the first name in `list` that is not empty.
/// fn first_name<'a>(list: Attr<'a>) -> Option<&'a [u8]> {
///     let mut names = list.items().filter(|attr| attr.kind() == NAME);
///     names.find_map(|attr| Some(attr.string()).filter(|name| !name.is_empty()))
/// }
/// ```
///
/// # Invariants
///
/// The slice starts at an address with the alignment of attributes, or is empty. It is not written
/// for `'a`.
pub struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let size = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        if size < ATTR_HEADER {
            return None;
        }
        // INVARIANT: The slice has the length that the header says, which is at least that of the
        // header, and starts where an attribute may by the type invariant.
        let attr = Attr(self.0.get(..size)?);
        // INVARIANT: The next attribute starts at a multiple of the alignment from this one, or
        // there is none.
        self.0 = self.0.get(attr_align(size)..).unwrap_or_default();
        Some(attr)
    }
}

/// The attributes in another one, by their numbers.
///
/// # Examples
///
/// ```
/// use kernel::net::netlink::Parsed;
///
/// const FIRST: c_int = 1;
/// const COUNT: c_int = 2;
///
/// /// Returns the range that the attributes say; one of them may be missing.
/// fn range(parsed: &Parsed<'_, 3>) -> Result<(u32, u32)> {
///     let first = parsed.attr(FIRST).map_or(Ok(0), |attr| attr.u32())?;
///     let count = parsed.attr(COUNT).map_or(Ok(1), |attr| attr.u32())?;
///     Ok((first, count))
/// }
/// ```
///
/// # Invariants
///
/// Each entry is null, or points to an attribute that is valid and not written for `'a`.
pub struct Parsed<'a, const N: usize> {
    attrs: [*mut bindings::nlattr; N],
    _payload: PhantomData<&'a [u8]>,
}

impl<'a, const N: usize> Parsed<'a, N> {
    /// Returns the attribute of number `n`, if there is one.
    ///
    /// Context: any.
    #[inline]
    pub fn attr(&self, n: c_int) -> Option<Attr<'a>> {
        let attr = self.attrs.get(usize::try_from(n).ok()?)?;
        // SAFETY: By the type invariant the entry is null or points to an attribute that is valid
        // and not written for `'a`, of which `__nla_parse` has checked that it is whole.
        unsafe { Attr::from_raw(*attr) }
    }
}
