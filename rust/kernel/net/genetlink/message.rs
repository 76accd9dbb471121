// SPDX-License-Identifier: GPL-2.0

//! Netlink messages to users.
//!
//! C headers: [`include/net/genetlink.h`](srctree/include/net/genetlink.h),
//! [`include/net/netlink.h`](srctree/include/net/netlink.h)

use super::{attr::ATTR_HEADER, Commands, Family, Info};
use crate::{bindings, error::to_result, ffi, prelude::*};
use core::{mem::ManuallyDrop, ptr::NonNull};

/// A message of a family to be filled and sent.
///
/// What does not fit, since more room should have been asked for, fails with `EMSGSIZE`; the
/// message is then as it was before.
///
/// It is filled by shared reference, for nobody to exchange it while an attribute in it is open.
///
/// # Invariants
///
/// `skb` is a valid message, and owned by the value. `header` is the generic netlink header in it.
pub struct Message {
    skb: NonNull<bindings::sk_buff>,
    header: NonNull<c_void>,
}

impl Message {
    /// A reply to `info`, for attributes that take up to `size` bytes together; see
    /// [`attr_size`](super::attr_size). Sleeps.
    ///
    /// Fails with `ENOMEM`.
    pub fn reply(info: &Info<'_>, command: u8, size: usize) -> Result<Self> {
        // SAFETY: The info is valid, and its family registered for as long as the command runs.
        unsafe {
            let info = &*info.info;
            Self::new(info.snd_portid, info.snd_seq, info.family, command, size)
        }
    }

    /// A message to whoever listens, for attributes that take up to `size` bytes together; see
    /// [`attr_size`](super::attr_size). Sleeps.
    ///
    /// Fails with `ENOENT` if the family is not registered, and with `ENOMEM`.
    pub fn new_multicast<T: Commands>(
        family: &'static Family<T>,
        command: u8,
        size: usize,
    ) -> Result<Self> {
        let family = family.as_registered()?;
        // SAFETY: A family is valid for ever, and this one is not written any more.
        unsafe { Self::new(0, 0, family, command, size) }
    }

    /// # Safety
    ///
    /// `family` is valid, and its private fields are not written meanwhile.
    unsafe fn new(
        portid: u32,
        seq: u32,
        family: *const bindings::genl_family,
        command: u8,
        size: usize,
    ) -> Result<Self> {
        // The C side adds headers in an int.
        if size > ffi::c_int::MAX as usize / 2 {
            return Err(ENOMEM);
        }
        // SAFETY: Any size that does not overflow will do.
        let skb = unsafe { bindings::genlmsg_new(size, bindings::GFP_KERNEL) };
        let skb = NonNull::new(skb).ok_or(ENOMEM)?;
        // SAFETY: The message is new; the family is valid by the contract.
        let header =
            unsafe { bindings::genlmsg_put(skb.as_ptr(), portid, seq, family, 0, command) };
        let Some(header) = NonNull::new(header) else {
            // SAFETY: The message is ours.
            unsafe { bindings::nlmsg_free(skb.as_ptr()) };
            return Err(EMSGSIZE);
        };
        // INVARIANT: Both have just been made.
        Ok(Self { skb, header })
    }

    /// Adds a number.
    #[inline]
    pub fn put_u8(&self, attr: u16, value: u8) -> Result {
        self.put(attr, &value.to_ne_bytes())
    }

    /// Adds a number.
    #[inline]
    pub fn put_u32(&self, attr: u16, value: u32) -> Result {
        self.put(attr, &value.to_ne_bytes())
    }

    fn put<const N: usize>(&self, attr: u16, value: &[u8; N]) -> Result {
        const { assert!(ATTR_HEADER + N <= u16::MAX as usize) };
        // SAFETY: The message is valid, by the type invariant, and nobody else uses it: the type is
        // not `Sync`, and hands out no references. The value has `N` bytes.
        to_result(unsafe {
            bindings::nla_put(
                self.skb.as_ptr(),
                attr.into(),
                N as ffi::c_int,
                value.as_ptr().cast(),
            )
        })
    }

    /// Adds an attribute of those that `fill` adds. If that fails, none of them stays.
    ///
    /// Fails with `EMSGSIZE` also if they are more than an attribute can have: 65531 bytes.
    pub fn nest(&self, attr: u16, fill: impl FnOnce(&Self) -> Result) -> Result {
        let skb = self.skb.as_ptr();
        // SAFETY: The message is valid and used by nobody else, as in `put`.
        let start = unsafe { bindings::nla_nest_start_noflag(skb, attr.into()) };
        if start.is_null() {
            return Err(EMSGSIZE);
        }
        let filled = fill(self).and_then(|()| {
            // SAFETY: As above. `start` is still in the message: it never moves, and `fill` has
            // neither sent nor dropped it, since it is borrowed, nor exchanged it, since that
            // borrow is shared, nor cut anything from it but what it had added itself.
            to_result(unsafe { bindings::nla_nest_end_safe(skb, start) })
        });
        if filled.is_err() {
            // SAFETY: As above.
            unsafe { bindings::nla_nest_cancel(skb, start) };
        }
        filled
    }

    /// Ends the message, which is the caller's to give away from then on.
    #[inline]
    fn finish(self) -> *mut bindings::sk_buff {
        let message = ManuallyDrop::new(self);
        // SAFETY: The message is valid, and the header is the one in it.
        unsafe { bindings::genlmsg_end(message.skb.as_ptr(), message.header.as_ptr()) };
        message.skb.as_ptr()
    }

    /// Sends the message to the sender of `info`. Does not sleep.
    ///
    /// Fails with `EAGAIN` if the receiver has no room for it, and with `ECONNREFUSED` if it is
    /// gone.
    #[inline]
    pub fn send_reply(self, info: &Info<'_>) -> Result {
        // SAFETY: The message is complete, and given away; the info is valid.
        to_result(unsafe { bindings::genlmsg_reply(self.finish(), info.info) })
    }

    /// Sends the message to all that listen to a group of `family`, by its index there, in all
    /// network namespaces. Does not sleep. That nobody listens is no failure.
    ///
    /// Fails with `EINVAL` if there is no such group, with `ENOENT` if the family is not
    /// registered, and, the namespaces from some one on being left out, with `ENOBUFS` if a
    /// receiver lost the message and wants the sender to know, and with `ENOMEM`.
    pub fn multicast<T: Commands>(self, family: &'static Family<T>, group: u8) -> Result {
        let family = family.as_registered()?;
        // SAFETY: A family is valid for ever. The number of its groups never changes.
        if group >= unsafe { (*family).n_mcgrps } {
            return Err(EINVAL);
        }
        let message = self.finish();
        // SAFETY: The family is valid and has been registered; its private fields are not written
        // any more. The message is complete, and given away.
        let sent = unsafe { bindings::genlmsg_multicast_allns(family, message, 0, group.into()) };
        match to_result(sent) {
            Err(ESRCH) => Ok(()),
            result => result,
        }
    }
}

impl Drop for Message {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The message is ours, by the type invariant.
        unsafe { bindings::nlmsg_free(self.skb.as_ptr()) };
    }
}
