use std::cell::Cell;

use super::*;
use crate::devices::virtio::net::tests::{TestBackend, with_num_buffers};
use crate::devices::virtio::test_driver::{
    Buffer, INDIRECT, NEXT, READ, TestDriver, WRITE, guest_memory, read_bytes,
};

const SIZE: u16 = 64;
/// Where the tests put buffers.
const BUFFERS: u64 = 0x10000;
/// The largest frame of most tests.
const LARGEST: usize = 1600;

struct Fixture {
    memory: GuestMemory,
    driver: TestDriver,
    receiver: Receiver,
    backend: TestBackend,
    tally: Tally,
    interrupts: Cell<u32>,
}

impl Fixture {
    fn new(mergeable: bool) -> Self {
        Self::with_events(mergeable, false)
    }

    fn with_events(mergeable: bool, event_idx: bool) -> Self {
        let memory = guest_memory(0x200_000);
        let driver = TestDriver::new(&memory, 0, SIZE);
        let ring = Ring::new(driver.queue(), event_idx);
        Self {
            memory,
            driver,
            receiver: Receiver::new(ring, mergeable, LARGEST),
            backend: TestBackend::default(),
            tally: Tally::default(),
            interrupts: Cell::new(0),
        }
    }

    fn try_run(&mut self, forced: bool) -> Result<Received, QueueError> {
        let interrupts = &self.interrupts;
        self.receiver
            .run(&self.memory, &self.backend, forced, &mut self.tally, || {
                interrupts.set(interrupts.get() + 1);
            })
    }

    fn run(&mut self, forced: bool) -> Received {
        self.try_run(forced).unwrap()
    }

    /// Offers a buffer of `length` bytes at the `number`th place.
    fn offer(&mut self, number: u64, length: u32) -> u16 {
        self.driver
            .offer_chain(&[(BUFFERS + number * 0x1000, length, WRITE)])
    }

    fn buffer(&self, number: u64, length: usize) -> Vec<u8> {
        read_bytes(&self.memory, BUFFERS + number * 0x1000, length)
    }
}

#[test]
fn a_frame_fills_one_chain() {
    for mergeable in [false, true] {
        let mut fixture = Fixture::new(mergeable);
        let head = fixture.offer(0, 2000);
        let frame = fixture.backend.arrive(100);
        assert!(matches!(fixture.run(false), Received::NoBuffers));
        assert_eq!(fixture.driver.take_used(), Some((head, 100)));
        assert_eq!(fixture.buffer(0, 100), with_num_buffers(frame, 1));
        assert_eq!(
            fixture.tally,
            Tally {
                frames: 1,
                bytes: 88,
                dropped: 0
            }
        );
        assert_eq!(fixture.interrupts.get(), 1);
    }
}

#[test]
fn a_frame_is_merged_from_several_chains() {
    let mut fixture = Fixture::new(true);
    let heads: Vec<u16> = (0..20).map(|number| fixture.offer(number, 100)).collect();
    let frame = with_num_buffers(fixture.backend.arrive(250), 3);
    let next = with_num_buffers(fixture.backend.arrive(60), 1);
    // 17 chains are left after the first frame: enough for the largest; then 16 are, which is enough as well.
    assert!(matches!(fixture.run(false), Received::Waiting));
    assert_eq!(fixture.driver.take_used(), Some((heads[0], 100)));
    assert_eq!(fixture.driver.take_used(), Some((heads[1], 100)));
    assert_eq!(fixture.driver.take_used(), Some((heads[2], 50)));
    assert_eq!(fixture.driver.take_used(), Some((heads[3], 60)));
    assert_eq!(fixture.driver.take_used(), None);
    let received = [
        fixture.buffer(0, 100),
        fixture.buffer(1, 100),
        fixture.buffer(2, 50),
    ];
    assert_eq!(received.concat(), frame);
    assert_eq!(fixture.buffer(3, 60), next);
}

