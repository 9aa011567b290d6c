//! A driver for tests: it lays out one split queue in guest memory and writes it as a guest would, properly or not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::memory::{GuestMemory, SharedMemory};

/// A descriptor's flags as the tests write them.
pub(crate) const READ: u16 = 0;
#[allow(clippy::cast_possible_truncation, reason = "the flags have 16 bits")]
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
#[allow(clippy::cast_possible_truncation, reason = "the flags have 16 bits")]
pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
#[allow(clippy::cast_possible_truncation, reason = "the flags have 16 bits")]
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// One buffer of a chain: where, how long, and [`READ`] or [`WRITE`].
pub(crate) type Buffer = (u64, u32, u16);

/// Guest memory of `bytes` from address 0.
pub(crate) fn guest_memory(bytes: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), bytes)]).expect("test memory")
}

/// The driver of one queue.
pub(crate) struct TestDriver {
    memory: GuestMemory,
    base: u64,
    size: u16,
    next_descriptor: u16,
    next_avail: u16,
    next_used: u16,
}

impl TestDriver {
    /// A queue of `size` descriptors at `base`, which takes less than 27 bytes per descriptor.
    pub(crate) fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        Self {
            memory: memory.clone(),
            base,
            size,
            next_descriptor: 0,
            next_avail: 0,
            next_used: 0,
        }
    }

    /// The queue as the transport hands it to the device.
    pub(crate) fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).expect("queue size");
        let halves = |address: u64| {
            let low = u32::try_from(address & 0xffff_ffff).expect("32 bits");
            let high = u32::try_from(address >> 32).expect("32 bits");
            (Some(low), Some(high))
        };
        let (low, high) = halves(self.base);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.avail());
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.used());
        queue.set_used_ring_address(low, high);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory));
        queue
    }

    fn avail(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        (self.avail() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, address: u64) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("ring memory");
    }

    /// Writes one descriptor of the table.
    pub(crate) fn set_descriptor(&self, index: u16, (address, length, flags): Buffer, next: u16) {
        self.write_descriptor(
            self.base + 16 * u64::from(index),
            (address, length, flags),
            next,
        );
    }

    /// Writes one descriptor anywhere, for indirect tables.
    pub(crate) fn write_descriptor(&self, at: u64, (address, length, flags): Buffer, next: u16) {
        self.write(
            RawDescriptor::from(Descriptor::new(address, length, flags, next)),
            at,
        );
    }

    /// Offers the chain that starts at descriptor `head`.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.write(head, self.avail() + 4 + 2 * slot);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_index(self.next_avail);
    }

    /// Claims that so many chains were offered.
    pub(crate) fn set_avail_index(&mut self, index: u16) {
        self.next_avail = index;
        self.memory
            .store(index, GuestAddress(self.avail() + 2), Ordering::Release)
            .expect("ring memory");
    }

    /// Lays out a chain in the next descriptors and offers it; gives its head.
    pub(crate) fn offer_chain(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (position, &(address, length, flags)) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = if position + 1 < buffers.len() {
                NEXT
            } else {
                0
            };
            self.set_descriptor(index, (address, length, flags | more), self.next_descriptor);
        }
        self.offer(head);
        head
    }

    /// The next used entry: the chain's head and how much of it was written.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let entry: [u32; 2] = self
            .memory
            .read_obj(GuestAddress(self.used() + 4 + 8 * slot))
            .expect("ring memory");
        self.next_used = self.next_used.wrapping_add(1);
        Some((u16::try_from(entry[0]).expect("a head"), entry[1]))
    }

    /// The device's used index.
    pub(crate) fn used_index(&self) -> u16 {
        self.memory
            .load(GuestAddress(self.used() + 2), Ordering::Acquire)
            .expect("ring memory")
    }

    /// The device's `avail_event`: it wants a kick when this entry is offered (VIRTIO_RING_F_EVENT_IDX).
    pub(crate) fn avail_event(&self) -> u16 {
        let address = self.used() + 4 + 8 * u64::from(self.size);
        self.memory
            .read_obj(GuestAddress(address))
            .expect("ring memory")
    }

    /// The flags of the used ring.
    pub(crate) fn used_flags(&self) -> u16 {
        self.memory
            .read_obj(GuestAddress(self.used()))
            .expect("ring memory")
    }

    /// Asks for an interrupt when entry `index` is used (VIRTIO_RING_F_EVENT_IDX).
    pub(crate) fn set_used_event(&self, index: u16) {
        self.write(index, self.avail() + 4 + 2 * u64::from(self.size));
    }

    /// Sets the flags of the available ring (without VIRTIO_RING_F_EVENT_IDX).
    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.write(flags, self.avail());
    }
}

/// Counts interrupts.
#[derive(Default)]
pub(crate) struct TestInterrupt {
    /// The queues that were signalled, in order.
    pub(crate) queues: Mutex<Vec<u16>>,
    /// How often the configuration change was signalled.
    pub(crate) config: AtomicUsize,
    /// The eventfds of queues that were asked for.
    events: Mutex<BTreeMap<u16, EventFd>>,
}

impl TestInterrupt {
    /// How often queue `index` was signalled.
    pub(crate) fn count(&self, index: u16) -> usize {
        let mut queues = self.queues.lock().expect("interrupts");
        let events = self.events.lock().expect("interrupts");
        let signalled = events
            .get(&index)
            .map_or(0, |event| event.read().unwrap_or(0));
        queues.extend((0..signalled).map(|_| index));
        queues.iter().filter(|queue| **queue == index).count()
    }

    /// As if the driver had given all queues other vectors.
    pub(crate) fn forget_eventfds(&self) {
        self.events.lock().expect("interrupts").clear();
    }
}

impl Interrupt for TestInterrupt {
    fn signal_queue(&self, index: u16) {
        self.queues.lock().expect("interrupts").push(index);
    }

    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }

    fn queue_eventfd(&self, index: u16) -> Option<EventFd> {
        let mut events = self.events.lock().expect("interrupts");
        let event = events
            .entry(index)
            .or_insert_with(|| EventFd::new(EFD_NONBLOCK).expect("eventfd"));
        Some(event.try_clone().expect("eventfd"))
    }
}

/// Activates a device of one queue that the guest's driver has not enabled, which it must refuse.
pub(crate) fn assert_refuses_a_queue_that_was_not_enabled(device: &mut impl VirtioDevice) {
    let memory = guest_memory(0x1_0000);
    let mut queue = TestDriver::new(&memory, 0, 64).queue();
    queue.set_ready(false);
    let result = device.activate(Activation {
        memory: SharedMemory::new(memory),
        features: 0,
        queues: vec![ActiveQueue {
            queue,
            kick: EventFd::new(0).expect("eventfd"),
        }],
        interrupt: Arc::new(TestInterrupt::default()),
    });
    assert!(matches!(result, Err(ActivateError::QueueNotReady(0))));
}

/// Reads guest memory.
pub(crate) fn read_bytes(memory: &GuestMemory, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .expect("test memory");
    bytes
}

/// Writes guest memory.
pub(crate) fn write_bytes(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    memory
        .write_slice(bytes, GuestAddress(address))
        .expect("test memory");
}

/// Waits up to five seconds for something that another thread does.
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if happened() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("never happened: {what}");
}
