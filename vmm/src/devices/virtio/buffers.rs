//! The buffers of a descriptor chain (virtio 1.2 §2.7.5) as pieces of guest memory that were checked to be there. The
//! guest writes descriptors: a chain may loop, lead out of memory, or be far too long.

use vm_memory::{GuestMemory as _, VolatileSlice};

use super::ring::Chain;
use crate::memory::GuestMemory;

/// The most descriptors, and the most pieces of memory, that a chain may have. It leaves room for one more in a
/// vectored read or write (IOV_MAX is 1024), and is more than any queue here is long.
pub const MAX_PIECES: usize = 1023;

/// Why a chain cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The chain loops, leads to a descriptor that does not exist, or to a broken indirect table.
    #[error("the chain has no proper end")]
    Endless,
    /// A buffer is not in guest memory.
    #[error("a buffer is outside guest memory")]
    OutsideMemory,
    /// More than [`MAX_PIECES`].
    #[error("the chain has too many buffers")]
    TooManyBuffers,
    /// A buffer is for the device to write where it may only read, or the other way about.
    #[error("a buffer has the wrong direction")]
    Direction,
}

/// Appends the buffers of `chain`, all of which must be for the device to read, and gives their length in bytes.
///
/// # Errors
/// The chain is malformed; what was appended is taken away again.
pub fn gather_readable<'m>(
    memory: &'m GuestMemory,
    chain: Chain<'m>,
    pieces: &mut Vec<VolatileSlice<'m>>,
) -> Result<usize, ChainError> {
    gather(memory, chain, false, pieces)
}

/// Appends the buffers of `chain`, all of which must be for the device to write, and gives their length in bytes.
///
/// # Errors
/// The chain is malformed; what was appended is taken away again.
pub fn gather_writable<'m>(
    memory: &'m GuestMemory,
    chain: Chain<'m>,
    pieces: &mut Vec<VolatileSlice<'m>>,
) -> Result<usize, ChainError> {
    gather(memory, chain, true, pieces)
}

/// The buffers of a request and of its answer.
#[derive(Debug, Default)]
pub struct Exchange<'m> {
    /// For the device to read.
    pub request: Vec<VolatileSlice<'m>>,
    /// For the device to write.
    pub answer: Vec<VolatileSlice<'m>>,
}

/// Splits a chain into what the device reads and what it writes, in this order (virtio 1.2 §2.7.4.2).
///
/// # Errors
/// The chain is malformed.
pub fn split<'m>(memory: &'m GuestMemory, chain: Chain<'m>) -> Result<Exchange<'m>, ChainError> {
    let mut exchange = Exchange::default();
    walk(memory, chain, |piece, writable| {
        if writable {
            exchange.answer.push(piece);
        } else if exchange.answer.is_empty() {
            exchange.request.push(piece);
        } else {
            return Err(ChainError::Direction);
        }
        Ok(())
    })?;
    Ok(exchange)
}

/// Copies from the front of `pieces`; gives how many bytes there were for `bytes`.
pub fn read_front(pieces: &[VolatileSlice<'_>], bytes: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in pieces {
        done += piece.copy_to(&mut bytes[done..]);
    }
    done
}

/// Copies to the front of `pieces`; gives how many of `bytes` found room.
pub fn write_front(pieces: &[VolatileSlice<'_>], bytes: &[u8]) -> usize {
    let mut done = 0;
    for piece in pieces {
        let length = piece.len().min(bytes.len() - done);
        piece.copy_from(&bytes[done..done + length]);
        done += length;
    }
    done
}

fn gather<'m>(
    memory: &'m GuestMemory,
    chain: Chain<'m>,
    wanted_writable: bool,
    pieces: &mut Vec<VolatileSlice<'m>>,
) -> Result<usize, ChainError> {
    let before = pieces.len();
    // At most MAX_PIECES times 4 GiB: no overflow.
    let mut bytes = 0;
    walk(memory, chain, |piece, writable| {
        if writable != wanted_writable {
            return Err(ChainError::Direction);
        }
        bytes += piece.len();
        pieces.push(piece);
        Ok(())
    })
    .inspect_err(|_| pieces.truncate(before))?;
    Ok(bytes)
}

/// Calls `visit` for each piece of memory of the chain and whether it is for the device to write.
fn walk<'m>(
    memory: &'m GuestMemory,
    chain: Chain<'m>,
    mut visit: impl FnMut(VolatileSlice<'m>, bool) -> Result<(), ChainError>,
) -> Result<(), ChainError> {
    let mut descriptors = 0;
    let mut pieces = 0;
    // The iterator just ends where the chain breaks off or has been followed for too long; only a last descriptor
    // that names no next one is a proper end.
    let mut ended = false;
    for descriptor in chain {
        descriptors += 1;
        if descriptors > MAX_PIECES {
            return Err(ChainError::TooManyBuffers);
        }
        ended = !descriptor.has_next();
        let length = usize::try_from(descriptor.len()).map_err(|_| ChainError::OutsideMemory)?;
        for piece in memory.get_slices(descriptor.addr(), length) {
            pieces += 1;
            if pieces > MAX_PIECES {
                return Err(ChainError::TooManyBuffers);
            }
            visit(
                piece.map_err(|_| ChainError::OutsideMemory)?,
                descriptor.is_write_only(),
            )?;
        }
    }
    if ended {
        Ok(())
    } else {
        Err(ChainError::Endless)
    }
}

#[cfg(test)]
mod tests;
