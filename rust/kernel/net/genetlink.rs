// SPDX-License-Identifier: GPL-2.0

//! Generic netlink families that take commands.
//!
//! C headers: [`include/net/genetlink.h`](srctree/include/net/genetlink.h),
//! [`include/net/netlink.h`](srctree/include/net/netlink.h)

mod attr;
mod message;

pub use attr::{attr_size, Attr, Policy};
pub use message::Message;

use crate::{
    bindings,
    error::{from_result, to_result},
    ffi,
    fmt,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        Arc, ArcBorrow,
    },
    types::Opaque,
    ThisModule, //
};
use core::{cell::UnsafeCell, marker::PhantomData, ptr};

pub use crate::net::netlink::MulticastGroup;

/// The commands of a family.
pub trait Commands: Sized + 'static {
    /// What all commands work on. The registration keeps it.
    type Context: Send + Sync + 'static;

    /// Runs a command that some user, privileged or not, has sent.
    ///
    /// The current task is the sender. Commands run at the same time as others, and may sleep.
    ///
    /// genetlink's `cb_lock` is held for reading: whoever adds or removes a family of any name
    /// waits for the command, and all other commands wait behind them. The command must not do
    /// so itself: it must neither drop a [`Registration`] nor load a module that has a family,
    /// nor wait for someone who does.
    ///
    /// The sender gets the error, with what [`Info::require`], [`Info::refuse`] and
    /// [`Attr::parse`] had to add. Not so `EINTR`, with which it gets no answer at all; and no
    /// call is restarted with `ERESTARTSYS`.
    fn handle(context: ArcBorrow<'_, Self::Context>, command: u8, info: &Info<'_>) -> Result;
}

/// A command that users can send to a family.
#[repr(transparent)]
pub struct Operation<T: Commands>(bindings::genl_small_ops, PhantomData<fn(T)>);

impl<T: Commands> Operation<T> {
    /// A command that takes attributes it does not know, integers longer than they need be, and
    /// anything in the reserved fields of the headers.
    pub const fn lenient(command: u8) -> Self {
        Self(
            bindings::genl_small_ops {
                doit: Some(Family::<T>::doit),
                cmd: command,
                validate: (bindings::genl_validate_flags_GENL_DONT_VALIDATE_STRICT
                    | bindings::genl_validate_flags_GENL_DONT_VALIDATE_DUMP)
                    as u8,
                ..pin_init::zeroed()
            },
            PhantomData,
        )
    }
}

/// Not registered; `context` belongs to who changes this to [`BUSY`].
const IDLE: u32 = 0;
/// About to be registered, or was so once.
const BUSY: u32 = 1;
/// Registered.
const REGISTERED: u32 = 2;

/// A generic netlink family, to be had in a `static`. Its commands run in parallel, in all network
/// namespaces.
///
/// # Invariants
///
/// - `family` is complete but for two bits, which are set while `state` is [`BUSY`] and before it is
///   registered, and the fields that are private to the C side, which alone writes these, and only
///   in the one call of `genl_register_family` that succeeds and any that fail before. All of its operations are those of `T`, and it has at least one attribute.
/// - If `family` can be found by its number or is about to be, `context` is `Some`, and not
///   written.
/// - If `state` is [`REGISTERED`], `genl_register_family` has succeeded.
#[repr(C)]
pub struct Family<T: Commands> {
    // First, for `doit` to get from it to the rest.
    family: Opaque<bindings::genl_family>,
    state: Atomic<u32>,
    context: UnsafeCell<Option<Arc<T::Context>>>,
}

// SAFETY: `family` is only written under the locks of the C side, and `context` as `state` and the
// registration say. What is in `context` can be used by and sent to any thread.
unsafe impl<T: Commands> Sync for Family<T> {}

