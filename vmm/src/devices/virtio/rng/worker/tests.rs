use std::sync::Arc;

use super::*;
use crate::devices::virtio::queue_service::{QueueService, Served};
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, WRITE, guest_memory, read_bytes,
};

/// An endless source of one byte.
struct Sevens;

impl ReadVolatile for Sevens {
    fn read_volatile<B: vm_memory::bitmap::BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<B>,
    ) -> Result<usize, vm_memory::VolatileMemoryError> {
        // No more than 100 bytes at a time, as real sources may.
        let count = buffer.len().min(100);
        buffer.subslice(0, count)?.copy_from(&vec![7_u8; count]);
        Ok(count)
    }
}

fn worker<S: ReadVolatile>(
    driver: &TestDriver,
    source: S,
) -> (QueueService<Fill<S>>, Arc<TestInterrupt>) {
    let interrupt = Arc::new(TestInterrupt::default());
    let ring = Ring::new(driver.queue(), false);
    (
        QueueService::new(ring, 0, interrupt.clone(), Fill::new(source)),
        interrupt,
    )
}

#[test]
fn buffers_are_filled() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut worker, interrupt) = worker(&driver, Sevens);
    let first = driver.offer_chain(&[(0x1000, 300, WRITE), (0x2000, 5, WRITE)]);
    let second = driver.offer_chain(&[(0x3000, 1, WRITE)]);
    assert_eq!(worker.serve(&memory).unwrap(), Served::All);
    assert_eq!(driver.take_used(), Some((first, 305)));
    assert_eq!(driver.take_used(), Some((second, 1)));
    assert_eq!(
        read_bytes(&memory, 0x1000, 301),
        [vec![7; 300], vec![0]].concat()
    );
    assert_eq!(read_bytes(&memory, 0x2000, 6), [7, 7, 7, 7, 7, 0]);
    assert_eq!(interrupt.count(0), 1);
}

#[test]
fn one_request_is_bounded() {
    let memory = guest_memory(0x100000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut worker, _) = worker(&driver, Sevens);
    let head = driver.offer_chain(&[(0x10000, 0xf000, WRITE), (0x20000, 0x80000, WRITE)]);
    worker.serve(&memory).unwrap();
    assert_eq!(driver.take_used(), Some((head, 0x10000)));
    assert_eq!(read_bytes(&memory, 0x20fff, 2), [7, 0]);
}

#[test]
fn what_cannot_be_filled_ends_the_device() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut worker, _) = worker(&driver, Sevens);
    driver.offer_chain(&[(0x1000, 8, READ)]);
    assert!(matches!(
        worker.serve(&memory),
        Err(FillError::Chain(ChainError::Direction))
    ));
}

#[test]
fn a_source_that_ends_is_an_error() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut worker, _) = worker(&driver, &[1_u8, 2][..]);
    driver.offer_chain(&[(0x1000, 8, WRITE)]);
    assert!(matches!(worker.serve(&memory), Err(FillError::Source(_))));
}
