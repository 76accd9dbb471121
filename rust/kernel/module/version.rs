// SPDX-License-Identifier: GPL-2.0

//! Versions of modules.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

/// Declares the constant `VERSION` of a module. For a module that is loaded it also goes into the
/// section `.modinfo`, for `modinfo` and `/sys/module/*/version`.
///
/// # Examples
///
/// ```
/// kernel::module_version!("1.2");
///
/// assert_eq!(VERSION, "1.2");
/// ```
#[macro_export]
macro_rules! module_version {
    ($version:literal) => {
        const VERSION: &str = $version;

        #[cfg(MODULE)]
        const _: () = {
            const TEXT: &[u8] = concat!("version=", $version, "\0").as_bytes();

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static INFO: [u8; TEXT.len()] = match TEXT.first_chunk() {
                Some(text) => *text,
                None => [0; TEXT.len()],
            };
        };
    };
}