impl<T: Commands> Family<T> {
    /// A family with attributes as in `policy`.
    ///
    /// For constants: panics if the name is empty or has more than 15 bytes, an array is empty or
    /// has more than 255 entries, there is no attribute past `policy[0]`, or a command is 255.
    pub const fn new(
        module: &'static ThisModule,
        name: &'static CStr,
        version: u32,
        policy: &'static [Policy],
        operations: &'static [Operation<T>],
        groups: &'static [MulticastGroup],
    ) -> Self {
        // The entries of all three arrays are transparent wrappers of the C structs.
        let mut family = bindings::genl_family {
            version,
            maxattr: (Self::count(policy.len()) - 1) as u32,
            n_small_ops: Self::count(operations.len()),
            n_mcgrps: Self::count(groups.len()),
            policy: policy.as_ptr().cast(),
            small_ops: operations.as_ptr().cast(),
            mcgrps: groups.as_ptr().cast(),
            module: module.as_ptr(),
            ..pin_init::zeroed()
        };
        assert!(policy.len() > 1, "a family without attributes");

        let bytes = name.to_bytes_with_nul();
        assert!(bytes.len() > 1 && bytes.len() <= family.name.len());
        let mut i = 0;
        while i < bytes.len() {
            family.name[i] = bytes[i];
            i += 1;
        }

        // The commands from this one on must be strict.
        let mut i = 0;
        while i < operations.len() {
            let command = operations[i].0.cmd;
            assert!(command < u8::MAX);
            if family.resv_start_op <= command {
                family.resv_start_op = command + 1;
            }
            i += 1;
        }

        // INVARIANT: The operations are those of `T` by their type, there is at least one
        // attribute, and the fields private to the C side are zero. The family is not registered.
        Self {
            family: Opaque::new(family),
            state: Atomic::new(IDLE),
            context: UnsafeCell::new(None),
        }
    }

    #[inline]
    const fn count(len: usize) -> u8 {
        assert!(len > 0 && len <= u8::MAX as usize);
        len as u8
    }

    /// The C family: a pointer that can be turned back into one to the whole value.
    #[inline]
    fn as_raw(&'static self) -> *mut bindings::genl_family {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// Has users find the family, and its commands work on `context`. Sleeps.
    ///
    /// Commands run from somewhat before this returns until the registration is dropped.
    ///
    /// Fails with `EBUSY` if the family is registered or ever was, with `EEXIST` if there is
    /// another of its name, with `EINVAL` if two of its commands have the same number, and with
    /// `ENOMEM`.
    pub fn register(&'static self, context: Arc<T::Context>) -> Result<Registration<T>> {
        self.state.cmpxchg(IDLE, BUSY, Acquire).map_err(|_| EBUSY)?;
        // SAFETY: Having changed the state, `context` is ours, and so is `family`, which cannot be
        // found, since it has not been registered. These bits cannot be set in a constant.
        unsafe {
            *self.context.get() = Some(context);
            (*self.family.get()).set_netnsok(1);
            (*self.family.get()).set_parallel_ops(1);
        }

        // INVARIANT: The context is there, and is not written until below or until the
        // registration is dropped.
        // SAFETY: The family is complete, and lives as long as the module, since it is a static;
        // dropping the registration will unregister it. By `state` it is registered once.
        if let Err(error) = to_result(unsafe { bindings::genl_register_family(self.as_raw()) }) {
            // SAFETY: `genl_register_family` fails only before it adds the family, or takes it
            // back before it releases the locks (`cb_lock` for writing) under which it added it,
            // so no command has found it. We still own the context.
            let context = unsafe { (*self.context.get()).take() };
            // Release: for the next one to see the context gone.
            self.state.store(IDLE, Release);
            drop(context);
            return Err(error);
        }
        // INVARIANT: It has just succeeded. Release: for `as_registered` to see the private fields.
        self.state.store(REGISTERED, Release);
        // INVARIANT: As above; and there is only one, since the state is never `IDLE` again.
        Ok(Registration { family: self })
    }

    /// The C family if it has been registered: nobody writes it any more.
    ///
    /// Fails with `ENOENT` if not, or not any more.
    fn as_registered(&'static self) -> Result<*mut bindings::genl_family> {
        if self.state.load(Acquire) != REGISTERED {
            return Err(ENOENT);
        }
        Ok(self.as_raw())
    }

    /// The callback of all commands.
    ///
    /// # Safety
    ///
    /// Only for genetlink, as `doit` of an operation of a `Family<T>`.
    unsafe extern "C" fn doit(
        skb: *mut bindings::sk_buff,
        info: *mut bindings::genl_info,
    ) -> ffi::c_int {
        // SAFETY: genetlink gives a valid info, whose header is in the message, after checking
        // that it has one. The family is the one whose operation this is, a `Family<T>`, by the
        // pointer given to `genl_register_family`, which is one to the whole. It is a static.
        let (family, command) = unsafe {
            (
                &*(*info).family.cast::<Family<T>>(),
                (*(*info).genlhdr).cmd, //
            )
        };
        // SAFETY: The family was found, so the context is there, by the type invariant, and stays
        // for as long as the command runs: `doit` is only called by `genl_rcv`, which holds
        // `cb_lock` for reading from before it finds the family until `doit` has returned. The
        // family can only be found after `genl_register_family` has released `cb_lock`, taken for
        // writing, which orders the write of the context before. It is taken away only after
        // `genl_unregister_family`; see `Registration::drop`.
        let context = unsafe { &*family.context.get() };
        from_result(|| {
            let context = context.as_ref().ok_or(ENODEV)?;
            // INVARIANT: genetlink gives a valid message and info, until this function returns,
            // which `handle` cannot make the reference outlive. There is an array of attributes,
            // since the family has a policy and a last attribute.
            let info = Info {
                skb,
                info,
                _call: PhantomData,
            };
            T::handle(context.as_arc_borrow(), command, &info)?;
            Ok(0)
        })
    }
}

/// Commands are taken until this is dropped, which waits for those that run, and then drops the
/// registration's reference to the context.
///
/// Not to be dropped by a command, nor under a lock that commands take.
///
/// # Invariants
///
/// `family` is registered, and this is the only registration of it.
pub struct Registration<T: Commands> {
    family: &'static Family<T>,
}

impl<T: Commands> Drop for Registration<T> {
    #[inline]
    fn drop(&mut self) {
        self.family.state.store(BUSY, Relaxed);
        // SAFETY: The family is registered, by the type invariant.
        unsafe { bindings::genl_unregister_family(self.family.as_raw()) };
        // SAFETY: No command uses the context: `genl_unregister_family` takes `cb_lock` for
        // writing, so that those that hold it for reading, as all running commands do, have
        // returned; before it releases that, it removes the family's number, so that no other
        // command finds the family. There is no callback but `doit`, and no dump. Nobody else
        // writes the context, since the state is not `IDLE`.
        let context = unsafe { (*self.family.context.get()).take() };
        drop(context);
    }
}

/// A command as its sender gave it.
///
/// # Invariants
///
/// `skb` and `info` are those of a call of `doit` that lasts for `'a`; `info` has an array of
/// attributes up to the family's last, each absent or valid for `'a`, and never written.
pub struct Info<'a> {
    skb: *mut bindings::sk_buff,
    info: *mut bindings::genl_info,
    _call: PhantomData<&'a ()>,
}

