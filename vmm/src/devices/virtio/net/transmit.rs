//! The transmit queue of a pair: the driver's frames to the host (§5.1.6.2).

use std::io;

use super::backend::Backend;
use super::counters::Tally;
use super::{BUDGET_BYTES, BUDGET_FRAMES, HEADER_SIZE, INTERRUPT_BATCH, MAX_FRAME, QueueError};
use crate::devices::virtio::buffers::gather_readable;
use crate::devices::virtio::ring::Ring;
use crate::memory::GuestMemory;

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The driver has nothing more: wait for its kick.
    All,
    /// The budget is used up: go on when others had their turn.
    Budget,
    /// The host takes no more: wait until it does.
    Blocked,
}

/// A transmit queue at work.
pub(super) struct Transmitter {
    ring: Ring,
    /// The bytes that a round may send, but for its last frame.
    budget: usize,
}

impl Transmitter {
    pub(super) fn new(ring: Ring) -> Self {
        Self {
            ring,
            budget: BUDGET_BYTES,
        }
    }

    /// Has the next round send no more than `bytes`, but for its last frame.
    pub(super) fn set_budget(&mut self, bytes: usize) {
        self.budget = bytes.min(BUDGET_BYTES);
    }

    /// Sends frames until there are no more, the host takes no more, or the budget is used up. What is malformed or
    /// refused is dropped. `interrupt` is called when the driver wants an interrupt.
    pub(super) fn run(
        &mut self,
        memory: &GuestMemory,
        backend: &impl Backend,
        tally: &mut Tally,
        interrupt: impl Fn(),
    ) -> Result<Sent, QueueError> {
        self.ring.disable_kicks(memory)?;
        let mut pieces = Vec::new();
        let mut bytes = 0;
        let mut end = Sent::Budget;
        for round in 1..=BUDGET_FRAMES {
            let Some(chain) = self.ring.pop(memory)? else {
                // Ask for a kick, and look again, for the driver may have offered more without one.
                if self.ring.enable_kicks(memory)? {
                    self.ring.disable_kicks(memory)?;
                    continue;
                }
                end = Sent::All;
                break;
            };
            let head = chain.head_index();
            pieces.clear();
            match gather_readable(memory, chain, &mut pieces) {
                Ok(length) if length > HEADER_SIZE && length <= MAX_FRAME => {
                    match send(backend, &pieces) {
                        Ok(()) => tally.pass(length),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.ring.unpop(1);
                            end = Sent::Blocked;
                            break;
                        }
                        Err(_) => tally.drop_frame(),
                    }
                    bytes += length;
                }
                Ok(_) | Err(_) => tally.drop_frame(),
            }
            self.ring.push_used(memory, head, 0)?;
            if round % INTERRUPT_BATCH == 0 {
                self.show_used(memory, &interrupt)?;
            }
            if bytes >= self.budget {
                break;
            }
        }
        self.show_used(memory, &interrupt)?;
        Ok(end)
    }

    fn show_used(&mut self, memory: &GuestMemory, interrupt: &impl Fn()) -> Result<(), QueueError> {
        self.ring.publish(memory)?;
        if self.ring.needs_interrupt(memory)? {
            interrupt();
        }
        Ok(())
    }
}

/// Sends a frame, again if a signal interrupts that.
fn send(backend: &impl Backend, pieces: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
    loop {
        match backend.send(pieces) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests;
