//! Queues full of noise: whatever a driver writes, a round ends, and nothing panics.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::TestBackend;
use crate::devices::virtio::net::backend::Offloads;
use crate::devices::virtio::net::control::{Control, Target};
use crate::devices::virtio::net::counters::Tally;
use crate::devices::virtio::net::receive::Receiver;
use crate::devices::virtio::net::transmit::Transmitter;
use crate::devices::virtio::net::{BUDGET_FRAMES, MAX_FRAME};
use crate::devices::virtio::queue_service::QueueService;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{TestDriver, TestInterrupt, guest_memory};
use crate::memory::GuestMemory;

const SIZE: u16 = 32;
const MEMORY: usize = 0x8000;
const SEEDS: u64 = 250;

/// Marsaglia's xorshift64*: the same noise for the same seed, everywhere.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u16) -> u16 {
        u16::try_from(self.next() % u64::from(bound)).unwrap()
    }

    /// An address: mostly in memory, sometimes at its end or anywhere.
    fn address(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => 0x7ff0 + self.next() % 32,
            _ => self.next() % 0x8000,
        }
    }

    /// A length: mostly small, sometimes as large as can be.
    fn length(&mut self) -> u32 {
        match self.below(8) {
            0 => u32::try_from(self.next() >> 32).unwrap(),
            1 => 0,
            _ => u32::from(self.below(4000)),
        }
    }
}

/// A driver whose table, available ring and memory are noise that looks like chains here and there.
fn driver(memory: &GuestMemory, noise: &mut Noise) -> TestDriver {
    for word in (0..0x8000).step_by(8) {
        memory.write_obj(noise.next(), GuestAddress(word)).unwrap();
    }
    // Indirect tables that make some sense.
    let mut driver = TestDriver::new(memory, 0, SIZE);
    for table in [0x1000, 0x2000] {
        for entry in 0..16 {
            let buffer = (noise.address(), noise.length(), noise.below(4));
            driver.write_descriptor(table + 16 * entry, buffer, noise.below(17));
        }
    }
    for index in 0..SIZE {
        let indirect = noise.below(4) == 0;
        let buffer = if indirect {
            (
                0x1000 * u64::from(1 + noise.below(2)),
                16 * u32::from(noise.below(18)),
                4 | noise.below(4),
            )
        } else {
            (noise.address(), noise.length(), noise.below(4))
        };
        driver.set_descriptor(index, buffer, noise.below(SIZE + 2));
    }
    driver.set_avail_index(0);
    for _ in 0..SIZE {
        let heads = SIZE + u16::from(noise.below(100) == 0);
        let head = noise.below(heads);
        driver.offer(head);
    }
    if noise.below(16) == 0 {
        let index = noise.below(u16::MAX);
        driver.set_avail_index(index);
    }
    driver
}

/// Gives `run` the queue of each seed.
fn for_each_seed(mut run: impl FnMut(u64, &GuestMemory, Ring)) {
    let memory = guest_memory(MEMORY);
    for seed in 1..=SEEDS {
        let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let queue = driver(&memory, &mut noise).queue();
        run(seed, &memory, Ring::new(queue, seed % 2 == 0));
    }
}

#[test]
fn noise_in_the_transmit_queue_does_no_harm() {
    let mut total = Tally::default();
    for_each_seed(|seed, memory, ring| {
        let mut transmitter = Transmitter::new(ring);
        let backend = TestBackend::default();
        for _ in 0..3 {
            let mut tally = Tally::default();
            let result = transmitter.run(memory, &backend, &mut tally, || {});
            assert!(
                tally.frames + tally.dropped <= u64::from(BUDGET_FRAMES),
                "seed {seed}"
            );
            total.frames += tally.frames;
            total.dropped += tally.dropped;
            if result.is_err() {
                break;
            }
        }
        let sent = backend.sent.lock().unwrap();
        assert!(
            sent.iter().all(|frame| frame.len() <= MAX_FRAME),
            "seed {seed}"
        );
    });
    assert!(total.frames > SEEDS && total.dropped > SEEDS, "{total:?}");
}

#[test]
fn noise_in_the_receive_queue_does_no_harm() {
    let mut frames = 0;
    for_each_seed(|seed, memory, ring| {
        let mut receiver = Receiver::new(ring, seed % 3 != 0, MAX_FRAME);
        let backend = TestBackend::default();
        for length in [60, 12, 1500, 9000, MAX_FRAME, 0, 300] {
            backend.arrive(length);
        }
        for round in 0..4 {
            let mut tally = Tally::default();
            let result = receiver.run(memory, &backend, round % 2 == 1, &mut tally, || {});
            frames += tally.frames;
            if result.is_err() {
                break;
            }
        }
    });
    assert!(frames > 0);
}

/// Takes every command.
struct Anything;

impl Target for Anything {
    fn set_offloads(&self, _offloads: Offloads) -> std::io::Result<()> {
        Ok(())
    }

    fn set_pairs(&self, _count: u16) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn noise_in_the_control_queue_does_no_harm() {
    for_each_seed(|_, memory, ring| {
        let control = Control::new(Arc::new(Anything), u64::MAX);
        let mut control = QueueService::new(ring, 2, Arc::new(TestInterrupt::default()), control);
        for _ in 0..4 {
            if control.serve(memory).is_err() {
                break;
            }
        }
    });
}
