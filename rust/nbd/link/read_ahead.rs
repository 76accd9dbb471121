// SPDX-License-Identifier: GPL-2.0

//! The read-ahead buffer of a receiver.

use crate::protocol::REPLY_LEN;

/// This many replies without payload need one receive. Bytes of a payload that were read ahead are
/// copied twice, so the buffer is small. A link takes 256 bytes with it.
const SIZE: usize = 6 * REPLY_LEN;

/// What is left of a longer payload is received by the work, without reading ahead, in bytes.
pub(crate) const LONG_PAYLOAD: usize = 32 << 10;

/// A buffer of bytes that were received and not parsed yet.
pub(super) struct ReadAhead {
    bytes: [u8; SIZE],
    /// The bytes are from `start` to `end`.
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

    /// Returns the bytes that are not parsed yet.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or(&[])
    }

    /// Removes the first `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Returns the free room after the bytes. [`Self::add`] records how much of it was filled.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Records that `count` bytes were received into [`Self::room`].
    pub(super) fn add(&mut self, count: usize) {
        self.end = SIZE.min(self.end + count);
    }
}
