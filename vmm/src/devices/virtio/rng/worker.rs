//! Fills the driver's buffers with entropy.

use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT as _};
use vm_memory::{GuestAddressSpace as _, ReadVolatile, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::buffers::{ChainError, gather_writable};
use crate::devices::virtio::device::Interrupt;
use crate::devices::virtio::kick_wait::{KickWait, Wake};
use crate::devices::virtio::ring::{Chain, Ring, RingError};
use crate::memory::{GuestMemory, SharedMemory};

/// The most bytes of a chain that are filled. A driver that wants more asks again.
const MAX_REQUEST: usize = 64 * 1024;
/// Chains served before the worker looks whether it is to stop.
const BUDGET: usize = 64;

/// Whether the driver may have more to be served at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// No: it kicks when it has.
    All,
    /// Yes: the budget was used up.
    Budget,
}

/// The queue's work. `S` is the entropy source.
pub(super) struct Worker<S> {
    pub(super) memory: SharedMemory,
    pub(super) ring: Ring,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) source: S,
}

impl<S: ReadVolatile> Worker<S> {
    /// A worker for `queue`; `event_idx` is whether VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub(super) fn new(
        memory: SharedMemory,
        queue: Queue,
        event_idx: bool,
        interrupt: Arc<dyn Interrupt>,
        source: S,
    ) -> Self {
        debug_assert!(queue.ready());
        Self {
            memory,
            ring: Ring::new(queue, event_idx),
            interrupt,
            source,
        }
    }

    /// Works until it is told to stop, or the driver or the host makes that impossible.
    pub(super) fn run(&mut self, kick: &EventFd, stop: &EventFd) {
        if let Err(error) = self.serve_until_stop(kick, stop) {
            tracing::warn!(%error, "the entropy device stops until the driver resets it");
        }
    }

    fn serve_until_stop(&mut self, kick: &EventFd, stop: &EventFd) -> Result<(), WorkerError> {
        let wait = KickWait::new(kick, stop).map_err(WorkerError::Wait)?;
        let mut busy = true;
        while wait.wait(busy).map_err(WorkerError::Wait)? != Some(Wake::Stop) {
            busy = self.serve()? == Served::Budget;
        }
        Ok(())
    }

    /// Serves what the driver offers, and interrupts it when it wants that.
    pub(super) fn serve(&mut self) -> Result<Served, WorkerError> {
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
            let written = self.fill(&memory, chain)?;
            self.ring.push_used(&memory, head, written)?;
        }
        self.ring.publish(&memory)?;
        if self.ring.needs_interrupt(&memory)? {
            self.interrupt.signal_queue(0);
        }
        Ok(served)
    }

    /// Fills a chain's buffers up to the limit, and gives how many bytes it has filled.
    fn fill(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, WorkerError> {
        let mut pieces = Vec::new();
        gather_writable(memory, chain, &mut pieces)?;
        let mut filled = 0;
        for piece in &pieces {
            let room = MAX_REQUEST - filled;
            filled += self.fill_piece(piece, room).map_err(WorkerError::Source)?;
        }
        // At most MAX_REQUEST.
        Ok(u32::try_from(filled).unwrap_or(u32::MAX))
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

/// Why the worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    /// The driver broke the queue.
    #[error("the queue is not usable")]
    Ring(#[from] RingError),
    /// The driver offered something that cannot be filled.
    #[error("the driver offered a malformed chain")]
    Chain(#[from] ChainError),
    /// The host refused the wait for kicks.
    #[error("cannot wait for the driver")]
    Wait(#[source] io::Error),
    /// The source has failed.
    #[error("cannot read entropy")]
    Source(#[source] io::Error),
}

#[cfg(test)]
mod tests;