impl<'a> Info<'a> {
    /// The attribute of number `n`, if there is one: the last, if there are more.
    #[inline]
    pub fn attr(&self, n: u16) -> Option<Attr<'a>> {
        // SAFETY: The info and its family are valid, by the type invariant. The length of the
        // array does not change.
        let last = unsafe { (*(*self.info).family).maxattr };
        if u32::from(n) > last {
            return None;
        }
        // SAFETY: The array goes from 0 to the last attribute, and its entries are null or valid,
        // by the type invariant.
        unsafe { Attr::from_raw(*(*self.info).attrs.add(usize::from(n))) }
    }

    /// The attribute of number `n`. Without one, tells the sender so, and fails with `EINVAL`.
    pub fn require(&self, n: u16) -> Result<Attr<'a>> {
        self.attr(n).ok_or_else(|| {
            // SAFETY: The info is valid, and its report null or valid and only ours to write while
            // the command runs: it is on the sender's stack, and this type is not `Send`.
            unsafe {
                let extack = (*self.info).extack;
                if !extack.is_null() {
                    (*extack).miss_nest = ptr::null();
                    (*extack).miss_type = n;
                }
            }
            EINVAL
        })
    }

    /// Whether the sender, and who opened its socket, have `CAP_SYS_ADMIN` in the initial user
    /// namespace.
    #[inline]
    pub fn is_admin(&self) -> bool {
        // SAFETY: The message is valid and a netlink one, by the type invariant.
        unsafe { bindings::netlink_capable(self.skb, bindings::CAP_SYS_ADMIN as ffi::c_int) }
    }

    /// Adds to the acknowledgment a message of up to 79 bytes, and `attr` as the culprit: for
    /// commands that fail. The sender sees the last message only.
    pub fn refuse(&self, attr: Option<Attr<'_>>, message: fmt::Arguments<'_>) {
        let attr = attr.map_or(ptr::null(), |attr| attr.as_raw());
        // SAFETY: The info is valid, and its report null or valid and only ours to write, as in
        // `require`. The format takes a pointer to arguments, which are valid, and writes no more
        // than it may, a NUL at the end. Of the attribute only the address is used, by
        // `netlink_ack`, if it is within the command.
        unsafe {
            let extack = (*self.info).extack;
            if extack.is_null() {
                return;
            }
            let buffer = (&raw mut (*extack)._msg_buf).cast();
            bindings::snprintf(
                buffer,
                bindings::NETLINK_MAX_FMTMSG_LEN as usize,
                c"%pA".as_char_ptr(),
                ptr::from_ref(&message).cast::<c_void>(),
            );
            bindings::do_trace_netlink_extack(buffer);
            (*extack)._msg = buffer;
            (*extack).bad_attr = attr;
            (*extack).policy = ptr::null();
        }
    }
}
