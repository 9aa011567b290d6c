//! The guest's side of a NIC: a driver that keeps its queues filled, and kicks and waits only as the device asks.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::device::{Activation, ActiveQueue, VirtioDevice as _};
use crate::devices::virtio::net::HEADER_SIZE;
use crate::devices::virtio::net::counters::Counters;
use crate::devices::virtio::net::device::Net;
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, WRITE, eventually, guest_memory, read_bytes, write_bytes,
};
use crate::memory::{GuestMemory, SharedMemory};

/// Where a queue's rings and buffers are: each queue has so much memory.
const QUEUE_MEMORY: u64 = 4 << 20;
const BUFFERS_OFFSET: u64 = 0x10000;

pub(super) const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

/// A frame as the guest gets it.
pub(super) struct Frame {
    pub(super) header: [u8; HEADER_SIZE],
    pub(super) bytes: Vec<u8>,
    pub(super) buffers: u16,
}

/// A queue of the driver.
pub(super) struct Queue {
    pub(super) driver: TestDriver,
    pub(super) kick: EventFd,
    index: u16,
    event_idx: bool,
    offered: u16,
    told: u16,
    used: u16,
    /// How much memory its receive buffers take.
    buffer_bytes: u64,
    /// The buffers that the device has, in their order: head, address and size.
    posted: VecDeque<(u16, u64, u32)>,
}

impl Queue {
    fn new(memory: &GuestMemory, index: u16, size: u16, event_idx: bool) -> Self {
        Self {
            driver: TestDriver::new(memory, u64::from(index) * QUEUE_MEMORY, size),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            index,
            event_idx,
            offered: 0,
            told: 0,
            used: 0,
            buffer_bytes: 0,
            posted: VecDeque::new(),
        }
    }

    fn buffers(&self) -> u64 {
        u64::from(self.index) * QUEUE_MEMORY + BUFFERS_OFFSET
    }

    fn offer(&mut self, address: u64, length: u32, flags: u16) {
        let head = self.driver.offer_chain(&[(address, length, flags)]);
        self.offered = self.offered.wrapping_add(1);
        self.posted.push_back((head, address, length));
    }

    /// Kicks if the device wants that (virtio 1.2 §2.7.10).
    pub(super) fn kick_if_wanted(&mut self) {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let passed = self
                .offered
                .wrapping_sub(self.driver.avail_event())
                .wrapping_sub(1);
            passed < self.offered.wrapping_sub(self.told)
        } else {
            self.driver.used_flags() & 1 == 0
        };
        self.told = self.offered;
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// The next used chain, in the order that they were offered: its address and how much was written.
    fn take_used(&mut self) -> Option<(u64, u32, u32)> {
        let (head, written) = self.driver.take_used()?;
        self.used = self.used.wrapping_add(1);
        let (expected, address, size) = self.posted.pop_front().unwrap();
        assert_eq!(head, expected, "chains are used in order");
        Some((address, size, written))
    }
}

/// A NIC with its driver at work.
pub(super) struct Nic {
    pub(super) net: Net,
    pub(super) memory: GuestMemory,
    pub(super) receive: Vec<Queue>,
    pub(super) transmit: Vec<Queue>,
    pub(super) control: Queue,
    pub(super) interrupt: Arc<TestInterrupt>,
}

impl Nic {
    /// A NIC on `taps` whose driver accepts `features` and has set up all queues.
    pub(super) fn new(taps: Vec<OwnedFd>, features: u64) -> Self {
        Self::start(Net::new(MAC, 1500, taps).unwrap(), features)
    }

    /// Sets up the queues of a device anew.
    pub(super) fn start(mut net: Net, features: u64) -> Self {
        assert_eq!(features & !net.features(), 0, "only what is offered");
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let sizes = net.queue_sizes().to_vec();
        let bytes = usize::try_from(QUEUE_MEMORY).unwrap() * sizes.len();
        let memory = guest_memory(bytes);
        let mut queues: Vec<Queue> = (0..)
            .zip(&sizes)
            .map(|(index, size)| Queue::new(&memory, index, *size, event_idx))
            .collect();
        let interrupt = Arc::new(TestInterrupt::default());
        net.activate(Activation {
            memory: SharedMemory::new(memory.clone()),
            features,
            queues: queues
                .iter()
                .map(|queue| ActiveQueue {
                    queue: queue.driver.queue(),
                    kick: queue.kick.try_clone().unwrap(),
                })
                .collect(),
            interrupt: interrupt.clone(),
        })
        .unwrap();
        let control = queues.pop().unwrap();
        let (receive, transmit) = queues.into_iter().partition(|queue| queue.index % 2 == 0);
        Self {
            net,
            memory,
            receive,
            transmit,
            control,
            interrupt,
        }
    }

