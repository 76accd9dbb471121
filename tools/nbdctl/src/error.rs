// SPDX-License-Identifier: GPL-2.0

//! Why a command failed: in words for people, and as an exit code for programs.

use std::fmt;

/// The exit codes. They are part of the interface and are documented in the guide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel refused, or a file of the system could not be read or written.
    Failed = 1,
    /// The command line asks for something impossible; clap ends with the same code.
    Usage = 2,
    /// The server could not be reached, or does not have the export.
    Server = 3,
    /// There is no such device, or it is not connected.
    NoDevice = 4,
    /// The export is not the one that the device was connected to.
    Export = 5,
    /// The driver is not loaded, or is too old for this command.
    Driver = 6,
}

/// A failure of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    what: String,
    hint: Option<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure; `what` names the device or the server, and the reason.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            hint: None,
        }
    }

    /// Adds what the user can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts the name of the device, or what was tried, before the reason.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.what = format!("{context}: {}", self.what);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_order() {
        let error = Error::new(Kind::Server, "Connection refused")
            .hint("start the server")
            .context("nbd0");
        assert_eq!(
            error.to_string(),
            "nbd0: Connection refused (start the server)"
        );
        assert_eq!(error.kind as u8, 3);
    }
}
