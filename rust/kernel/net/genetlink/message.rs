// SPDX-License-Identifier: GPL-2.0

//! Netlink messages to users.
//!
//! C headers: [`include/net/genetlink.h`](srctree/include/net/genetlink.h),
//! [`include/net/netlink.h`](srctree/include/net/netlink.h)

use super::{attr::ATTR_HEADER, Commands, Family, Info};
use crate::{bindings, error::to_result, ffi, prelude::*};
use core::{mem::ManuallyDrop, ptr::NonNull};

/// A message of a family, to be filled and sent.
///
/// An attribute that has no room fails with `EMSGSIZE` and leaves the message unchanged: the caller
/// has to ask for enough room when it creates the message. The message is filled through a shared
/// reference, so that it cannot be exchanged while an attribute in it is open.
///
/// Context: process or softirq context, when it is dropped.
///
/// # Invariants
///
/// `skb` is a valid message that the value owns. `header` is the generic netlink header in it.
pub struct Message {
    skb: NonNull<bindings::sk_buff>,
    header: NonNull<c_void>,
}

impl Message {
    /// Creates a reply to `info`, with room for attributes of `size` bytes together, as
    /// [`attr_size`](super::attr_size) counts them.
    ///
    /// Fails with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn reply(info: &Info<'_>, command: u8, size: usize) -> Result<Self> {
        // SAFETY: By the type invariant of `Info` its C info is valid while the command runs. The
        // family is registered, so that its private fields are not written.
        unsafe {
            let info = &*info.info;
            Self::new(info.snd_portid, info.snd_seq, info.family, command, size)
        }
    }

    /// Creates a message for a group of `family`, with room for attributes of `size` bytes
    /// together, as [`attr_size`](super::attr_size) counts them.
    ///
    /// Fails with `ENOENT` if the family is not registered, and with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn new_multicast<T: Commands>(
        family: &'static Family<T>,
        command: u8,
        size: usize,
    ) -> Result<Self> {
        let family = family.as_registered()?;
        // SAFETY: The family is static, and `as_registered` has found it registered, so that its
        // private fields are not written any more.
        unsafe { Self::new(0, 0, family, command, size) }
    }

    /// # Safety
    ///
    /// `family` must be valid during the call, and its private fields must not be written
    /// meanwhile.
    unsafe fn new(
        portid: u32,
        seq: u32,
        family: *const bindings::genl_family,
        command: u8,
        size: usize,
    ) -> Result<Self> {
        // The C side adds the sizes of headers as `int`s, which must not overflow.
        if size > ffi::c_int::MAX as usize / 2 {
            return Err(ENOMEM);
        }
        // SAFETY: The function has no requirements but that the size does not overflow, which was
        // checked.
        let skb = unsafe { bindings::genlmsg_new(size, bindings::GFP_KERNEL) };
        let skb = NonNull::new(skb).ok_or(ENOMEM)?;
        // SAFETY: The message is valid and used by nothing else. By the safety requirements the
        // family is valid and its private fields are not written.
        let header =
            unsafe { bindings::genlmsg_put(skb.as_ptr(), portid, seq, family, 0, command) };
        let Some(header) = NonNull::new(header) else {
            // SAFETY: `genlmsg_new` has returned the message, and nothing else has a pointer to it.
            unsafe { bindings::nlmsg_free(skb.as_ptr()) };
            return Err(EMSGSIZE);
        };
        // INVARIANT: The message is new, and owned by the value. `genlmsg_put` has returned its
        // header.
        Ok(Self { skb, header })
    }

    /// Adds an attribute with a number. Fails with `EMSGSIZE` if there is no room.
    ///
    /// Context: any.
    #[inline]
    pub fn put_u8(&self, attr: u16, value: u8) -> Result {
        self.put(attr, &value.to_ne_bytes())
    }

    /// Adds an attribute with a number, in native byte order. Fails with `EMSGSIZE` if there is no
    /// room.
    ///
    /// Context: any.
    #[inline]
    pub fn put_u32(&self, attr: u16, value: u32) -> Result {
        self.put(attr, &value.to_ne_bytes())
    }

    fn put<const N: usize>(&self, attr: u16, value: &[u8; N]) -> Result {
        const { assert!(ATTR_HEADER + N <= u16::MAX as usize) };
        // SAFETY: By the type invariant the message is valid, and nothing else uses it: the type is
        // not `Sync`, and gives out no references. The value has `N` bytes.
        to_result(unsafe {
            bindings::nla_put(
                self.skb.as_ptr(),
                attr.into(),
                N as ffi::c_int,
                value.as_ptr().cast(),
            )
        })
    }

    /// Adds an attribute that contains those that `fill` adds. If `fill` fails, this fails with its
    /// error, and the message is unchanged.
    ///
    /// Fails with `EMSGSIZE` if there is no room, or if the contents are longer than the 65531
    /// bytes that an attribute can have.
    ///
    /// Context: that of `fill`.
    pub fn nest(&self, attr: u16, fill: impl FnOnce(&Self) -> Result) -> Result {
        let skb = self.skb.as_ptr();
        // SAFETY: By the type invariant the message is valid, and nothing else uses it: the type is
        // not `Sync`, and gives out no references.
        let start = unsafe { bindings::nla_nest_start_noflag(skb, attr.into()) };
        if start.is_null() {
            return Err(EMSGSIZE);
        }
        let filled = fill(self).and_then(|()| {
            // SAFETY: By the type invariant the message is valid, and this is the only task that
            // uses it. `start` is still in it: a message never moves its data, and `fill`, which
            // has a shared borrow, has neither sent, dropped nor exchanged it, nor cut off more
            // than it has added itself.
            to_result(unsafe { bindings::nla_nest_end_safe(skb, start) })
        });
        if filled.is_err() {
            // SAFETY: By the type invariant the message is valid, and this is the only task that
            // uses it. `start` is still in it, since `fill` has cut off no more than it has added
            // itself.
            unsafe { bindings::nla_nest_cancel(skb, start) };
        }
        filled
    }

    /// Completes the message and passes its ownership to the caller.
    #[inline]
    fn finish(self) -> *mut bindings::sk_buff {
        let message = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the message is valid, and `header` is the generic netlink
        // header in it.
        unsafe { bindings::genlmsg_end(message.skb.as_ptr(), message.header.as_ptr()) };
        message.skb.as_ptr()
    }

    /// Sends the message to the sender of `info`.
    ///
    /// Fails with `EAGAIN` if the receiver's buffer is full, and with `ECONNREFUSED` if its socket
    /// is closed.
    ///
    /// Context: process or softirq context; does not sleep.
    #[inline]
    pub fn send_reply(self, info: &Info<'_>) -> Result {
        // SAFETY: `finish` has completed the message and passes its ownership on. By the type
        // invariant of `Info` its C info is valid.
        to_result(unsafe { bindings::genlmsg_reply(self.finish(), info.info) })
    }

    /// Sends the message to the listeners of a group of `family`, by the group's index there, in
    /// all network namespaces. It is no error if there is no listener.
    ///
    /// Fails with `EINVAL` if there is no such group, and with `ENOENT` if the family is not
    /// registered. Fails with `ENOMEM`, and with `ENOBUFS` if a listener has lost the message and
    /// has asked for that to be reported; the message does not reach the remaining namespaces then.
    ///
    /// Context: process or softirq context; does not sleep.
    pub fn multicast<T: Commands>(self, family: &'static Family<T>, group: u8) -> Result {
        let family = family.as_registered()?;
        // SAFETY: The family is static, and the number of its groups never changes.
        if group >= unsafe { (*family).n_mcgrps } {
            return Err(EINVAL);
        }
        let message = self.finish();
        // SAFETY: The family is static and was registered, so that its private fields are not
        // written any more, and it has the group. `finish` has completed the message and passes its
        // ownership on.
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
        // SAFETY: By the type invariant the message is valid and owned by the value, which does not
        // use it afterwards.
        unsafe { bindings::nlmsg_free(self.skb.as_ptr()) };
    }
}
