// SPDX-License-Identifier: GPL-2.0

//! Messages of families with commands.
//!
//! C headers: [`include/net/genetlink.h`](srctree/include/net/genetlink.h),
//! [`include/net/netlink.h`](srctree/include/net/netlink.h)

use super::{
    command::{
        CommandFamily,
        Commands,
        Info, //
    },
    GenlMsg,
    NetlinkSkBuff, //
};
use crate::{
    bindings,
    error::to_result,
    ffi,
    prelude::*, //
};
use core::{
    mem::{
        self,
        ManuallyDrop, //
    },
    ptr::NonNull, //
};

impl<T: Commands> CommandFamily<T> {
    /// Creates a message for a group of the family, with room for attributes of `size` bytes
    /// together, as [`attr_size`](super::attr_size) counts them.
    ///
    /// Fails with `ENOENT` if the family is not registered, and with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn new_msg(&'static self, command: u8, size: usize) -> Result<GenlMsg> {
        let family = self.as_registered()?;
        // SAFETY: The family is static, and `as_registered` has found it registered, so that its
        // private fields are not written any more.
        unsafe { GenlMsg::new(0, 0, family, command, size) }
    }
}

impl Info<'_> {
    /// Creates a reply to the command, with room for attributes of `size` bytes together, as
    /// [`attr_size`](super::attr_size) counts them.
    ///
    /// Fails with `ENOMEM`.
    ///
    /// Context: may sleep.
    pub fn new_reply(&self, command: u8, size: usize) -> Result<GenlMsg> {
        // SAFETY: By the type invariant the C info is valid while the command runs. The family is
        // registered, so that its private fields are not written.
        unsafe {
            let info = &*self.info;
            GenlMsg::new(info.snd_portid, info.snd_seq, info.family, command, size)
        }
    }
}

/// An attribute that has no room fails with `EMSGSIZE` and leaves the message unchanged: the caller
/// has to ask for enough room when it creates the message.
impl GenlMsg {
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
        let skb = NetlinkSkBuff::new(size, GFP_KERNEL)?;
        // SAFETY: By its type invariant the message is valid and owned by `skb`. By the safety
        // requirements the family is valid and its private fields are not written.
        let hdr =
            unsafe { bindings::genlmsg_put(skb.skb.as_ptr(), portid, seq, family, 0, command) };
        // INVARIANT: `genlmsg_put` has returned the header in the message.
        Ok(Self {
            hdr: NonNull::new(hdr).ok_or(EMSGSIZE)?,
            skb,
        })
    }

    /// Puts a `u8` attribute into the message.
    ///
    /// Context: any.
    #[inline]
    pub fn put_u8(&mut self, attrtype: c_int, value: u8) -> Result {
        self.put(attrtype, &value)
    }

    /// Puts a `u64` attribute into the message.
    ///
    /// Context: any.
    #[inline]
    pub fn put_u64(&mut self, attrtype: c_int, value: u64) -> Result {
        self.put(attrtype, &value)
    }

    /// Puts an attribute into the message that contains those that are put into it. If it is
    /// dropped before [`Nest::end`], the message is as it was before.
    ///
    /// Context: any.
    #[inline]
    pub fn nest(&mut self, attrtype: c_int) -> Result<Nest<'_>> {
        // SAFETY: By its type invariant the message is valid.
        let start = unsafe { bindings::nla_nest_start_noflag(self.skb.skb.as_ptr(), attrtype) };
        // INVARIANT: `nla_nest_start_noflag` has put the attribute at `start` into the message.
        Ok(Nest {
            start: NonNull::new(start).ok_or(EMSGSIZE)?,
            msg: self,
        })
    }

    /// Completes the message and passes its ownership to the caller.
    #[inline]
    fn finish(self) -> *mut bindings::sk_buff {
        let me = ManuallyDrop::new(self);
        // SAFETY: By their type invariants the message is valid, and `hdr` is the generic netlink
        // header in it.
        unsafe { bindings::genlmsg_end(me.skb.skb.as_ptr(), me.hdr.as_ptr()) };
        me.skb.skb.as_ptr()
    }

    /// Sends the message to the sender of `info`.
    ///
    /// Fails with `EAGAIN` if the receiver's buffer is full, and with `ECONNREFUSED` if its socket
    /// is closed.
    ///
    /// Context: process or softirq context; does not sleep.
    #[doc(alias = "genlmsg_reply")]
    #[inline]
    pub fn reply(self, info: &Info<'_>) -> Result {
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
    #[doc(alias = "genlmsg_multicast_allns")]
    pub fn multicast_allns<T: Commands>(
        self,
        family: &'static CommandFamily<T>,
        group: u32,
    ) -> Result {
        let family = family.as_registered()?;
        // SAFETY: The family is static, and the number of its groups never changes.
        if group >= u32::from(unsafe { (*family).n_mcgrps }) {
            return Err(EINVAL);
        }
        let message = self.finish();
        // SAFETY: The family is static and was registered, so that its private fields are not
        // written any more, and it has the group. `finish` has completed the message and passes its
        // ownership on.
        let sent = unsafe { bindings::genlmsg_multicast_allns(family, message, 0, group) };
        match to_result(sent) {
            Err(ESRCH) => Ok(()),
            result => result,
        }
    }
}