    /// Offers `count` buffers of `length` bytes for frames.
    pub(super) fn offer_buffers(&mut self, pair: usize, count: u64, length: u32) {
        let queue = &mut self.receive[pair];
        for _ in 0..count {
            let address = queue.buffers() + queue.buffer_bytes;
            queue.buffer_bytes += u64::from(length);
            queue.offer(address, length, WRITE);
        }
        queue.kick_if_wanted();
    }

    /// The next frame, if it is there; its buffers are offered again.
    pub(super) fn take_frame(&mut self, pair: usize) -> Option<Frame> {
        let queue = &mut self.receive[pair];
        let mut taken = vec![queue.take_used()?];
        let mut header = [0; HEADER_SIZE];
        let start = read_bytes(&self.memory, taken[0].0, HEADER_SIZE);
        header.copy_from_slice(&start);
        let buffers = u16::from_le_bytes([header[10], header[11]]);
        for _ in 1..buffers {
            taken.push(
                queue
                    .take_used()
                    .expect("all buffers of a frame come at once"),
            );
        }
        let mut bytes = Vec::new();
        for (address, size, written) in taken {
            bytes.extend(read_bytes(
                &self.memory,
                address,
                usize::try_from(written).unwrap(),
            ));
            queue.offer(address, size, WRITE);
        }
        bytes.drain(..HEADER_SIZE);
        queue.kick_if_wanted();
        Some(Frame {
            header,
            bytes,
            buffers,
        })
    }

    /// Waits for the next frame that `wanted` accepts. The driver sleeps as Linux does: it asks for an interrupt, looks
    /// once more, and then waits for the interrupt.
    pub(super) fn wait_frame(&mut self, pair: usize, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let interrupts = self.interrupt.count(self.receive[pair].index);
            self.receive[pair]
                .driver
                .set_used_event(self.receive[pair].used);
            fence(Ordering::SeqCst);
            match self.take_frame(pair) {
                Some(frame) if wanted(&frame) => return frame,
                Some(_) => {}
                None => eventually("an interrupt for a frame", || {
                    self.interrupt.count(self.receive[pair].index) > interrupts
                }),
            }
        }
    }

    /// Offers a frame to be sent, in two buffers at most times three: header, link header, rest.
    pub(super) fn send(&mut self, pair: usize, header: [u8; HEADER_SIZE], frame: &[u8]) {
        let queue = &mut self.transmit[pair];
        while queue.take_used().is_some() {}
        let slot = u64::from(queue.offered % 16);
        let address = queue.buffers() + slot * 0x20000;
        write_bytes(&self.memory, address, &header);
        write_bytes(&self.memory, address + 0x1000, frame);
        let length = u32::try_from(frame.len()).unwrap();
        let split = length.min(14);
        let head = queue.driver.offer_chain(&[
            (address, 12, READ),
            (address + 0x1000, split, READ),
            (address + 0x1000 + u64::from(split), length - split, READ),
        ]);
        queue.offered = queue.offered.wrapping_add(1);
        queue.posted.push_back((head, address, length));
        queue.kick_if_wanted();
        // No more than the slots may be under way.
        eventually("frames are sent", || {
            while queue.take_used().is_some() {}
            queue.posted.len() < 16
        });
    }

    /// Waits until all frames were taken.
    pub(super) fn wait_sent(&mut self, pair: usize) {
        let queue = &mut self.transmit[pair];
        eventually("all frames are sent", || {
            while queue.take_used().is_some() {}
            queue.posted.is_empty()
        });
    }

    /// Has a command executed, and gives its ack.
    pub(super) fn command(&mut self, request: &[u8]) -> u8 {
        let queue = &mut self.control;
        let address = queue.buffers();
        write_bytes(&self.memory, address, request);
        let head = queue.driver.offer_chain(&[
            (address, u32::try_from(request.len()).unwrap(), READ),
            (address + 0x1000, 1, WRITE),
        ]);
        queue.offered = queue.offered.wrapping_add(1);
        queue.posted.push_back((head, address, 1));
        queue.kick_if_wanted();
        eventually("the command is answered", || queue.take_used().is_some());
        read_bytes(&self.memory, address + 0x1000, 1)[0]
    }

    /// What the VMM's workers have counted.
    pub(super) fn counters(&self) -> Arc<Counters> {
        self.net.counters().expect("the VMM's workers count")
    }

    /// Waits until the device has dropped so many frames for the guest.
    pub(super) fn wait_dropped(&self, count: u64) {
        let counters = self.counters();
        eventually("frames are dropped", || {
            counters.received.dropped() >= count
        });
    }
}
