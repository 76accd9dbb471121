// SPDX-License-Identifier: GPL-2.0

//! Generic netlink families that take commands.
//!
//! C headers: [`include/net/genetlink.h`](srctree/include/net/genetlink.h),
//! [`include/net/netlink.h`](srctree/include/net/netlink.h)

use crate::kernel::bindings as helpers;
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{self, NonNull}, //
};
use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi,
    fmt,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        rcu,
        Arc,
        ArcBorrow, //
    },
    types::Opaque,
    ThisModule, //
};

pub(crate) use kernel::net::netlink::MulticastGroup;

/// The header of an attribute: its length and its type, 16 bits each.
const ATTR_HEADER: usize = size_of::<bindings::nlattr>();

/// `size` as attributes are aligned.
const fn attr_align(size: usize) -> usize {
    size.next_multiple_of(bindings::NLA_ALIGNTO as usize)
}

/// What an attribute with `payload` bytes takes in a message.
pub(crate) const fn attr_size(payload: usize) -> usize {
    attr_align(ATTR_HEADER + payload)
}

/// The commands of a family.
pub(crate) trait Commands: Sized + 'static {
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

/// What an attribute must be like. The index in an array of these is the number of the attribute.
///
/// # Invariants
///
/// The policy points to nothing.
#[repr(transparent)]
pub(crate) struct Policy(bindings::nla_policy);

// SAFETY: The value is never written, and points to nothing by the type invariant.
unsafe impl Sync for Policy {}

impl Policy {
    /// Anything goes; also what is before the first attribute.
    pub(crate) const UNSPEC: Self = Self::new(bindings::NLA_UNSPEC);
    /// At least 4 bytes.
    pub(crate) const U32: Self = Self::new(bindings::NLA_U32);
    /// At least 8 bytes.
    pub(crate) const U64: Self = Self::new(bindings::NLA_U64);
    /// Nothing, or at least a header's 4 bytes. The attributes in it are not looked at before
    /// [`Attr::items`] or [`Attr::parse`].
    pub(crate) const NESTED: Self = Self::new(bindings::NLA_NESTED);
    /// At least one byte, with or without a NUL at the end.
    pub(crate) const STRING: Self = Self::new(bindings::NLA_STRING);

    const fn new(kind: u32) -> Self {
        // INVARIANT: All zeroes but for the type.
        Self(bindings::nla_policy {
            type_: kind as u8,
            ..pin_init::zeroed()
        })
    }
}

/// A command that users can send to a family.
#[repr(transparent)]
pub(crate) struct Operation<T: Commands>(bindings::genl_small_ops, PhantomData<fn(T)>);

