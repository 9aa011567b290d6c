//! Takes the guest's output from the transmit queue.

use vm_memory::VolatileSlice;

use super::backend::Output;
use crate::devices::virtio::buffers::{ChainError, gather_readable};
use crate::devices::virtio::queue_service::Answer;
use crate::devices::virtio::ring::{Chain, RingError};
use crate::memory::GuestMemory;

/// The most bytes of a chain that are passed on; drivers send a few pages at most.
const MAX_CHAIN: usize = 1 << 20;
/// How much is copied out of guest memory at a time.
const BLOCK: usize = 4096;

/// The transmit queue's work.
pub(super) struct Transmit {
    output: Output,
}

impl Transmit {
    /// Output goes to `output`.
    pub(super) fn new(output: Output) -> Self {
        Self { output }
    }

    fn pass_on(&self, memory: &GuestMemory, chain: Chain<'_>) -> Result<(), ChainError> {
        let mut pieces = Vec::new();
        gather_readable(memory, chain, &mut pieces)?;
        let mut room = MAX_CHAIN;
        for piece in &pieces {
            let take = piece.len().min(room);
            room -= take;
            self.pass_on_piece(piece, take);
        }
        Ok(())
    }

    fn pass_on_piece(&self, piece: &VolatileSlice<'_>, take: usize) {
        let mut block = [0; BLOCK];
        let mut done = 0;
        while done < take {
            let part = &mut block[..BLOCK.min(take - done)];
            let Ok(rest) = piece.offset(done) else {
                return;
            };
            let copied = rest.copy_to(part);
            self.output.write(&part[..copied]);
            done += copied;
        }
    }
}

impl Answer for Transmit {
    type Error = RingError;

    /// Malformed output is dropped, and the rest goes on.
    fn answer(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, RingError> {
        let head = chain.head_index();
        if let Err(error) = self.pass_on(memory, chain) {
            tracing::debug!(%error, head, "dropped console output");
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests;
