// SPDX-License-Identifier: GPL-2.0

//! Generic netlink families with commands.
//!
//! C headers: [`include/net/genetlink.h`](srctree/include/net/genetlink.h),
//! [`include/net/netlink.h`](srctree/include/net/netlink.h)

use super::{
    attr::{
        Attr,
        Policy, //
    },
    Family, //
};
use crate::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    ffi,
    fmt,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        ArcBorrow, //
    }, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ptr, //
};

/// The handler of a family's commands. [`Family::with_commands`] has an example.
pub trait Commands: Sized + 'static {
    /// The data that all commands work on. The registration keeps a reference to it.
    type Context: Send + Sync + 'static;

    /// Runs a command that a user, privileged or not, has sent. The current task is the sender.
    /// Other commands may run at the same time.
    ///
    /// An error is sent to the user, with what [`Info::require`], [`Info::refuse`] and
    /// [`Attr::parse`] have added. `EINTR` is an exception: netlink sends no answer then. Netlink
    /// does not restart a command that fails with `ERESTARTSYS`.
    ///
    /// Context: may sleep, with genetlink's `cb_lock` held for reading. A task that registers or
    /// unregisters any family waits for the command, and all later commands wait for that task. The
    /// command must therefore not drop a [`CommandRegistration`], nor load a module that has a
    /// family, nor wait for a task that does one of these.
    fn handle(context: ArcBorrow<'_, Self::Context>, command: u8, info: &Info<'_>) -> Result;
}

/// A command of a family.
///
/// C struct: `struct genl_small_ops`. [`Family::with_commands`] has an example.
#[repr(transparent)]
pub struct Operation<T: Commands>(bindings::genl_small_ops, PhantomData<fn(T)>);

