// SPDX-License-Identifier: GPL-2.0

//! Calls of tracepoints that a C file defines.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

/// Calls a tracepoint that a C file defines under `CREATE_RUST_TRACE_POINTS`. While the tracepoint
/// is off, this is one static branch, and the arguments are not evaluated.
/// [`declare_trace!`](crate::declare_trace) evaluates them first.
///
/// Context: any. The arguments are evaluated in the context of the caller.
///
/// # Safety
///
/// The arguments must be what the tracepoint's C code requires.
#[macro_export]
macro_rules! do_trace {
    ($name:ident($($arg:expr),* $(,)?)) => {
        $crate::macros::paste! {{
            #[cfg(CONFIG_TRACEPOINTS)]
            if $crate::jump_label::static_branch_unlikely!(
                $crate::bindings::[<__tracepoint_ $name>],
                $crate::bindings::tracepoint,
                key
            ) {
                $crate::bindings::[<rust_do_trace_ $name>]($($arg),*);
            }

            // This uses the arguments, for which the compiler would warn otherwise.
            #[cfg(not(CONFIG_TRACEPOINTS))]
            if false {
                $( let _unused = $arg; )*
            }
        }}
    };
}
