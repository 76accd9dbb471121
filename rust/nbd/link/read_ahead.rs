// SPDX-License-Identifier: GPL-2.0

//! Bytes that a receiver has read ahead of what it looks at.

use crate::protocol::REPLY_LEN;

/// This many replies without payload cost one receive. What is read ahead of a payload is copied
/// once more, so it is kept small; a link takes 256 bytes with it.
const SIZE: usize = 6 * REPLY_LEN;

/// A buffer of bytes that were received and not looked at.
pub(super) struct ReadAhead {
    bytes: [u8; SIZE],
    /// Those from `start` to `end`.
    start: usize,
    end: usize,
}

impl ReadAhead {
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; SIZE],
            start: 0,
            end: 0,
        }
    }

    /// What was received and not looked at.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or(&[])
    }

    /// So many of the bytes have been looked at.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Room for more behind the bytes. [`Self::add`] says how many of it have come.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were received into the [`Self::room`].
    pub(super) fn add(&mut self, count: usize) {
        self.end = SIZE.min(self.end + count);
    }
}