#[test]
fn a_frame_larger_than_expected_finds_its_chains() {
    let memory = guest_memory(0x200_000);
    let mut driver = TestDriver::new(&memory, 0, 256);
    let mut receiver = Receiver::new(Ring::new(driver.queue(), true), true, MAX_FRAME);
    let backend = TestBackend::default();
    let offer = |driver: &mut TestDriver, number: u64| {
        driver.offer_chain(&[(BUFFERS + number * 0x1000, 1500, WRITE)]);
    };
    for number in 0..256 {
        offer(&mut driver, number);
    }
    let mut next = 0;
    // Small after large, and large after small, at every edge of the chains.
    for length in [
        60, 4500, 4501, 60, MAX_FRAME, 60, 60, 9000, 1500, 6001, 12, 65000, 13,
    ] {
        let frame = backend.arrive(length);
        let mut tally = Tally::default();
        receiver
            .run(&memory, &backend, false, &mut tally, || {})
            .unwrap();
        assert_eq!((tally.frames, tally.dropped), (1, 0), "{length}");
        let mut received = Vec::new();
        let mut chains = 0;
        while let Some((_, written)) = driver.take_used() {
            let written = usize::try_from(written).unwrap();
            received.extend(read_bytes(&memory, BUFFERS + next * 0x1000, written));
            offer(&mut driver, next);
            next = (next + 1) % 256;
            chains += 1;
        }
        assert_eq!(received, with_num_buffers(frame, chains), "{length}");
    }
}

#[test]
fn a_frame_that_small_chains_after_large_ones_cannot_hold_is_dropped() {
    let mut fixture = Fixture::new(true);
    for number in 0..3 {
        fixture.offer(number, 1400);
    }
    for number in 3..10 {
        fixture.offer(number, 12);
    }
    fixture.backend.arrive(1400);
    fixture.backend.arrive(1400);
    fixture.backend.arrive(1500);
    // The third chain and those after it have less than the largest frame, and it is known exactly.
    assert!(matches!(fixture.run(false), Received::FewBuffers));
    assert!(matches!(fixture.run(true), Received::Waiting));
    assert_eq!((fixture.tally.frames, fixture.tally.dropped), (2, 1));
}

#[test]
fn the_header_may_lie_across_descriptors() {
    // The lengths of the descriptors before the last one.
    for split in [
        &[1_u32, 1, 1][..],
        &[10],
        &[11],
        &[12],
        &[5, 6, 1],
        &[0, 10, 0, 1],
    ] {
        let mut fixture = Fixture::new(false);
        let mut buffers: Vec<Buffer> = Vec::new();
        let mut at = BUFFERS;
        for length in split.iter().chain(&[2000]) {
            buffers.push((at, *length, WRITE));
            at += u64::from(*length);
        }
        let head = fixture.driver.offer_chain(&buffers);
        let frame = fixture.backend.arrive(90);
        fixture.run(false);
        assert_eq!(fixture.driver.take_used(), Some((head, 90)), "{split:?}");
        assert_eq!(
            fixture.buffer(0, 90),
            with_num_buffers(frame, 1),
            "{split:?}"
        );
    }
}

#[test]
fn a_frame_that_does_not_fit_one_chain_is_dropped_and_the_chain_kept() {
    let mut fixture = Fixture::new(false);
    let first = fixture.offer(0, 200);
    fixture.offer(1, 2000);
    fixture.backend.arrive(201);
    let fits = with_num_buffers(fixture.backend.arrive(200), 1);
    fixture.run(false);
    assert_eq!(fixture.driver.take_used(), Some((first, 200)));
    assert_eq!(fixture.driver.take_used(), None);
    assert_eq!(fixture.buffer(0, 200), fits);
    assert_eq!(
        fixture.tally,
        Tally {
            frames: 1,
            bytes: 188,
            dropped: 1
        }
    );
}