impl<T: Commands> Operation<T> {
    /// Creates a command that accepts unknown attributes, integers that are longer than they need
    /// be, and any content of the reserved header fields.
    ///
    /// Context: any.
    pub const fn lenient(command: u8) -> Self {
        Self(
            bindings::genl_small_ops {
                doit: Some(CommandFamily::<T>::doit),
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

/// The family is not registered, and the function that changes the state to `BUSY` owns `context`.
const IDLE: u32 = 0;
/// The family is about to be registered, or was registered once.
const BUSY: u32 = 1;
/// The family is registered.
const REGISTERED: u32 = 2;

/// A generic netlink family with commands, for a `static`: a [`Family`], of which
/// [`Family::with_commands`] makes it, and what its commands work on. The commands run in parallel,
/// and in all network namespaces. [`Family::with_commands`] has an example.
///
/// # Invariants
///
/// - `family` is complete but for the fields that are private to the C side. Only the C side writes
///   those, in the calls of `genl_register_family`, of which no more than one succeeds, the last
///   one. All of its operations are those of `T`, and it has at least one attribute.
/// - While a command can find `family` by its number, `context` is `Some` and not written.
/// - If `state` is `REGISTERED`, `genl_register_family` has succeeded.
#[repr(C)]
pub struct CommandFamily<T: Commands> {
    // This is the first field, since `doit` casts a pointer to it into one to the whole value. It
    // must not be given out: to register it without a context is safe.
    family: Family,
    state: Atomic<u32>,
    context: UnsafeCell<Option<Arc<T::Context>>>,
}

// SAFETY: `family` is only written under the locks of the C side. `context` is only written by the
// one function that has changed `state` from `IDLE` to `BUSY`, before the family is registered, or
// by the drop of the only registration after it is unregistered. `Arc<T::Context>` may be used by
// and sent to any thread, since the context is `Send` and `Sync`.
unsafe impl<T: Commands> Sync for CommandFamily<T> {}

impl Family {
    /// Adds commands, and the attributes that `policy` describes.
    ///
    /// This is for constants: it panics if an array is empty or has more than 255 entries, there is
    /// no attribute past `policy[0]`, or a command is 255.
    ///
    /// Context: any.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     net::netlink::{
    ///         attr_size,
    ///         CommandFamily,
    ///         Commands,
    ///         Family,
    ///         Info,
    ///         MulticastGroup,
    ///         Operation,
    ///         Policy, //
    ///     },
    ///     sync::{
    ///         atomic::{
    ///             Atomic,
    ///             Relaxed, //
    ///         },
    ///         Arc,
    ///         ArcBorrow, //
    ///     }, //
    /// };
    ///
    /// const ADD: u8 = 1;
    /// const AMOUNT: c_int = 1;
    /// static POLICY: [Policy; 2] = [Policy::UNSPEC, Policy::U32];
    /// static OPERATIONS: [Operation<Sum>; 1] = [Operation::lenient(ADD)];
    /// static GROUPS: [MulticastGroup; 1] = [MulticastGroup::const_new(c"sums")];
    ///
    /// struct Sum;
    ///
    /// impl Commands for Sum {
    ///     type Context = Atomic<u32>;
    ///
    ///     fn handle(sum: ArcBorrow<'_, Atomic<u32>>, command: u8, info: &Info<'_>) -> Result {
    ///         let amount = info.require(AMOUNT)?.u32()?;
    ///         let mut reply = info.new_reply(command, attr_size(4))?;
    ///         reply.put_u32(AMOUNT, sum.fetch_add(amount, Relaxed).wrapping_add(amount))?;
    ///         reply.reply(info)
    ///     }
    /// }
    ///
    /// # // A module gives its own instead.
    /// # // SAFETY: The kernel itself has no module.
    /// # static THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
    /// static FAMILY: CommandFamily<Sum> =
    ///     Family::const_new(&THIS_MODULE, b"example-sum\0", 1, &GROUPS)
    ///         .with_commands(&POLICY, &OPERATIONS);
    ///
    /// let registration = FAMILY.register(Arc::new(Atomic::new(0), GFP_KERNEL)?)?;
    /// // Users can send commands now.
    /// drop(registration);
    /// # Ok::<(), Error>(())
    /// ```
    pub const fn with_commands<T: Commands>(
        self,
        policy: &'static [Policy],
        operations: &'static [Operation<T>],
    ) -> CommandFamily<T> {
        const fn count(len: usize) -> u8 {
            assert!(len > 0 && len <= u8::MAX as usize);
            len as u8
        }

        assert!(policy.len() > 1, "a family without attributes");
        let family = self.inner.get();
        // SAFETY: The value is owned, and its C family is initialised. The entries of both arrays
        // are transparent wrappers of the C structs.
        unsafe {
            (*family).maxattr = (count(policy.len()) - 1) as u32;
            (*family).policy = policy.as_ptr().cast();
            (*family).n_small_ops = count(operations.len());
            (*family).small_ops = operations.as_ptr().cast();
        }

        // The C side forbids lenient commands from `resv_start_op` on.
        let mut i = 0;
        while i < operations.len() {
            let command = operations[i].0.cmd;
            assert!(command < u8::MAX);
            // SAFETY: The value is owned, and its C family is initialised.
            unsafe {
                if (*family).resv_start_op <= command {
                    (*family).resv_start_op = command + 1;
                }
            }
            i += 1;
        }

        // INVARIANT: The operations are those of `T` by their type, there is at least one
        // attribute, and the fields that are private to the C side are zero. The family is not
        // registered: that needs a reference for ever, and this function owns the value.
        CommandFamily {
            family: self,
            state: Atomic::new(IDLE),
            context: UnsafeCell::new(None),
        }
    }
}

impl<T: Commands> CommandFamily<T> {
    /// Returns a pointer to the C family that can be cast into one to the whole value.
    #[inline]
    fn as_raw(&'static self) -> *mut bindings::genl_family {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// Registers the family, so that users can send it commands, which work on `context`.
    ///
    /// Commands may run before this returns, and until the registration is dropped.
    ///
    /// Fails with `EBUSY` if the family is registered or was registered once, with `EEXIST` if
    /// there is another family of its name, with `EINVAL` if two of its commands have the same
    /// number, and with `ENOMEM`.
    ///
    /// Context: may sleep; takes `cb_lock` for writing, so that commands of all families are waited
    /// for. It must not be called by a command.
    pub fn register(&'static self, context: Arc<T::Context>) -> Result<CommandRegistration<T>> {
        self.state.cmpxchg(IDLE, BUSY, Acquire).map_err(|_| EBUSY)?;
        // SAFETY: This function has changed the state from `IDLE`, so that no other one writes
        // `context`, and no command can find the family, since it is not registered.
        unsafe { *self.context.get() = Some(context) };

        // INVARIANT: The context is `Some`. It is not written until the call has failed or the
        // registration is dropped.
        // SAFETY: The family is complete and static, as are the arrays that it points to, and its
        // module unregisters it before it is unloaded, by the drop of the registration. By `state`
        // it is not registered already.
        if let Err(error) = to_result(unsafe { bindings::genl_register_family(self.as_raw()) }) {
            // SAFETY: A failed `genl_register_family` has not added the family, or has removed it
            // again before it released `cb_lock`, held for writing since before it added the
            // family. No command has found the family, and no other function writes the context,
            // since the state is `BUSY`.
            let context = unsafe { (*self.context.get()).take() };
            // Release: the next function that finds the state `IDLE` sees that the context is gone.
            self.state.store(IDLE, Release);
            drop(context);
            return Err(error);
        }
        // INVARIANT: The call has succeeded. Release: `as_registered` sees the fields that are
        // private to the C side.
        self.state.store(REGISTERED, Release);
        // INVARIANT: The call has succeeded, so that the family is registered. There is no other
        // registration, since the state never becomes `IDLE` again.
        Ok(CommandRegistration { family: self })
    }

    /// Returns the C family if it is registered. It is not written any more, since only the
    /// registration writes it.
    ///
    /// Fails with `ENOENT` if the family is not registered yet, or no longer.
    pub(super) fn as_registered(&'static self) -> Result<*mut bindings::genl_family> {
        if self.state.load(Acquire) != REGISTERED {
            return Err(ENOENT);
        }
        Ok(self.as_raw())
    }

    /// The callback of all commands.
    ///
    /// # Safety
    ///
    /// Only genetlink may call this, as the `doit` of an operation of a registered
    /// `CommandFamily<T>`.
    unsafe extern "C" fn doit(
        skb: *mut bindings::sk_buff,
        info: *mut bindings::genl_info,
    ) -> ffi::c_int {
        // SAFETY: By the safety requirements the info is valid, its header is in the message, of
        // which genetlink has checked the length, and its family is a `CommandFamily<T>`. The
        // pointer to that is the one given to `genl_register_family`, which is one to the whole
        // value, a static.
        let (family, command) = unsafe {
            (
                &*(*info).family.cast::<CommandFamily<T>>(),
                (*(*info).genlhdr).cmd, //
            )
        };
        // SAFETY: genetlink has found the family, so that by the type invariant the context is
        // there and not written while the family can be found. It stays until this function
        // returns: only `genl_rcv` calls `doit`, and holds `cb_lock` for reading from before it
        // finds the family until `doit` has returned. The drop of the registration takes the
        // context away only after `genl_unregister_family`, which has held `cb_lock` for writing.
        // The write of the context happens before, since `genl_register_family`, after it, has held
        // `cb_lock` for writing, too.
        let context = unsafe { &*family.context.get() };
        from_result(|| {
            let context = context.as_ref().ok_or(ENODEV)?;
            // INVARIANT: By the safety requirements message and info are valid until this function
            // returns, which `handle` cannot make the reference outlive, and the current task runs
            // it. There is an array of attributes, since the family has a policy and at least one
            // attribute.
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

/// The registration of a family. Dropping it unregisters the family and drops the reference to the
/// context. [`Family::with_commands`] has an example.
///
/// Context: may sleep, until the commands that run have returned. It must not be dropped by a
/// command, nor with a lock held that a command takes.
///
/// # Invariants
///
/// `family` is registered, and this is the only registration of it.
pub struct CommandRegistration<T: Commands> {
    family: &'static CommandFamily<T>,
}

impl<T: Commands> Drop for CommandRegistration<T> {
    #[inline]
    fn drop(&mut self) {
        self.family.state.store(BUSY, Relaxed);
        // SAFETY: By the type invariant the family is registered.
        unsafe { bindings::genl_unregister_family(self.family.as_raw()) };
        // SAFETY: No command uses the context: `genl_unregister_family` has held `cb_lock` for
        // writing, so that the commands that had found the family, which hold it for reading, have
        // returned; before it released the lock it removed the family's number, so that no other
        // command finds the family. `doit` is the only callback. No other function writes the
        // context, since the state is `BUSY`.
        let context = unsafe { (*self.family.context.get()).take() };
        drop(context);
    }
}

/// A command as the user has sent it.
///
/// C struct: `struct genl_info`.
///
/// # Examples
///
/// ```
/// use kernel::net::netlink::Info;
///
/// const SIZE: c_int = 1;
///
/// /// The answer to a user names the attribute at fault, and says what is wrong with it.
/// fn size(info: &Info<'_>) -> Result<u64> {
///     if !info.is_admin() {
///         return Err(EPERM);
///     }
///     let attr = info.require(SIZE)?;
///     let size = attr.u64()?;
///     if size % 512 != 0 {
///         info.refuse(Some(attr), fmt!("{size} is no multiple of 512"));
///         return Err(EINVAL);
///     }
///     Ok(size)
/// }
/// ```
///
/// # Invariants
///
/// `skb` and `info` are the arguments of a call of `doit` that lasts for `'a`. `info` has an array
/// of attributes up to the family's last, each null or valid for `'a`, and never written. The
/// current task runs the call.
pub struct Info<'a> {
    skb: *mut bindings::sk_buff,
    pub(super) info: *mut bindings::genl_info,
    _call: PhantomData<&'a ()>,
}

impl<'a> Info<'a> {
    /// Returns the attribute of number `n`, if there is one, and the last if there are several.
    ///
    /// Context: any.
    #[inline]
    pub fn attr(&self, n: c_int) -> Option<Attr<'a>> {
        // SAFETY: By the type invariant the info is valid, and so is its registered family, of
        // which the number of attributes never changes.
        let last = unsafe { (*(*self.info).family).maxattr };
        let n = u32::try_from(n).ok().filter(|n| *n <= last)?;
        // SAFETY: By the type invariant the array has the entries from 0 to `last`, and each is
        // null or points to an attribute that is valid for `'a` and not written. genetlink has
        // checked that the attributes are whole.
        unsafe { Attr::from_raw(*(*self.info).attrs.add(n as usize)) }
    }

    /// Returns the attribute of number `n`. Without one, fails with `EINVAL` and names the missing
    /// attribute in the answer.
    ///
    /// Context: any.
    pub fn require(&self, n: c_int) -> Result<Attr<'a>> {
        self.attr(n).ok_or_else(|| {
            // SAFETY: By the type invariant the info is valid. Its report is null, or is on the
            // stack of the task that runs the command, which is the current one, since this type is
            // not `Send`: nothing else reads or writes it meanwhile.
            unsafe {
                let extack = (*self.info).extack;
                if !extack.is_null() {
                    (*extack).miss_nest = ptr::null();
                    (*extack).miss_type = n as u16;
                }
            }
            EINVAL
        })
    }

    /// Returns whether both the sender and the task that has opened its socket have `CAP_SYS_ADMIN`
    /// in the initial user namespace.
    ///
    /// Context: process context; does not sleep.
    #[inline]
    pub fn is_admin(&self) -> bool {
        // SAFETY: By the type invariant the message is the one that netlink has passed to `doit`,
        // hence valid and with the control block of netlink.
        unsafe { bindings::netlink_capable(self.skb, bindings::CAP_SYS_ADMIN as ffi::c_int) }
    }

    /// Adds a message of up to 79 bytes to the answer of a command that fails, and `attr` as the
    /// attribute at fault. A later call replaces both.
    ///
    /// Context: any.
    pub fn refuse(&self, attr: Option<Attr<'_>>, message: fmt::Arguments<'_>) {
        let attr = attr.map_or(ptr::null(), |attr| attr.as_raw());
        // SAFETY: By the type invariant the info is valid. Its report is null, or is on the stack
        // of the task that runs the command, which is the current one, since this type is not
        // `Send`. The format takes a pointer to `fmt::Arguments`, which live during the call, and
        // `snprintf` writes no more than the buffer's length, with a NUL at the end. Of the
        // attribute `netlink_ack` only uses the address, if that is within the command.
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
