//! The receive queue of a pair: frames from the host into the driver's buffers (§5.1.6.3, §5.1.6.4).

use std::collections::VecDeque;
use std::io;

use vm_memory::{Bytes, VolatileSlice};

use super::backend::Backend;
use super::counters::Tally;
use super::{
    BUDGET_BYTES, BUDGET_FRAMES, HEADER_SIZE, INTERRUPT_BATCH, MAX_FRAME, NUM_BUFFERS_OFFSET,
    QueueError,
};
use crate::devices::virtio::buffers::{MAX_PIECES, gather_writable};
use crate::devices::virtio::ring::Ring;
use crate::memory::GuestMemory;

/// How a round ended.
#[derive(Debug)]
pub(super) enum Received {
    /// The host has no frame, or the budget is used up: wait until the host has one.
    Waiting,
    /// The driver has no buffer: wait for its kick.
    NoBuffers,
    /// The driver has buffers, but not for the largest frame: wait for its kick, though not forever, for it may
    /// never offer more.
    FewBuffers,
    /// The host's side is gone.
    Lost(io::Error),
}

/// A receive queue at work.
pub(super) struct Receiver {
    ring: Ring,
    /// VIRTIO_NET_F_MRG_RXBUF: a frame may take several chains.
    mergeable: bool,
    /// The bytes of buffers that any frame fits into.
    largest: usize,
    /// Takes what a frame is larger than the buffers, so that it is known to be.
    spill: Box<[u8]>,
}

impl Receiver {
    /// A queue that receives frames of up to `largest` bytes with their headers.
    pub(super) fn new(ring: Ring, mergeable: bool, largest: usize) -> Self {
        Self {
            ring,
            mergeable,
            largest: largest.min(MAX_FRAME),
            spill: vec![0; MAX_FRAME].into_boxed_slice(),
        }
    }

    /// Receives frames until there are no more, no more buffers, or the budget is used up. `forced` has it receive
    /// into few buffers as well, where a frame that does not fit is dropped. `interrupt` is called when the driver
    /// wants an interrupt.
    pub(super) fn run(
        &mut self,
        memory: &GuestMemory,
        backend: &impl Backend,
        forced: bool,
        tally: &mut Tally,
        interrupt: impl Fn(),
    ) -> Result<Received, QueueError> {
        self.ring.disable_kicks(memory)?;
        let mut window = Window::default();
        let mut bytes = 0;
        let mut end = Received::Waiting;
        for round in 1..=BUDGET_FRAMES {
            if !self.fill(memory, &mut window)? && (window.chains.is_empty() || !forced) {
                // Ask for a kick, and look again, for the driver may have offered more without one.
                if self.ring.enable_kicks(memory)? {
                    self.ring.disable_kicks(memory)?;
                    continue;
                }
                end = if window.chains.is_empty() {
                    Received::NoBuffers
                } else {
                    Received::FewBuffers
                };
                break;
            }
            match backend.receive(window.reach(self.mergeable), &mut self.spill) {
                Ok(length) => {
                    bytes += length;
                    self.deliver(memory, &mut window, length, tally)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if forced {
                        // More buffers end the shortage.
                        self.ring.enable_kicks(memory)?;
                    }
                    break;
                }
                Err(error) => {
                    end = Received::Lost(error);
                    break;
                }
            }
            if round % INTERRUPT_BATCH == 0 && self.ring.needs_interrupt(memory)? {
                interrupt();
            }
            if bytes >= BUDGET_BYTES {
                break;
            }
        }
        self.ring.unpop(window.count());
        if self.ring.needs_interrupt(memory)? {
            interrupt();
        }
        Ok(end)
    }

