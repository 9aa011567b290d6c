use std::cell::Cell;

use super::*;
use crate::devices::virtio::net::tests::TestBackend;
use crate::devices::virtio::ring::RingError;
use crate::devices::virtio::test_driver::{
    Buffer, INDIRECT, NEXT, READ, TestDriver, WRITE, guest_memory, write_bytes,
};

const SIZE: u16 = 64;
const BUFFERS: u64 = 0x10000;

struct Fixture {
    memory: GuestMemory,
    driver: TestDriver,
    transmitter: Transmitter,
    backend: TestBackend,
    tally: Tally,
    interrupts: Cell<u32>,
}

impl Fixture {
    fn new(event_idx: bool) -> Self {
        let memory = guest_memory(0x200_000);
        let pattern: Vec<u8> = (0..=250).cycle().take(0x20000).collect();
        write_bytes(&memory, BUFFERS, &pattern);
        let driver = TestDriver::new(&memory, 0, SIZE);
        let transmitter = Transmitter::new(Ring::new(driver.queue(), event_idx));
        Self {
            memory,
            driver,
            transmitter,
            backend: TestBackend::default(),
            tally: Tally::default(),
            interrupts: Cell::new(0),
        }
    }

    fn try_run(&mut self) -> Result<Sent, QueueError> {
        let interrupts = &self.interrupts;
        self.transmitter
            .run(&self.memory, &self.backend, &mut self.tally, || {
                interrupts.set(interrupts.get() + 1);
            })
    }

    fn run(&mut self) -> Sent {
        self.try_run().unwrap()
    }

    fn offer(&mut self, length: u32) -> u16 {
        self.driver.offer_chain(&[(BUFFERS, length, READ)])
    }

    fn sent_lengths(&self) -> Vec<usize> {
        self.backend
            .sent
            .lock()
            .unwrap()
            .iter()
            .map(Vec::len)
            .collect()
    }
}

#[test]
fn frames_are_sent_in_order_and_given_back() {
    let mut fixture = Fixture::new(false);
    let first = fixture.driver.offer_chain(&[
        (BUFFERS, 12, READ),
        (BUFFERS + 12, 50, READ),
        (BUFFERS + 62, 100, READ),
    ]);
    let second = fixture.offer(60);
    assert_eq!(fixture.run(), Sent::All);
    let expected: Vec<u8> = (0..162).collect();
    assert_eq!(fixture.backend.sent.lock().unwrap()[0], expected);
    assert_eq!(fixture.sent_lengths(), [162, 60]);
    assert_eq!(fixture.driver.take_used(), Some((first, 0)));
    assert_eq!(fixture.driver.take_used(), Some((second, 0)));
    assert_eq!(
        fixture.tally,
        Tally {
            frames: 2,
            bytes: 198,
            dropped: 0
        }
    );
    assert_eq!(fixture.interrupts.get(), 1);
}

#[test]
fn a_frame_that_the_host_cannot_take_now_is_sent_later() {
    let mut fixture = Fixture::new(true);
    fixture.backend.refusals.lock().unwrap().extend([
        io::ErrorKind::Interrupted,
        io::ErrorKind::WouldBlock,
        io::ErrorKind::WouldBlock,
    ]);
    fixture.offer(60);
    fixture.offer(61);
    assert_eq!(fixture.run(), Sent::Blocked);
    assert_eq!(fixture.run(), Sent::Blocked);
    assert_eq!(fixture.driver.used_index(), 0);
    assert_eq!(fixture.run(), Sent::All);
    assert_eq!(fixture.sent_lengths(), [60, 61]);
    assert_eq!(fixture.tally.dropped, 0);
}

#[test]
fn a_frame_that_the_host_refuses_is_dropped() {
    let mut fixture = Fixture::new(false);
    fixture
        .backend
        .refusals
        .lock()
        .unwrap()
        .push_back(io::ErrorKind::InvalidInput);
    fixture.offer(60);
    fixture.offer(61);
    assert_eq!(fixture.run(), Sent::All);
    assert_eq!(fixture.sent_lengths(), [61]);
    assert_eq!(fixture.driver.used_index(), 2);
    assert_eq!(
        fixture.tally,
        Tally {
            frames: 1,
            bytes: 49,
            dropped: 1
        }
    );
}

