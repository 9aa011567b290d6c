//! Bytes from the guest that a host socket did not take at once.

use std::io::{self, Write};

use super::packet::Buffers;

/// A queue of bytes. Its owner bounds it.
#[derive(Debug, Default)]
pub(super) struct OutBuffer {
    bytes: Vec<u8>,
    /// Those before are written.
    start: usize,
}

impl OutBuffer {
    /// An empty buffer keeps at most this much memory.
    const KEPT_CAPACITY: usize = 16 * 1024;

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a copy of guest memory.
    pub(super) fn push(&mut self, payload: &Buffers<'_>) {
        // More than half is written: moving the rest costs less than what was written.
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        for slice in payload.slices() {
            let end = self.bytes.len();
            self.bytes.resize(end + slice.len(), 0);
            slice.copy_to(&mut self.bytes[end..]);
        }
    }

    /// Writes as much as `sink` takes; gives the number of bytes.
    ///
    /// # Errors
    /// `WouldBlock` when the sink took nothing; any other error of the sink.
    pub(super) fn write_to(&mut self, mut sink: impl Write) -> io::Result<usize> {
        let written = sink.write(&self.bytes[self.start..])?;
        self.start += written;
        if self.is_empty() {
            self.clear();
        }
        Ok(written)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(Self::KEPT_CAPACITY);
        self.start = 0;
    }
}