    /// Takes chains into the window until the largest frame fits; false if it does not, because the driver offers too
    /// few.
    fn fill<'m>(
        &mut self,
        memory: &'m GuestMemory,
        window: &mut Window<'m>,
    ) -> Result<bool, QueueError> {
        let wanted = if self.mergeable { self.largest } else { 1 };
        while window.bytes < wanted {
            let Some(chain) = self.ring.pop(memory)? else {
                return Ok(false);
            };
            let head = chain.head_index();
            let before = window.pieces.len();
            let bytes = gather_writable(memory, chain, &mut window.pieces)?;
            if bytes < HEADER_SIZE {
                return Err(QueueError::NoRoom(bytes));
            }
            if window.pieces.len() > MAX_PIECES {
                // One system call takes no more; the chains before it must do.
                window.pieces.truncate(before);
                self.ring.unpop(1);
                return Ok(true);
            }
            let pieces = window.pieces.len() - before;
            window.chains.push_back(Posted {
                head,
                bytes,
                pieces,
            });
            window.bytes += bytes;
        }
        Ok(true)
    }

    /// Gives the driver the frame of `length` bytes that lies in the window's first chains. One that has spilled is
    /// dropped, and the chains stay in the window.
    fn deliver(
        &mut self,
        memory: &GuestMemory,
        window: &mut Window<'_>,
        length: usize,
        tally: &mut Tally,
    ) -> Result<(), QueueError> {
        if length < HEADER_SIZE || length > window.room(self.mergeable) {
            tally.drop_frame();
            return Ok(());
        }
        let mut left = length;
        let mut chains = 0_u16;
        for posted in &window.chains {
            let written = posted.bytes.min(left);
            // A frame has at most MAX_FRAME bytes.
            let used = u32::try_from(written).unwrap_or(u32::MAX);
            self.ring.push_used(memory, posted.head, used)?;
            chains += 1;
            left -= written;
            if left == 0 {
                break;
            }
        }
        window.set_num_buffers(chains);
        // All chains of the frame at once: the driver may look at any moment.
        self.ring.publish(memory)?;
        window.consume(chains);
        tally.pass(length);
        Ok(())
    }
}

/// A chain in the window.
#[derive(Debug)]
struct Posted {
    head: u16,
    bytes: usize,
    /// How many of the window's pieces are its.
    pieces: usize,
}

/// Chains that were taken from the ring for the next frames. Those that remain at a round's end go back.
#[derive(Debug, Default)]
struct Window<'m> {
    chains: VecDeque<Posted>,
    pieces: Vec<VolatileSlice<'m>>,
    bytes: usize,
}

impl<'m> Window<'m> {
    /// Where the next frame may go: all chains, or only the first.
    fn reach(&self, mergeable: bool) -> &[VolatileSlice<'m>] {
        match self.chains.front() {
            Some(first) if !mergeable => &self.pieces[..first.pieces],
            _ => &self.pieces,
        }
    }

    /// The bytes there.
    fn room(&self, mergeable: bool) -> usize {
        match self.chains.front() {
            Some(first) if !mergeable => first.bytes,
            _ => self.bytes,
        }
    }

    /// The number of chains; each has a piece at least, so there are at most `MAX_PIECES`.
    fn count(&self) -> u16 {
        u16::try_from(self.chains.len()).unwrap_or(u16::MAX)
    }

    /// Sets `num_buffers` in the header at the window's start. The tap leaves it as it was.
    fn set_num_buffers(&self, chains: u16) {
        let mut offset = NUM_BUFFERS_OFFSET;
        let mut bytes = &chains.to_le_bytes()[..];
        for piece in &self.pieces {
            if offset >= piece.len() {
                offset -= piece.len();
                continue;
            }
            // The header may lie across pieces. A write within a piece does not fail.
            let written = piece.write(bytes, offset).unwrap_or(bytes.len());
            bytes = &bytes[written..];
            offset = 0;
            if bytes.is_empty() {
                break;
            }
        }
    }

    /// Forgets the first `count` chains, which the driver has now.
    fn consume(&mut self, count: u16) {
        let mut pieces = 0;
        for posted in self.chains.drain(..usize::from(count)) {
            pieces += posted.pieces;
            self.bytes -= posted.bytes;
        }
        self.pieces.drain(..pieces);
    }
}

#[cfg(test)]
mod tests;
