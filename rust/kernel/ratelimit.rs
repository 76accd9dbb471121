// SPDX-License-Identifier: GPL-2.0

//! Limits on how often messages are logged.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use crate::{
    bindings,
    prelude::*,
    types::Opaque, //
};

/// A limit of ten messages in five seconds, which is the kernel's default.
///
/// C struct: `struct ratelimit_state`.
///
/// # Examples
///
/// ```
/// use kernel::ratelimit::Ratelimit;
///
/// let limit = KBox::pin_init(Ratelimit::new(), GFP_KERNEL)?;
/// for _ in 0..10 {
///     assert!(limit.ratelimit(c"example"));
/// }
/// assert!(!limit.ratelimit(c"example"));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `state` is initialised.
#[pin_data]
pub struct Ratelimit {
    #[pin]
    state: Opaque<bindings::ratelimit_state>,
}

// SAFETY: The state is a lock, counters and times, which are not bound to a thread.
unsafe impl Send for Ratelimit {}
// SAFETY: A shared reference only passes the state to `___ratelimit`, which uses the lock in it.
unsafe impl Sync for Ratelimit {}

impl Ratelimit {
    /// Creates a limit.
    ///
    /// Context: any.
    #[inline]
    pub fn new() -> impl PinInit<Self> {
        // INVARIANT: The initialiser below initialises `state`.
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes, and the function initialises all of it.
            state <- Opaque::ffi_init(|slot| unsafe { bindings::ratelimit_state_init(slot) }),
        })
    }

    /// Returns whether one more message may be logged now, and counts it. The number of messages
    /// that were suppressed is logged under `name`.
    ///
    /// Context: any.
    #[doc(alias = "__ratelimit")]
    #[inline]
    pub fn ratelimit(&self, name: &CStr) -> bool {
        // SAFETY: By the type invariant the state is initialised. `name` is NUL-terminated and
        // lives during the call.
        unsafe { bindings::___ratelimit(self.state.get(), name.as_char_ptr()) != 0 }
    }
}
