// SPDX-License-Identifier: GPL-2.0

//! Limits on how often something is logged.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use crate::{bindings, prelude::*, types::Opaque};

/// At most ten messages in five seconds, the kernel's default.
///
/// # Invariants
///
/// `state` is initialised.
#[pin_data]
pub struct RateLimit {
    #[pin]
    state: Opaque<bindings::ratelimit_state>,
}

// SAFETY: The state has a lock of its own.
unsafe impl Send for RateLimit {}
// SAFETY: As above.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// A limit that nothing counted against yet.
    pub fn new() -> impl PinInit<Self> {
        // INVARIANT: Initialised here.
        pin_init!(Self {
            // SAFETY: The function initialises the whole of what it is given.
            state <- Opaque::ffi_init(|slot| unsafe { bindings::ratelimit_state_init(slot) }),
        })
    }

    /// Whether one more message may be logged now. How many were not is logged under `name`.
    /// Does not sleep.
    #[inline]
    pub fn allow(&self, name: &CStr) -> bool {
        // SAFETY: The state is initialised by the type invariant, and the name NUL-terminated.
        unsafe { bindings::___ratelimit(self.state.get(), name.as_char_ptr()) != 0 }
    }
}
