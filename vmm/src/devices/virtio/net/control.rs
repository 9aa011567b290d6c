//! The control queue (§5.1.6.5): the driver sets how many pairs are in use, and which offloads. Receive filters are
//! not offered, for a tap of a bridge gets hardly a frame that its guest does not want, and every command is an exit.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use vm_memory::{Bytes, VolatileSlice};

use super::QueueError;
use super::backend::{OFFLOAD_BITS, Offloads};
use crate::devices::virtio::buffers::{Exchange, split};
use crate::devices::virtio::queue_service::Answer;
use crate::devices::virtio::ring::Chain;
use crate::memory::GuestMemory;

/// `class`, `command` and at most the le64 of the offloads.
const MAX_COMMAND: usize = 2 + 8;

/// What commands act on.
pub(super) trait Target {
    /// Sets what received frames may leave for the guest to do.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;
    /// Uses the first `count` pairs, and no others. An impossible count is an error.
    fn set_pairs(&self, count: u16) -> io::Result<()>;
}

/// The control queue's work.
pub(super) struct Control<T> {
    target: Arc<T>,
    features: u64,
}

impl<T: Target> Control<T> {
    /// Has the commands of a driver that negotiated `features` act on `target`.
    pub(super) fn new(target: Arc<T>, features: u64) -> Self {
        Self { target, features }
    }

    /// Executes a command and writes its `ack`; gives the number of bytes written.
    fn acknowledge(&self, exchange: &Exchange<'_>) -> u32 {
        let ack = match self.execute(&exchange.request) {
            Ok(()) => VIRTIO_NET_OK,
            Err(error) => {
                tracing::debug!(%error, "refused a command of the network driver");
                VIRTIO_NET_ERR
            }
        };
        let ack = ack.to_le_bytes()[0];
        match exchange.answer.first().map(|piece| piece.write_obj(ack, 0)) {
            Some(Ok(())) => 1,
            Some(Err(_)) | None => 0,
        }
    }

    fn execute(&self, request: &[VolatileSlice<'_>]) -> Result<(), CommandError> {
        let mut bytes = [0; MAX_COMMAND];
        let length = copy_out(request, &mut bytes);
        let [class, command, ref data @ ..] = bytes;
        let data = &data[..length.saturating_sub(2)];
        let has = |feature: u32| self.features & 1 << feature != 0;
        match (u32::from(class), u32::from(command)) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if has(VIRTIO_NET_F_MQ) => {
                let (count, _) = data.split_first_chunk().ok_or(CommandError::Short)?;
                Ok(self.target.set_pairs(u16::from_le_bytes(*count))?)
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
                if has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
            {
                let (offloads, _) = data.split_first_chunk().ok_or(CommandError::Short)?;
                let offloads = u64::from_le_bytes(*offloads);
                if offloads & !(self.features & OFFLOAD_BITS) != 0 {
                    return Err(CommandError::Offloads(offloads));
                }
                Ok(self.target.set_offloads(Offloads::from_bits(offloads))?)
            }
            _ => Err(CommandError::Unknown { class, command }),
        }
    }
}

impl<T: Target> Answer for Control<T> {
    type Error = QueueError;

    fn answer(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, QueueError> {
        Ok(self.acknowledge(&split(memory, chain)?))
    }
}

/// Copies the start of a request, as much as there is and fits; gives the number of bytes.
fn copy_out(request: &[VolatileSlice<'_>], bytes: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in request {
        done += piece.copy_to(&mut bytes[done..]);
    }
    done
}

/// Why a command is answered with VIRTIO_NET_ERR.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// No such command, or its feature was not negotiated.
    #[error("command {command} of class {class} is not known")]
    Unknown {
        /// The command's class.
        class: u8,
        /// Its number.
        command: u8,
    },
    /// It lacks a part of its data.
    #[error("the command has too little data")]
    Short,
    /// It asks for offloads that were not negotiated.
    #[error("the offloads {0:#x} were not negotiated")]
    Offloads(u64),
    /// The host refused it.
    #[error("the host refused the command")]
    Host(#[from] io::Error),
}

#[cfg(test)]
mod tests;