impl<T: Commands> Operation<T> {
    /// A command that takes attributes it does not know, integers longer than they need be, and
    /// anything in the reserved fields of the headers.
    pub(crate) const fn lenient(command: u8) -> Self {
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
/// - `family` is complete but for the fields that are private to the C side, which alone writes
///   these, and only in the one call of `genl_register_family` that succeeds and any that fail
///   before. All of its operations are those of `T`, and it has at least one attribute.
/// - If `family` can be found by its number or is about to be, `context` is `Some`, and not
///   written.
/// - If `state` is [`REGISTERED`], `genl_register_family` has succeeded.
#[repr(C)]
pub(crate) struct Family<T: Commands> {
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
    pub(crate) const fn new(
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
            // Bit 0 is `netnsok`, bit 1 `parallel_ops`; see `test_family_flags_bitfield` in the
            // kernel's own `netlink.rs`.
            _bitfield_1: bindings::__BindgenBitfieldUnit::new([u8::from_le(0b11)]),
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

    const fn count(len: usize) -> u8 {
        assert!(len > 0 && len <= u8::MAX as usize);
        len as u8
    }

    /// The C family: a pointer that can be turned back into one to the whole value.
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
    pub(crate) fn register(&'static self, context: Arc<T::Context>) -> Result<Registration<T>> {
        self.state.cmpxchg(IDLE, BUSY, Acquire).map_err(|_| EBUSY)?;
        // SAFETY: Having changed the state, `context` is ours; the family cannot be found, since
        // it has not been registered.
        unsafe { *self.context.get() = Some(context) };

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
pub(crate) struct Registration<T: Commands> {
    family: &'static Family<T>,
}

impl<T: Commands> Drop for Registration<T> {
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
pub(crate) struct Info<'a> {
    skb: *mut bindings::sk_buff,
    info: *mut bindings::genl_info,
    _call: PhantomData<&'a ()>,
}

impl<'a> Info<'a> {
    /// The attribute of number `n`, if there is one: the last, if there are more.
    pub(crate) fn attr(&self, n: u16) -> Option<Attr<'a>> {
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
    pub(crate) fn require(&self, n: u16) -> Result<Attr<'a>> {
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
    pub(crate) fn is_admin(&self) -> bool {
        // SAFETY: The message is valid and a netlink one, by the type invariant.
        unsafe { bindings::netlink_capable(self.skb, bindings::CAP_SYS_ADMIN as ffi::c_int) }
    }

    /// Adds to the acknowledgment a message of up to 79 bytes, and `attr` as the culprit: for
    /// commands that fail. The sender sees the last message only.
    pub(crate) fn refuse(&self, attr: Option<Attr<'_>>, message: fmt::Arguments<'_>) {
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

/// An attribute of a command.
///
/// # Invariants
///
/// The slice is one attribute: a header, which has the slice's length and is aligned as all
/// attributes are, and the payload. Nobody writes it.
#[derive(Clone, Copy)]
pub(crate) struct Attr<'a>(&'a [u8]);

impl<'a> Attr<'a> {
    /// An attribute from an array of them; none if the pointer is null.
    ///
    /// # Safety
    ///
    /// `attr` is null or points to an attribute of at least a header, which is valid and not
    /// written for `'a`.
    unsafe fn from_raw(attr: *const bindings::nlattr) -> Option<Self> {
        if attr.is_null() {
            return None;
        }
        // SAFETY: By the contract, the attribute has a header and as many bytes as that says.
        let bytes = unsafe { core::slice::from_raw_parts(attr.cast(), (*attr).nla_len.into()) };
        // INVARIANT: As the header says; by the contract.
        Some(Self(bytes))
    }

    fn as_raw(&self) -> *const bindings::nlattr {
        self.0.as_ptr().cast()
    }

    /// The number that the attribute has among its siblings.
    pub(crate) fn kind(&self) -> u16 {
        u16::from_ne_bytes([self.0[2], self.0[3]]) & bindings::NLA_TYPE_MASK as u16
    }

    /// The payload.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        &self.0[ATTR_HEADER..]
    }

    /// The payload without a NUL at the end, if there is one. There may be others.
    pub(crate) fn string(&self) -> &'a [u8] {
        let bytes = self.bytes();
        bytes.strip_suffix(b"\0").unwrap_or(bytes)
    }

    /// The integer that the payload starts with. Fails with `EINVAL` if it is too short.
    pub(crate) fn u32(&self) -> Result<u32> {
        let bytes = self.bytes().first_chunk().ok_or(EINVAL)?;
        Ok(u32::from_ne_bytes(*bytes))
    }

    /// The integer that the payload starts with. Fails with `EINVAL` if it is too short.
    pub(crate) fn u64(&self) -> Result<u64> {
        let bytes = self.bytes().first_chunk().ok_or(EINVAL)?;
        Ok(u64::from_ne_bytes(*bytes))
    }

    /// The attributes in the payload, up to the first that is not whole.
    pub(crate) fn items(&self) -> Items<'a> {
        // INVARIANT: The header that the payload follows has the size that attributes are aligned
        // to.
        Items(self.bytes())
    }

    /// Finds the attributes in the payload by their numbers, those that `policy` has; the last, if
    /// there are more of a number.
    ///
    /// Fails with `EINVAL` or `ERANGE` if one is not as in `policy`, and tells the sender of
    /// `info` which.
    pub(crate) fn parse<const N: usize>(
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
pub(crate) struct Items<'a>(&'a [u8]);

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
pub(crate) struct Parsed<'a, const N: usize> {
    attrs: [*mut bindings::nlattr; N],
    _payload: PhantomData<&'a [u8]>,
}

impl<'a, const N: usize> Parsed<'a, N> {
    /// The attribute of number `n`, if there is one.
    pub(crate) fn attr(&self, n: u16) -> Option<Attr<'a>> {
        let attr = self.attrs.get(usize::from(n))?;
        // SAFETY: By the type invariant.
        unsafe { Attr::from_raw(*attr) }
    }
}

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
pub(crate) struct Message {
    skb: NonNull<bindings::sk_buff>,
    header: NonNull<c_void>,
}

impl Message {
    /// A reply to `info`, for attributes that take up to `size` bytes together; see [`attr_size`].
    /// Sleeps.
    ///
    /// Fails with `ENOMEM`.
    pub(crate) fn reply(info: &Info<'_>, command: u8, size: usize) -> Result<Self> {
        // SAFETY: The info is valid, and its family registered for as long as the command runs.
        unsafe {
            let info = &*info.info;
            Self::new(info.snd_portid, info.snd_seq, info.family, command, size)
        }
    }

    /// A message to whoever listens, for attributes that take up to `size` bytes together; see
    /// [`attr_size`]. Sleeps.
    ///
    /// Fails with `ENOENT` if the family is not registered, and with `ENOMEM`.
    pub(crate) fn new_multicast<T: Commands>(
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
    pub(crate) fn put_u8(&self, attr: u16, value: u8) -> Result {
        self.put(attr, &value.to_ne_bytes())
    }

    /// Adds a number.
    pub(crate) fn put_u32(&self, attr: u16, value: u32) -> Result {
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
    pub(crate) fn nest(&self, attr: u16, fill: impl FnOnce(&Self) -> Result) -> Result {
        let skb = self.skb.as_ptr();
        // SAFETY: The message is valid and used by nobody else, as in `put`.
        let start = unsafe { helpers::nla_nest_start_noflag(skb, attr.into()) };
        if start.is_null() {
            return Err(EMSGSIZE);
        }
        let filled = fill(self).and_then(|()| {
            // SAFETY: As above. `start` is still in the message: it never moves, and `fill` has
            // neither sent nor dropped it, since it is borrowed, nor exchanged it, since that
            // borrow is shared, nor cut anything from it but what it had added itself.
            to_result(unsafe { helpers::nla_nest_end_safe(skb, start) })
        });
        if filled.is_err() {
            // SAFETY: As above.
            unsafe { helpers::nla_nest_cancel(skb, start) };
        }
        filled
    }

    /// Ends the message, which is the caller's to give away from then on.
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
    pub(crate) fn send_reply(self, info: &Info<'_>) -> Result {
        // SAFETY: The message is complete, and given away; the info is valid.
        to_result(unsafe { helpers::genlmsg_reply(self.finish(), info.info) })
    }

    /// Sends the message to all that listen to a group of `family`, by its index there, in all
    /// network namespaces. Does not sleep. That nobody listens is no failure.
    ///
    /// Fails with `EINVAL` if there is no such group, with `ENOENT` if the family is not
    /// registered, and, the namespaces from some one on being left out, with `ENOBUFS` if a
    /// receiver lost the message and wants the sender to know, and with `ENOMEM`.
    pub(crate) fn multicast<T: Commands>(self, family: &'static Family<T>, group: u8) -> Result {
        let family = family.as_registered()?;
        // SAFETY: A family is valid for ever. The number of its groups never changes.
        if group >= unsafe { (*family).n_mcgrps } {
            return Err(EINVAL);
        }
        let message = self.finish();
        let guard = rcu::read_lock();
        // SAFETY: The family is valid and has been registered; its private fields are not written
        // any more. The message is complete, and given away. The RCU read lock is held.
        let sent = unsafe { bindings::genlmsg_multicast_allns(family, message, 0, group.into()) };
        drop(guard);
        match to_result(sent) {
            Err(ESRCH) => Ok(()),
            result => result,
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: The message is ours, by the type invariant.
        unsafe { bindings::nlmsg_free(self.skb.as_ptr()) };
    }
}