#[test]
fn without_buffers_nothing_is_taken_from_the_host() {
    for event_idx in [false, true] {
        let mut fixture = Fixture::with_events(true, event_idx);
        fixture.backend.arrive(100);
        assert!(matches!(fixture.run(false), Received::NoBuffers));
        assert!(matches!(fixture.run(true), Received::NoBuffers));
        assert_eq!(fixture.backend.incoming.lock().unwrap().len(), 1);
        assert_eq!(fixture.driver.used_flags(), 0, "a kick is asked for");
        assert_eq!(fixture.driver.avail_event(), 0);
    }
}

#[test]
fn with_few_buffers_frames_wait_unless_forced() {
    let mut fixture = Fixture::with_events(true, true);
    fixture.offer(0, 500);
    let head = fixture.offer(1, 500);
    fixture.backend.arrive(1100);
    fixture.backend.arrive(501);
    assert!(matches!(fixture.run(false), Received::FewBuffers));
    assert_eq!(fixture.backend.incoming.lock().unwrap().len(), 2);
    assert_eq!(
        fixture.driver.avail_event(),
        2,
        "a kick for the third buffer is asked for"
    );
    assert_eq!(fixture.driver.used_index(), 0);
    // Forced, the one that does not fit is dropped.
    assert!(matches!(fixture.run(true), Received::NoBuffers));
    assert_eq!(
        fixture.tally,
        Tally {
            frames: 1,
            bytes: 489,
            dropped: 1
        }
    );
    fixture.driver.take_used();
    assert_eq!(fixture.driver.take_used(), Some((head, 1)));
}

#[test]
fn chains_that_were_not_needed_serve_the_next_round() {
    let mut fixture = Fixture::new(true);
    let mut offered = VecDeque::new();
    for number in 0..u64::from(SIZE) {
        offered.push_back((number, fixture.offer(number, 700)));
    }
    for round in 0..5000_usize {
        let length = 60 + round * 37 % 1500;
        let frame = fixture.backend.arrive(length);
        assert!(matches!(fixture.run(false), Received::Waiting));
        let mut received = Vec::new();
        let mut chains = 0;
        while let Some((head, written)) = fixture.driver.take_used() {
            let (number, expected) = offered.pop_front().unwrap();
            assert_eq!(head, expected);
            received.extend(fixture.buffer(number, usize::try_from(written).unwrap()));
            chains += 1;
            offered.push_back((number, fixture.offer(number, 700)));
        }
        assert_eq!(received, with_num_buffers(frame, chains), "round {round}");
    }
}

#[test]
fn a_round_is_bounded_in_frames_and_bytes() {
    let memory = guest_memory(0x200_000);
    let mut driver = TestDriver::new(&memory, 0, 1024);
    let mut receiver = Receiver::new(Ring::new(driver.queue(), false), false, MAX_FRAME);
    let backend = TestBackend::default();
    for _ in 0..1024 {
        driver.offer_chain(&[(BUFFERS, 0x20000, WRITE)]);
    }
    let mut run = || {
        let mut tally = Tally::default();
        receiver
            .run(&memory, &backend, false, &mut tally, || {})
            .unwrap();
        tally.frames
    };
    for _ in 0..300 {
        backend.arrive(60);
    }
    assert_eq!(run(), u64::from(BUDGET_FRAMES));
    assert_eq!(run(), 300 - u64::from(BUDGET_FRAMES));
    for _ in 0..20 {
        backend.arrive(MAX_FRAME);
    }
    assert_eq!(run(), 8);
    assert_eq!(run(), 8);
    assert_eq!(run(), 4);
}

