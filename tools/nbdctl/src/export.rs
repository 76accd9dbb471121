// SPDX-License-Identifier: GPL-2.0

//! What a server says of an export, and whether it is still the export that a device has.

use crate::error::{Error, Kind, Result};
use crate::output::Bytes;
use serde::{Deserialize, Serialize};

/// The transmission flags of the NBD protocol that the kernel knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flags(pub u64);

impl Flags {
    pub const HAS_FLAGS: Self = Self(1 << 0);
    pub const READ_ONLY: Self = Self(1 << 1);
    pub const FLUSH: Self = Self(1 << 2);
    pub const FUA: Self = Self(1 << 3);
    pub const ROTATIONAL: Self = Self(1 << 4);
    pub const TRIM: Self = Self(1 << 5);
    pub const WRITE_ZEROES: Self = Self(1 << 6);
    pub const MULTI_CONN: Self = Self(1 << 8);

    const NAMES: [(Self, &'static str); 7] = [
        (Self::READ_ONLY, "read-only"),
        (Self::FLUSH, "flush"),
        (Self::FUA, "fua"),
        (Self::ROTATIONAL, "rotational"),
        (Self::TRIM, "trim"),
        (Self::WRITE_ZEROES, "write-zeroes"),
        (Self::MULTI_CONN, "multi-conn"),
    ];

    pub fn has(self, flag: Self) -> bool {
        self.0 & flag.0 == flag.0
    }

    pub fn with(self, flag: Self, set: bool) -> Self {
        if set {
            Self(self.0 | flag.0)
        } else {
            self
        }
    }

    /// The names of the flags, in the order of their bits.
    pub fn names(self) -> Vec<&'static str> {
        Self::NAMES
            .iter()
            .filter(|(flag, _)| self.has(*flag))
            .map(|(_, name)| *name)
            .collect()
    }
}

/// An export as a server describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// In bytes.
    pub size: u64,
    pub flags: Flags,
    /// The smallest block in bytes that the server can read and write.
    pub minimum_block: u64,
}

/// What a device was connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The device's size in bytes.
    pub size: u64,
    /// The device's block size in bytes.
    pub block_size: u64,
    /// None if nobody knows.
    pub flags: Option<Flags>,
    pub connections: u32,
}

/// The size in bytes that a device has whose export has this size: whole blocks.
pub fn device_size(export_size: u64, block_size: u64) -> u64 {
    export_size - export_size % block_size.max(1)
}

impl Expected {
    /// Refuses an export to which requests of the device must not be sent. Flags that the server
    /// has gained are no reason, for the kernel goes on without them; flags that it has lost are,
    /// for requests would fail, or a flush would be left out.
    pub fn check(&self, export: &Export) -> Result<()> {
        let refuse = |reason: String| Err(Error::new(Kind::Export, reason));
        let size = device_size(export.size, self.block_size);
        let have = device_size(self.size, self.block_size);
        if size < have {
            return refuse(format!(
                "the export has shrunk from {} to {}, or is another one",
                Bytes(have),
                Bytes(size)
            ));
        }
        if size > have {
            return Err(Error::new(
                Kind::Export,
                format!(
                    "the export has grown from {} to {}, or is another one",
                    Bytes(have),
                    Bytes(size)
                ),
            )
            .hint("if it is the same export, nbdctl resize makes the device as large"));
        }
        let Some(flags) = self.flags else {
            return Ok(());
        };
        if export.flags.has(Flags::READ_ONLY) && !flags.has(Flags::READ_ONLY) {
            return refuse("the export has become read-only, or is another one".into());
        }
        let needed = [Flags::FLUSH, Flags::FUA, Flags::TRIM, Flags::WRITE_ZEROES];
        let several = (self.connections > 1).then_some(Flags::MULTI_CONN);
        for flag in needed.into_iter().chain(several) {
            if flags.has(flag) && !export.flags.has(flag) {
                return refuse(format!(
                    "the export has lost \"{}\", or is another one",
                    flag.names().concat()
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Flags = Flags(0b1_0110_1101);

    fn expected() -> Expected {
        Expected {
            size: 1 << 20,
            block_size: 512,
            flags: Some(ALL),
            connections: 1,
        }
    }

    fn export(size: u64, flags: Flags) -> Export {
        Export {
            size,
            flags,
            minimum_block: 1,
        }
    }

    #[test]
    fn the_same_export_is_taken() {
        assert_eq!(expected().check(&export(1 << 20, ALL)), Ok(()));
        // The kernel does not see the last half sector.
        assert_eq!(expected().check(&export((1 << 20) + 256, ALL)), Ok(()));
        assert_eq!(
            expected().check(&export(1 << 20, ALL.with(Flags::ROTATIONAL, true))),
            Ok(())
        );
    }

    #[test]
    fn another_size_is_refused() {
        for (size, word) in [((1 << 20) - 512, "shrunk"), (2 << 20, "grown")] {
            let error = expected().check(&export(size, ALL)).unwrap_err();
            assert_eq!(error.kind, Kind::Export);
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn lost_flags_are_refused() {
        for flag in [Flags::FLUSH, Flags::FUA, Flags::TRIM, Flags::WRITE_ZEROES] {
            let error = expected()
                .check(&export(1 << 20, Flags(ALL.0 & !flag.0)))
                .unwrap_err();
            assert!(error.to_string().contains(flag.names()[0]), "{error}");
        }
        let read_only = ALL.with(Flags::READ_ONLY, true);
        assert!(expected().check(&export(1 << 20, read_only)).is_err());
    }

    #[test]
    fn multi_conn_matters_to_several_connections_only() {
        let alone = Flags(ALL.0 & !Flags::MULTI_CONN.0);
        assert_eq!(expected().check(&export(1 << 20, alone)), Ok(()));
        let several = Expected {
            connections: 2,
            ..expected()
        };
        assert!(several.check(&export(1 << 20, alone)).is_err());
    }

    #[test]
    fn unknown_flags_leave_the_size() {
        let unknown = Expected {
            flags: None,
            ..expected()
        };
        assert_eq!(unknown.check(&export(1 << 20, Flags(0))), Ok(()));
        assert!(unknown.check(&export(1 << 19, Flags(0))).is_err());
    }

    #[test]
    fn a_device_that_is_read_only_takes_an_export_that_is() {
        let read_only = Flags::HAS_FLAGS.with(Flags::READ_ONLY, true);
        let expected = Expected {
            flags: Some(read_only),
            ..expected()
        };
        assert_eq!(expected.check(&export(1 << 20, read_only)), Ok(()));
        // A device that was made read-only on purpose.
        assert_eq!(expected.check(&export(1 << 20, Flags::HAS_FLAGS)), Ok(()));
    }
}