/// What a hostile driver offers: the first descriptors, each with its next one.
const MALFORMED: &[(&str, &[(Buffer, u16)])] = &[
    ("a loop", &[((BUFFERS, 8, NEXT), 0)]),
    (
        "a loop of two",
        &[((BUFFERS, 8, NEXT), 1), ((BUFFERS, 8, NEXT), 0)],
    ),
    (
        "a buffer for the device to write",
        &[((BUFFERS, 60, WRITE), 0)],
    ),
    (
        "an answer at the end",
        &[((BUFFERS, 60, NEXT), 1), ((BUFFERS, 1, WRITE), 0)],
    ),
    ("no header", &[((BUFFERS, 11, READ), 0)]),
    ("nothing but a header", &[((BUFFERS, 12, READ), 0)]),
    ("nothing at all", &[((BUFFERS, 0, READ), 0)]),
    (
        "more than the largest frame",
        &[((BUFFERS, 65566, READ), 0)],
    ),
    ("as much memory as there is", &[((0, 0x200_000, READ), 0)]),
    ("4 GiB", &[((BUFFERS, u32::MAX, READ), 0)]),
    ("a buffer outside memory", &[((0x4000_0000, 60, READ), 0)]),
    (
        "a buffer that ends outside memory",
        &[((0x1f_fff0, 60, READ), 0)],
    ),
    ("a buffer that wraps", &[((u64::MAX - 10, 60, READ), 0)]),
    (
        "a next descriptor that does not exist",
        &[((BUFFERS, 60, NEXT), SIZE)],
    ),
    ("a broken indirect table", &[((BUFFERS, 15, INDIRECT), 0)]),
    (
        "an indirect table outside memory",
        &[((0x4000_0000, 16, INDIRECT), 0)],
    ),
    (
        "an indirect table that leads to itself",
        &[((0, 16, INDIRECT), 0)],
    ),
];

#[test]
fn malformed_frames_are_dropped_and_the_next_one_is_sent() {
    for (what, descriptors) in MALFORMED {
        let mut fixture = Fixture::new(false);
        for (index, (buffer, next)) in (0..).zip(*descriptors) {
            fixture.driver.set_descriptor(index, *buffer, *next);
        }
        fixture.driver.offer(0);
        fixture.driver.set_descriptor(40, (BUFFERS, 60, READ), 0);
        fixture.driver.offer(40);
        assert_eq!(fixture.run(), Sent::All, "{what}");
        assert_eq!(fixture.sent_lengths(), [60], "{what}");
        assert_eq!(fixture.driver.take_used(), Some((0, 0)), "{what}");
        assert_eq!(fixture.driver.take_used(), Some((40, 0)), "{what}");
        assert_eq!(
            fixture.tally,
            Tally {
                frames: 1,
                bytes: 48,
                dropped: 1
            },
            "{what}"
        );
    }
}

#[test]
fn a_broken_ring_is_an_error() {
    let mut fixture = Fixture::new(false);
    fixture.driver.set_avail_index(SIZE + 1);
    assert!(matches!(
        fixture.try_run(),
        Err(QueueError::Ring(RingError::Available(_)))
    ));
    let mut fixture = Fixture::new(false);
    fixture.driver.offer(SIZE);
    assert!(matches!(
        fixture.try_run(),
        Err(QueueError::Ring(RingError::Head(SIZE)))
    ));
}

#[test]
fn the_largest_frame_is_sent() {
    let mut fixture = Fixture::new(false);
    fixture.offer(65565);
    fixture.run();
    assert_eq!(fixture.sent_lengths(), [MAX_FRAME]);
}

#[test]
fn a_round_is_bounded_in_frames_and_bytes() {
    let memory = guest_memory(0x200_000);
    let mut driver = TestDriver::new(&memory, 0, 512);
    let mut transmitter = Transmitter::new(Ring::new(driver.queue(), true));
    let backend = TestBackend::default();
    let mut run = |expected: Sent| {
        let mut tally = Tally::default();
        let sent = transmitter
            .run(&memory, &backend, &mut tally, || {})
            .unwrap();
        assert_eq!(sent, expected);
        tally.frames
    };
    for _ in 0..300 {
        driver.offer_chain(&[(BUFFERS, 60, READ)]);
    }
    assert_eq!(run(Sent::Budget), u64::from(BUDGET_FRAMES));
    assert_eq!(run(Sent::All), 300 - u64::from(BUDGET_FRAMES));
    for _ in 0..12 {
        driver.offer_chain(&[(BUFFERS, 65000, READ)]);
    }
    assert_eq!(run(Sent::Budget), 9);
    assert_eq!(run(Sent::All), 3);
}

#[test]
fn interrupts_and_kicks_follow_the_event_indices() {
    let mut fixture = Fixture::new(true);
    fixture.driver.set_used_event(2);
    fixture.offer(60);
    fixture.offer(60);
    fixture.run();
    assert_eq!(
        fixture.interrupts.get(),
        0,
        "the driver waits for the third"
    );
    assert_eq!(
        fixture.driver.avail_event(),
        2,
        "the next frame needs a kick"
    );
    fixture.offer(60);
    fixture.run();
    assert_eq!(fixture.interrupts.get(), 1);
    fixture.offer(60);
    fixture.run();
    assert_eq!(
        fixture.interrupts.get(),
        1,
        "the driver asked for the third only"
    );
}
