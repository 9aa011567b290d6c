//! Fills the driver's buffers with entropy.

use std::io;

use vm_memory::{ReadVolatile, VolatileSlice};

use crate::devices::virtio::buffers::{ChainError, gather_writable};
use crate::devices::virtio::queue_service::Answer;
use crate::devices::virtio::ring::{Chain, RingError};
use crate::memory::GuestMemory;

/// The most bytes of a chain that are filled. A driver that wants more asks again.
const MAX_REQUEST: usize = 64 * 1024;

/// The queue's work. `S` is the entropy source.
pub(super) struct Fill<S> {
    source: S,
}

impl<S: ReadVolatile> Fill<S> {
    /// Entropy comes from `source`.
    pub(super) fn new(source: S) -> Self {
        Self { source }
    }

    fn fill_piece(&mut self, piece: &VolatileSlice<'_>, room: usize) -> io::Result<usize> {
        let wanted = piece.len().min(room);
        let mut done = 0;
        while done < wanted {
            let mut rest = piece
                .subslice(done, wanted - done)
                .map_err(io::Error::other)?;
            match self.source.read_volatile(&mut rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(vm_memory::VolatileMemoryError::IOError(error))
                    if error.kind() == io::ErrorKind::Interrupted => {}
                Err(vm_memory::VolatileMemoryError::IOError(error)) => return Err(error),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(done)
    }
}

impl<S: ReadVolatile> Answer for Fill<S> {
    type Error = FillError;

    /// Fills a chain's buffers up to the limit.
    fn answer(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, FillError> {
        let mut pieces = Vec::new();
        gather_writable(memory, chain, &mut pieces)?;
        let mut filled = 0;
        for piece in &pieces {
            let room = MAX_REQUEST - filled;
            filled += self.fill_piece(piece, room).map_err(FillError::Source)?;
        }
        // At most MAX_REQUEST.
        Ok(u32::try_from(filled).unwrap_or(u32::MAX))
    }
}

/// Why the queue is not served any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum FillError {
    /// The driver broke the queue.
    #[error("the driver broke the ring")]
    Ring(#[from] RingError),
    /// The driver offered something that cannot be filled.
    #[error("the driver offered a malformed chain")]
    Chain(#[from] ChainError),
    /// The source has failed.
    #[error("cannot read entropy")]
    Source(#[source] io::Error),
}

#[cfg(test)]
mod tests;
