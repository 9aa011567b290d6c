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

/// The bytes of buffers to have ready while frames are small.
const SMALL_WINDOW: usize = 4096;

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
    /// The bytes of buffers to have ready for the next frame, which is guessed from the last one.
    window: usize,
    /// The bytes of the last chain that was looked at. Drivers offer chains of about one size.
    chain: usize,
    /// The bytes that a round may receive, but for its last frame.
    budget: usize,
    /// Takes what a frame is larger than the window.
    spill: Box<[u8]>,
}

impl Receiver {
    /// A queue that receives frames of up to `largest` bytes with their headers.
    pub(super) fn new(ring: Ring, mergeable: bool, largest: usize) -> Self {
        let largest = largest.min(MAX_FRAME);
        Self {
            ring,
            mergeable,
            largest,
            window: SMALL_WINDOW.min(largest),
            chain: 0,
            budget: BUDGET_BYTES,
            spill: vec![0; MAX_FRAME].into_boxed_slice(),
        }
    }

    /// Has the next round receive no more than `bytes`, but for its last frame.
    pub(super) fn set_budget(&mut self, bytes: usize) {
        self.budget = bytes.min(BUDGET_BYTES);
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
            if !self.prepare(memory, &mut window)? && (window.chains.is_empty() || !forced) {
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
            if bytes >= self.budget {
                break;
            }
        }
        self.ring.unpop(window.count());
        if self.ring.needs_interrupt(memory)? {
            interrupt();
        }
        Ok(end)
    }

    /// Gets the window ready for the next frame. False if the driver has no chain, or too few for the largest frame.
    fn prepare<'m>(
        &mut self,
        memory: &'m GuestMemory,
        window: &mut Window<'m>,
    ) -> Result<bool, QueueError> {
        if !self.mergeable {
            return self.fill(memory, window, 1);
        }
        // Looking at all the chains that the largest frame may take would cost more than a small frame does.
        let wanted = self.window;
        if self.fill(memory, window, wanted)? {
            let further = usize::from(self.ring.available(memory)?) * self.chain;
            if window.bytes + further >= self.largest {
                return Ok(true);
            }
        }
        self.fill(memory, window, self.largest)
    }

    /// Takes chains into the window until it has `wanted` bytes, or as many pieces as one system call takes. False if
    /// the driver offers too few.
    fn fill<'m>(
        &mut self,
        memory: &'m GuestMemory,
        window: &mut Window<'m>,
        wanted: usize,
    ) -> Result<bool, QueueError> {
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
            self.chain = bytes;
        }
        Ok(true)
    }

    /// Gives the driver the frame of `length` bytes that lies in the window's first chains, and in `spill` as far as
    /// they have no room. One that does not fit what the driver offers is dropped, and the chains stay in the window.
    fn deliver<'m>(
        &mut self,
        memory: &'m GuestMemory,
        window: &mut Window<'m>,
        length: usize,
        tally: &mut Tally,
    ) -> Result<(), QueueError> {
        let room = window.room(self.mergeable);
        if self.mergeable {
            self.window = (4 * length).clamp(SMALL_WINDOW.min(self.largest), self.largest);
            self.fill(memory, window, length)?;
        }
        if length < HEADER_SIZE || length > window.room(self.mergeable) {
            tally.drop_frame();
            return Ok(());
        }
        if length > room {
            window.write(room, &self.spill[..length - room]);
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
        // The tap leaves this as it was.
        window.write(NUM_BUFFERS_OFFSET, &chains.to_le_bytes());
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

    /// Writes `bytes` at `offset` from the window's start, which lies in it. Descriptors may part them anywhere.
    fn write(&self, mut offset: usize, mut bytes: &[u8]) {
        for piece in &self.pieces {
            if offset >= piece.len() {
                offset -= piece.len();
                continue;
            }
            // A write that begins within a piece does not fail.
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
