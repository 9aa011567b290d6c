//! A split virtqueue (virtio 1.2 §2.7) from the device's side: `virtio_queue::Queue` with what devices need beyond it.
//! An unusable ring is told apart from an empty one, several used entries are shown to the driver at once, and the
//! driver's wish for no interrupts is heeded with and without VIRTIO_RING_F_EVENT_IDX.
//!
//! Everything in a ring is written by the guest. An error means that the driver broke the ring for good: the device
//! stops using the queue until the driver resets it.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestMemory;

/// Offset of `idx` in either ring, after `flags`.
const INDEX_OFFSET: u64 = 2;
/// Offset of the first entry in either ring, after `flags` and `idx`.
const ENTRIES_OFFSET: u64 = 4;
const AVAIL_ENTRY_SIZE: u64 = 2;
const USED_ENTRY_SIZE: u64 = 8;

/// A chain of descriptors that lies in guest memory.
pub type Chain<'m> = DescriptorChain<&'m GuestMemory>;

/// Why a queue cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The driver moved the available index further than the ring is long.
    #[error("the available ring is not usable")]
    Available(#[source] virtio_queue::Error),
    /// An entry of the available ring is not in guest memory.
    #[error("entry {0} of the available ring cannot be read")]
    AvailableEntry(u16),
    /// The driver offered a descriptor that is not in the table.
    #[error("descriptor {0} is beyond the descriptor table")]
    Head(u16),
    /// A part of a ring ends beyond the address space.
    #[error("the ring at {0:#x} ends beyond the address space")]
    Address(u64),
    /// A part of a ring is not in guest memory.
    #[error("the ring is not in guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// A queue at work.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    /// Used entries that are written but not yet shown to the driver.
    unpublished: Wrapping<u16>,
    /// The used index when the driver was last considered for an interrupt.
    considered: Wrapping<u16>,
}

impl Ring {
    /// Puts a queue that is set up to work; `event_idx` tells whether VIRTIO_RING_F_EVENT_IDX was negotiated.
    #[must_use]
    pub fn new(mut queue: Queue, event_idx: bool) -> Self {
        queue.set_event_idx(event_idx);
        let considered = Wrapping(queue.next_used());
        Self {
            queue,
            unpublished: Wrapping(0),
            considered,
        }
    }

    /// The number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// How many chains the driver offers that were not taken yet.
    ///
    /// # Errors
    /// The available ring is broken.
    pub fn available(&self, memory: &GuestMemory) -> Result<u16, RingError> {
        let offered = self.queue.avail_idx(memory, Ordering::Acquire);
        let count = offered.map_err(RingError::Available)? - Wrapping(self.queue.next_avail());
        if count.0 > self.queue.size() {
            return Err(RingError::Available(
                virtio_queue::Error::InvalidAvailRingIndex,
            ));
        }
        Ok(count.0)
    }

    /// Takes the next chain that the driver offers, if there is one.
    ///
    /// # Errors
    /// The available ring is broken, or names a descriptor that does not exist.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, RingError> {
        let next = self.queue.next_avail();
        let offered = self
            .queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(RingError::Available)?;
        if offered.0 == next {
            return Ok(None);
        }
        let chain = self
            .queue
            .iter(memory)
            .map_err(RingError::Available)?
            .next()
            .ok_or(RingError::AvailableEntry(next))?;
        if chain.head_index() >= self.queue.size() {
            return Err(RingError::Head(chain.head_index()));
        }
        Ok(Some(chain))
    }

    /// Gives back the last `count` chains that were taken, so that they are taken again later.
    pub fn unpop(&mut self, count: u16) {
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Writes a used entry: `written` bytes of the chain that starts at `head` were filled. The driver sees it after
    /// [`Ring::publish`].
    ///
    /// # Errors
    /// The used ring is not in guest memory.
    pub fn push_used(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), RingError> {
        let slot = (Wrapping(self.queue.next_used()) + self.unpublished).0 % self.queue.size();
        let address = offset(
            self.queue.used_ring(),
            ENTRIES_OFFSET + u64::from(slot) * USED_ENTRY_SIZE,
        )?;
        // struct virtq_used_elem { le32 id; le32 len; }
        let entry = u64::from(head) | u64::from(written) << 32;
        memory.write_obj(entry.to_le(), address)?;
        self.unpublished += 1;
        Ok(())
    }

    /// Shows the driver all used entries at once.
    ///
    /// # Errors
    /// The used ring is not in guest memory.
    pub fn publish(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        if self.unpublished.0 == 0 {
            return Ok(());
        }
        let index = (Wrapping(self.queue.next_used()) + self.unpublished).0;
        let address = offset(self.queue.used_ring(), INDEX_OFFSET)?;
        memory.store(index.to_le(), address, Ordering::Release)?;
        self.queue.set_next_used(index);
        self.unpublished = Wrapping(0);
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was published since this was last asked (virtio 1.2 §2.7.7.2).
    ///
    /// # Errors
    /// The available ring is not in guest memory.
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        let new = Wrapping(self.queue.next_used());
        let old = std::mem::replace(&mut self.considered, new);
        if new == old {
            return Ok(false);
        }
        // The used index must be visible before the driver's wish is read, for the driver writes its wish before it
        // reads the index.
        fence(Ordering::SeqCst);
        if self.queue.event_idx_enabled() {
            let event = self.load(
                ENTRIES_OFFSET + u64::from(self.queue.size()) * AVAIL_ENTRY_SIZE,
                memory,
            )?;
            return Ok(new - Wrapping(event) - Wrapping(1) < new - old);
        }
        let flags = self.load(0, memory)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver for a kick when it offers more. True if it has offered more already, and may not kick for it.
    ///
    /// # Errors
    /// A ring is not in guest memory.
    pub fn enable_kicks(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        self.queue
            .enable_notification(memory)
            .map_err(RingError::Available)
    }

    /// Tells the driver that kicks are not needed; it may kick nevertheless.
    ///
    /// # Errors
    /// The used ring is not in guest memory.
    pub fn disable_kicks(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        self.queue
            .disable_notification(memory)
            .map_err(RingError::Available)
    }

    /// Reads a field of the available ring.
    fn load(&self, field: u64, memory: &GuestMemory) -> Result<u16, RingError> {
        let address = offset(self.queue.avail_ring(), field)?;
        Ok(u16::from_le(memory.load(address, Ordering::Relaxed)?))
    }
}

fn offset(ring: u64, field: u64) -> Result<GuestAddress, RingError> {
    ring.checked_add(field)
        .map(GuestAddress)
        .ok_or(RingError::Address(ring))
}

#[cfg(test)]
mod tests;
