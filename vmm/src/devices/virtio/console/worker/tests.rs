use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::*;
use crate::devices::virtio::queue_service::{QueueService, Served};
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, WRITE, guest_memory, write_bytes,
};

/// Keeps what was written, for the test to look at; refuses while `broken`.
#[derive(Clone, Default)]
struct Sink {
    written: Arc<Mutex<Vec<u8>>>,
    broken: Arc<Mutex<bool>>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if *self.broken.lock().unwrap() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn worker(driver: &TestDriver) -> (QueueService<Transmit>, Sink, Arc<TestInterrupt>) {
    let sink = Sink::default();
    let interrupt = Arc::new(TestInterrupt::default());
    let transmit = Transmit::new(Output::new(Box::new(sink.clone())));
    let ring = Ring::new(driver.queue(), false);
    (
        QueueService::new(ring, 1, interrupt.clone(), transmit),
        sink,
        interrupt,
    )
}

#[test]
fn output_arrives_in_order() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut worker, sink, interrupt) = worker(&driver);
    let long: Vec<u8> = (0..=u8::MAX).cycle().take(9000).collect();
    write_bytes(&memory, 0x1000, b"hello, ");
    write_bytes(&memory, 0x2000, &long);
    let first = driver.offer_chain(&[(0x1000, 7, READ), (0x2000, 9000, READ)]);
    let second = driver.offer_chain(&[(0x1000, 5, READ)]);
    assert_eq!(worker.serve(&memory).unwrap(), Served::All);
    assert_eq!(
        *sink.written.lock().unwrap(),
        [b"hello, ", &long[..], b"hello"].concat()
    );
    assert_eq!(driver.take_used(), Some((first, 0)));
    assert_eq!(driver.take_used(), Some((second, 0)));
    assert_eq!(interrupt.count(1), 1);
}

#[test]
fn a_sink_that_fails_does_not_stop_the_guest() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut worker, sink, _) = worker(&driver);
    write_bytes(&memory, 0x1000, b"lost kept");
    *sink.broken.lock().unwrap() = true;
    driver.offer_chain(&[(0x1000, 5, READ)]);
    worker.serve(&memory).unwrap();
    *sink.broken.lock().unwrap() = false;
    driver.offer_chain(&[(0x1005, 4, READ)]);
    worker.serve(&memory).unwrap();
    assert_eq!(*sink.written.lock().unwrap(), b"kept");
    assert_eq!(driver.used_index(), 2);
}

#[test]
fn malformed_output_is_dropped_and_the_rest_goes_on() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut worker, sink, _) = worker(&driver);
    write_bytes(&memory, 0x1000, b"good");
    driver.offer_chain(&[(0x1000, 4, WRITE)]);
    driver.offer_chain(&[(0x4000_0000, 4, READ)]);
    driver.offer_chain(&[(0x1000, 4, READ)]);
    assert_eq!(worker.serve(&memory).unwrap(), Served::All);
    assert_eq!(*sink.written.lock().unwrap(), b"good");
    assert_eq!(driver.used_index(), 3);
}

#[test]
fn one_chain_is_bounded() {
    let memory = guest_memory(4 << 20);
    let mut driver = TestDriver::new(&memory, 0, 128);
    let (mut worker, sink, _) = worker(&driver);
    driver.offer_chain(&[(0x1000, 3 << 20, READ)]);
    worker.serve(&memory).unwrap();
    assert_eq!(sink.written.lock().unwrap().len(), MAX_CHAIN);
}
