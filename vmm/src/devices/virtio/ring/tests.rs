use super::*;
use crate::devices::virtio::test_driver::{TestDriver, WRITE, guest_memory};

const SIZE: u16 = 8;

fn ring(event_idx: bool) -> (GuestMemory, TestDriver, Ring) {
    let memory = guest_memory(0x10000);
    let driver = TestDriver::new(&memory, 0, SIZE);
    let ring = Ring::new(driver.queue(), event_idx);
    (memory, driver, ring)
}

#[test]
fn chains_come_in_order_and_again_after_they_were_given_back() {
    let (memory, mut driver, mut ring) = ring(false);
    let heads: Vec<u16> = (0..3)
        .map(|_| driver.offer_chain(&[(0x1000, 16, WRITE)]))
        .collect();
    let mut taken = Vec::new();
    while let Some(chain) = ring.pop(&memory).unwrap() {
        taken.push(chain.head_index());
    }
    assert_eq!(taken, heads);
    assert_eq!(ring.available(&memory).unwrap(), 0);
    ring.unpop(2);
    assert_eq!(ring.available(&memory).unwrap(), 2);
    assert_eq!(ring.pop(&memory).unwrap().unwrap().head_index(), heads[1]);
}

#[test]
fn used_entries_show_all_at_once() {
    let (memory, mut driver, mut ring) = ring(false);
    ring.push_used(&memory, 3, 100).unwrap();
    ring.push_used(&memory, 5, u32::MAX).unwrap();
    assert_eq!(driver.take_used(), None);
    ring.publish(&memory).unwrap();
    assert_eq!(driver.take_used(), Some((3, 100)));
    assert_eq!(driver.take_used(), Some((5, u32::MAX)));
    assert_eq!(driver.take_used(), None);
}

#[test]
fn the_ring_wraps() {
    let (memory, mut driver, mut ring) = ring(true);
    for round in 0..70_000_u32 {
        let head = driver.offer_chain(&[(0x1000, 16, WRITE)]);
        assert_eq!(ring.pop(&memory).unwrap().unwrap().head_index(), head);
        ring.push_used(&memory, head, round).unwrap();
        ring.publish(&memory).unwrap();
        assert_eq!(driver.take_used(), Some((head, round)));
    }
    assert!(ring.pop(&memory).unwrap().is_none());
}

#[test]
fn a_broken_available_ring_is_an_error() {
    let (memory, mut driver, mut ring) = ring(false);
    driver.set_avail_index(SIZE + 1);
    assert!(matches!(ring.pop(&memory), Err(RingError::Available(_))));
    assert!(matches!(
        ring.available(&memory),
        Err(RingError::Available(_))
    ));
    driver.set_avail_index(0);
    assert!(ring.pop(&memory).unwrap().is_none());
    driver.offer(SIZE);
    assert!(matches!(ring.pop(&memory), Err(RingError::Head(SIZE))));
}

#[test]
fn a_ring_that_spans_a_hole_is_an_error() {
    let memory =
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x3000), 0x4000)])
            .unwrap();
    let mut queue = TestDriver::new(&memory, 0, 128).queue();
    // The available ring's index is in the first region, its entries in the hole.
    queue.set_avail_ring_address(Some(0x1ffc), Some(0));
    memory.write_obj(1_u16, GuestAddress(0x1ffe)).unwrap();
    let mut ring = Ring::new(queue, false);
    assert!(matches!(
        ring.pop(&memory),
        Err(RingError::AvailableEntry(0))
    ));
    let mut queue = TestDriver::new(&memory, 0, 128).queue();
    queue.set_used_ring_address(Some(0x1ffc), Some(0));
    let mut ring = Ring::new(queue, false);
    assert!(matches!(
        ring.push_used(&memory, 0, 0),
        Err(RingError::Memory(_))
    ));
}

#[test]
fn interrupts_are_wanted_as_the_flag_says() {
    let (memory, driver, mut ring) = ring(false);
    assert!(!ring.needs_interrupt(&memory).unwrap());
    ring.push_used(&memory, 0, 0).unwrap();
    ring.publish(&memory).unwrap();
    assert!(ring.needs_interrupt(&memory).unwrap());
    assert!(!ring.needs_interrupt(&memory).unwrap());
    driver.set_avail_flags(1);
    ring.push_used(&memory, 0, 0).unwrap();
    ring.publish(&memory).unwrap();
    assert!(!ring.needs_interrupt(&memory).unwrap());
}

#[test]
fn interrupts_are_wanted_when_the_event_index_is_passed() {
    // (used entries published, the driver's used_event, an interrupt is wanted), one after the other.
    let steps = [
        (1, 0, true),
        (1, 0, false),
        (3, 4, true),
        (2, 7, false),
        (1, 7, true),
        (5, 100, false),
        (5, 0, false),
    ];
    let (memory, driver, mut ring) = ring(true);
    for (number, (count, event, wanted)) in steps.into_iter().enumerate() {
        driver.set_used_event(event);
        for _ in 0..count {
            ring.push_used(&memory, 0, 0).unwrap();
        }
        ring.publish(&memory).unwrap();
        assert_eq!(
            ring.needs_interrupt(&memory).unwrap(),
            wanted,
            "step {number}"
        );
    }
}

#[test]
fn kicks_are_asked_for_without_missing_any() {
    for event_idx in [false, true] {
        let (memory, mut driver, mut ring) = ring(event_idx);
        ring.disable_kicks(&memory).unwrap();
        assert_eq!(driver.used_flags(), u16::from(!event_idx));
        assert!(!ring.enable_kicks(&memory).unwrap());
        assert_eq!(driver.used_flags(), 0);
        driver.offer_chain(&[(0x1000, 16, WRITE)]);
        assert!(
            ring.enable_kicks(&memory).unwrap(),
            "offered before the kicks were asked for"
        );
        ring.pop(&memory).unwrap().unwrap();
        assert!(!ring.enable_kicks(&memory).unwrap());
        if event_idx {
            assert_eq!(driver.avail_event(), 1);
        }
    }
}