/// An attribute of a message that contains others. Dropping the value takes it out of the message,
/// with what it contains.
///
/// # Examples
///
/// A list with an item for each of `values`:
///
/// ```
/// use kernel::net::netlink::{
///     attr_size,
///     GenlMsg,
///     Info, //
/// };
///
/// fn answer(info: &Info<'_>, values: &[u32]) -> Result {
///     let mut reply = info.new_reply(1, attr_size(values.len() * attr_size(4)))?;
///     let mut list = reply.nest(1)?;
///     for value in values {
///         list.put_u32(1, *value)?;
///     }
///     list.end()?;
///     reply.reply(info)
/// }
/// ```
///
/// # Invariants
///
/// `start` is an attribute in the message that is not ended. The message never moves its data, and
/// nothing before `start` is taken out while it is borrowed.
pub struct Nest<'a> {
    msg: &'a mut GenlMsg,
    start: NonNull<bindings::nlattr>,
}

impl Nest<'_> {
    /// Puts a `u8` attribute into this one.
    ///
    /// Context: any.
    #[inline]
    pub fn put_u8(&mut self, attrtype: c_int, value: u8) -> Result {
        self.msg.put_u8(attrtype, value)
    }

    /// Puts a `u32` attribute into this one.
    ///
    /// Context: any.
    #[inline]
    pub fn put_u32(&mut self, attrtype: c_int, value: u32) -> Result {
        self.msg.put_u32(attrtype, value)
    }

    /// Puts a `u64` attribute into this one.
    ///
    /// Context: any.
    #[inline]
    pub fn put_u64(&mut self, attrtype: c_int, value: u64) -> Result {
        self.msg.put_u64(attrtype, value)
    }

    /// Puts a string attribute into this one, with a NUL at its end.
    ///
    /// Context: any.
    #[inline]
    pub fn put_string(&mut self, attrtype: c_int, value: &CStr) -> Result {
        self.msg.put_string(attrtype, value)
    }

    /// Puts an attribute into this one that contains others.
    ///
    /// Context: any.
    #[inline]
    pub fn nest(&mut self, attrtype: c_int) -> Result<Nest<'_>> {
        self.msg.nest(attrtype)
    }

    /// Ends the attribute, which stays in the message.
    ///
    /// Fails with `EMSGSIZE` if the contents are longer than the 65531 bytes that an attribute can
    /// have. The message is as it was before the attribute then.
    ///
    /// Context: any.
    #[inline]
    pub fn end(self) -> Result {
        // SAFETY: By the type invariants the message is valid, and `start` is an attribute in it
        // that is not ended.
        to_result(unsafe {
            bindings::nla_nest_end_safe(self.msg.skb.skb.as_ptr(), self.start.as_ptr())
        })?;
        // The drop would take out the attribute, as it does after an error.
        mem::forget(self);
        Ok(())
    }
}

impl Drop for Nest<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants the message is valid, and `start` is an attribute in it
        // that is not ended.
        unsafe { bindings::nla_nest_cancel(self.msg.skb.skb.as_ptr(), self.start.as_ptr()) };
    }
}
