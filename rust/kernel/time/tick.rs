// SPDX-License-Identifier: GPL-2.0

//! The clock that ticks.
//!
//! C header: [`include/linux/jiffies.h`](srctree/include/linux/jiffies.h)

use crate::{bindings, time::Jiffies};

/// The time in jiffies, which wraps around. Costs one load. Does not sleep.
#[inline]
pub fn jiffies() -> Jiffies {
    // SAFETY: A word that the kernel writes whole, and that is always there.
    unsafe { (&raw const bindings::jiffies).read_volatile() }
}

/// How long ago `then` was, in jiffies; 0 if another CPU has read it off the clock just now. Does
/// not sleep.
#[inline]
pub fn jiffies_since(then: Jiffies) -> Jiffies {
    let ago = jiffies().wrapping_sub(then);
    if ago > Jiffies::MAX / 2 {
        0
    } else {
        ago
    }
}
