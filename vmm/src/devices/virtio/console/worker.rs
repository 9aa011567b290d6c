//! Takes the guest's output from the transmit queue.

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::{GuestAddressSpace as _, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use super::backend::Output;
use crate::devices::virtio::buffers::{ChainError, gather_readable};
use crate::devices::virtio::device::Interrupt;
use crate::devices::virtio::kick_wait::{KickWait, Wake};
use crate::devices::virtio::ring::{Chain, Ring, RingError};
use crate::memory::{GuestMemory, SharedMemory};

/// The most bytes of a chain that are passed on; drivers send a few pages at most.
const MAX_CHAIN: usize = 1 << 20;
/// Chains taken before the worker looks whether it is to stop.
const BUDGET: usize = 64;
/// How much is copied out of guest memory at a time.
const BLOCK: usize = 4096;

/// Whether the driver may have more to be taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// No: it kicks when it has.
    All,
    /// Yes: the budget was used up.
    Budget,
}

/// The transmit queue's work.
pub(super) struct Worker {
    memory: SharedMemory,
    ring: Ring,
    queue_index: u16,
    interrupt: Arc<dyn Interrupt>,
    output: Output,
}

impl Worker {
    /// A worker for `queue`, which is the device's queue `queue_index`; `event_idx` is whether
    /// VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub(super) fn new(
        memory: SharedMemory,
        queue: Queue,
        queue_index: u16,
        event_idx: bool,
        interrupt: Arc<dyn Interrupt>,
        output: Output,
    ) -> Self {
        Self {
            memory,
            ring: Ring::new(queue, event_idx),
            queue_index,
            interrupt,
            output,
        }
    }

    /// Works until it is told to stop, or the driver or the host makes that impossible. What the driver has offered
    /// by then is still passed on, for a machine's last words matter most.
    pub(super) fn run(&mut self, kick: &EventFd, stop: &EventFd) {
        if let Err(error) = self.serve_until_stop(kick, stop) {
            tracing::warn!(%error, "the console stops until the driver resets it");
        }
    }

    fn serve_until_stop(&mut self, kick: &EventFd, stop: &EventFd) -> Result<(), WorkerError> {
        let wait = KickWait::new(kick, stop).map_err(WorkerError::Wait)?;
        let mut busy = true;
        while wait.wait(busy).map_err(WorkerError::Wait)? != Some(Wake::Stop) {
            busy = self.serve()? == Served::Budget;
        }
        self.serve()?;
        Ok(())
    }

    /// Takes what the driver offers, and interrupts it when it wants that.
    pub(super) fn serve(&mut self) -> Result<Served, RingError> {
        let memory = self.memory.memory();
        self.ring.disable_kicks(&memory)?;
        let mut served = Served::Budget;
        for _ in 0..BUDGET {
            let Some(chain) = self.ring.pop(&memory)? else {
                if self.ring.enable_kicks(&memory)? {
                    continue;
                }
                served = Served::All;
                break;
            };
            let head = chain.head_index();
            if let Err(error) = self.pass_on(&memory, chain) {
                tracing::debug!(%error, head, "dropped console output");
            }
            self.ring.push_used(&memory, head, 0)?;
            // The driver waits for each of its writes.
            self.ring.publish(&memory)?;
        }
        if self.ring.needs_interrupt(&memory)? {
            self.interrupt.signal_queue(self.queue_index);
        }
        Ok(served)
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

/// Why the worker cannot go on.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    /// The driver broke the queue.
    #[error("the queue is not usable")]
    Ring(#[from] RingError),
    /// The host refused the wait for kicks.
    #[error("cannot wait for the driver")]
    Wait(#[source] io::Error),
}

#[cfg(test)]
mod tests;
