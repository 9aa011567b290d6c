//! The driver's requests (virtio 1.2 §5.15.6): plug, unplug, and ask.

use std::io;
use std::sync::Arc;

use super::backend::{BlockState, Region, Verdict};
use crate::devices::virtio::buffers::{ChainError, Exchange, read_front, split, write_front};
use crate::devices::virtio::queue_service::Answer;
use crate::devices::virtio::ring::{Chain, RingError};
use crate::memory::GuestMemory;

/// Bytes of a request: le16 type, padding to 8, le64 address, le16 number of blocks, padding.
const REQUEST: usize = 24;
/// Bytes of an answer: le16 type, padding to 8, le16 state of the blocks.
const ANSWER: usize = 10;

/// `VIRTIO_MEM_REQ_*`.
mod request_type {
    pub(super) const PLUG: u16 = 0;
    pub(super) const UNPLUG: u16 = 1;
    pub(super) const UNPLUG_ALL: u16 = 2;
    pub(super) const STATE: u16 = 3;
}

/// `VIRTIO_MEM_RESP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum AnswerType {
    Ack = 0,
    Nack = 1,
    Error = 3,
}

/// The queue's work.
pub(super) struct Requests {
    region: Arc<Region>,
}

impl Requests {
    /// Requests are about blocks of `region`.
    pub(super) fn new(region: Arc<Region>) -> Self {
        Self { region }
    }

    /// Does what `request` says; gives the answer's type and, if that was asked, the state of the blocks.
    fn serve(
        &self,
        memory: &GuestMemory,
        request: &[u8; REQUEST],
    ) -> Result<(AnswerType, BlockState), RequestError> {
        let le16 = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        let (_, rest) = request.split_at(8);
        let (address, _) = rest.split_first_chunk().expect("16 bytes are left");
        let address = u64::from_le_bytes(*address);
        let count = le16(16);
        let verdict = match le16(0) {
            request_type::PLUG => self.region.plug(address, count),
            request_type::UNPLUG => self
                .region
                .unplug(memory, address, count)
                .map_err(RequestError::Discard)?,
            request_type::UNPLUG_ALL => {
                self.region
                    .unplug_all(memory)
                    .map_err(RequestError::Discard)?;
                Verdict::Granted
            }
            request_type::STATE => {
                if let Some(state) = self.region.state_of(address, count) {
                    return Ok((AnswerType::Ack, state));
                }
                Verdict::Wrong
            }
            _ => Verdict::Wrong,
        };
        let kind = match verdict {
            Verdict::Granted => AnswerType::Ack,
            Verdict::Denied => AnswerType::Nack,
            Verdict::Wrong => AnswerType::Error,
        };
        Ok((kind, BlockState::Plugged))
    }
}

impl Answer for Requests {
    type Error = RequestError;

    fn answer(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, RequestError> {
        let Exchange { request, answer } = split(memory, chain)?;
        let mut bytes = [0; REQUEST];
        // A request to unplug all, whose address and number mean nothing, may be shorter.
        let read = read_front(&request, &mut bytes);
        let (kind, state) = if read < size_of::<u16>() {
            (AnswerType::Error, BlockState::Plugged)
        } else {
            self.serve(memory, &bytes)?
        };
        let mut bytes = [0; ANSWER];
        bytes[..2].copy_from_slice(&(kind as u16).to_le_bytes());
        bytes[8..].copy_from_slice(&(state as u16).to_le_bytes());
        let written = write_front(&answer, &bytes);
        // At most ANSWER.
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }
}

/// Why the queue is not served any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The driver broke the queue.
    #[error("the driver broke the ring")]
    Ring(#[from] RingError),
    /// The driver offered something that is no request.
    #[error("the driver offered a malformed chain")]
    Chain(#[from] ChainError),
    /// The host does not take memory back.
    #[error("discard memory that was given back")]
    Discard(#[source] io::Error),
}

#[cfg(test)]
mod tests;
