// SPDX-License-Identifier: GPL-2.0

//! The clock that counts jiffies.
//!
//! C header: [`include/linux/jiffies.h`](srctree/include/linux/jiffies.h)

use crate::{
    bindings,
    time::Jiffies, //
};

/// Returns the time in jiffies, which wraps around.
///
/// Context: any.
#[inline]
pub fn jiffies() -> Jiffies {
    // SAFETY: `jiffies` is a static word, which the kernel writes whole, so that a volatile read
    // does not tear.
    unsafe { (&raw const bindings::jiffies).read_volatile() }
}

/// Returns how many jiffies have passed since `then`, and 0 if `then` is later than the time that
/// this CPU sees.
///
/// Context: any.
///
/// # Examples
///
/// ```
/// use kernel::time::{
///     jiffies,
///     jiffies_since, //
/// };
///
/// let start = jiffies();
/// assert_eq!(jiffies_since(start.wrapping_add(1_000_000)), 0);
/// pr_info!("{} jiffies have passed\n", jiffies_since(start));
/// ```
#[inline]
pub fn jiffies_since(then: Jiffies) -> Jiffies {
    let ago = jiffies().wrapping_sub(then);
    if ago > Jiffies::MAX / 2 {
        0
    } else {
        ago
    }
}