#[test]
fn interrupts_are_batched_and_heed_the_driver() {
    let mut fixture = Fixture::new(false);
    for number in 0..u64::from(SIZE) {
        fixture.offer(number, 2000);
    }
    for _ in 0..50 {
        fixture.backend.arrive(60);
    }
    fixture.run(false);
    assert_eq!(
        fixture.interrupts.get(),
        2,
        "after {INTERRUPT_BATCH} frames and at the end"
    );
    fixture.driver.set_avail_flags(1);
    fixture.backend.arrive(60);
    fixture.run(false);
    assert_eq!(fixture.interrupts.get(), 2);
}

/// What a hostile driver offers: the first descriptors, each with its next one.
const MALFORMED: &[(&str, &[(Buffer, u16)])] = &[
    ("a loop", &[((BUFFERS, 8, WRITE | NEXT), 0)]),
    (
        "a buffer for the device to read",
        &[((BUFFERS, 2000, READ), 0)],
    ),
    (
        "a header for the device to read",
        &[((BUFFERS, 12, READ | NEXT), 1), ((BUFFERS, 2000, WRITE), 0)],
    ),
    ("no room for the header", &[((BUFFERS, 11, WRITE), 0)]),
    ("no room at all", &[((BUFFERS, 0, WRITE), 0)]),
    (
        "a buffer outside memory",
        &[((0x4000_0000, 2000, WRITE), 0)],
    ),
    ("a buffer that wraps", &[((u64::MAX - 100, 2000, WRITE), 0)]),
    ("4 GiB", &[((BUFFERS, u32::MAX, WRITE), 0)]),
    (
        "a next descriptor that does not exist",
        &[((BUFFERS, 2000, WRITE | NEXT), 40000)],
    ),
    ("a broken indirect table", &[((BUFFERS, 15, INDIRECT), 0)]),
    (
        "an indirect table that leads to itself",
        &[((0, 16, INDIRECT), 0)],
    ),
];

#[test]
fn a_malformed_chain_ends_the_queue_without_harm() {
    for (what, descriptors) in MALFORMED {
        for mergeable in [false, true] {
            let mut fixture = Fixture::new(mergeable);
            for (index, (buffer, next)) in (0..).zip(*descriptors) {
                fixture.driver.set_descriptor(index, *buffer, *next);
            }
            fixture.driver.offer(0);
            fixture.backend.arrive(100);
            assert!(fixture.try_run(false).is_err(), "{what}");
            assert_eq!(fixture.driver.used_index(), 0, "{what}");
        }
    }
}

#[test]
fn overlapping_and_repeated_buffers_do_no_harm() {
    let mut fixture = Fixture::new(true);
    fixture.driver.set_descriptor(0, (BUFFERS, 900, WRITE), 0);
    for _ in 0..4 {
        fixture.driver.offer(0);
    }
    fixture.backend.arrive(1500);
    fixture.run(false);
    assert_eq!(fixture.driver.take_used(), Some((0, 900)));
    assert_eq!(fixture.driver.take_used(), Some((0, 600)));
    // A buffer over the rings themselves.
    let mut fixture = Fixture::new(false);
    fixture.driver.offer_chain(&[(0, 0x2000, WRITE)]);
    fixture.backend.arrive(1600);
    let _ = fixture.try_run(false);
    let _ = fixture.try_run(true);
}

#[test]
fn many_small_buffers_are_taken_as_far_as_one_call_goes() {
    let memory = guest_memory(0x200_000);
    let mut driver = TestDriver::new(&memory, 0, 2048);
    let mut receiver = Receiver::new(Ring::new(driver.queue(), false), true, MAX_FRAME);
    let backend = TestBackend::default();
    for _ in 0..2048 {
        driver.offer_chain(&[(0x20000, 12, WRITE)]);
    }
    backend.arrive(1023 * 12 + 1);
    backend.arrive(1023 * 12);
    let mut tally = Tally::default();
    receiver
        .run(&memory, &backend, false, &mut tally, || {})
        .unwrap();
    assert_eq!((tally.frames, tally.dropped), (1, 1));
    assert_eq!(driver.used_index(), 1023);
}
