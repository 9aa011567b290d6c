use vm_memory::GuestAddress;

use super::*;
use crate::devices::virtio::mem::backend::BLOCK;
use crate::devices::virtio::queue_service::{QueueService, Served};
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    Buffer, READ, TestDriver, TestInterrupt, WRITE, read_bytes, write_bytes,
};

const START: u64 = 1 << 32;
const REQUEST_AT: u64 = 0x4000;
const ANSWER_AT: u64 = 0x5000;

struct Bench {
    memory: GuestMemory,
    driver: TestDriver,
    service: QueueService<Requests>,
    region: Arc<Region>,
}

impl Bench {
    /// A device with four blocks, of which `wanted` should be plugged.
    fn new(wanted: u64) -> Self {
        let ranges = [
            (GuestAddress(0), 0x1_0000),
            (GuestAddress(START), usize::try_from(4 * BLOCK).unwrap()),
        ];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let driver = TestDriver::new(&memory, 0, 16);
        let region = Arc::new(Region::new(START..START + 4 * BLOCK));
        region.want(wanted * BLOCK);
        let ring = Ring::new(driver.queue(), false);
        let interrupt = Arc::new(TestInterrupt::default());
        let requests = Requests::new(region.clone());
        Self {
            service: QueueService::new(ring, 0, interrupt, requests),
            memory,
            driver,
            region,
        }
    }

    /// Offers a chain and serves it; how many bytes were written.
    fn offer(&mut self, chain: &[Buffer]) -> Result<u32, RequestError> {
        let head = self.driver.offer_chain(chain);
        let served = self.service.serve(&self.memory)?;
        assert_eq!(served, Served::All);
        let (used, written) = self.driver.take_used().expect("it was answered");
        assert_eq!(used, head);
        Ok(written)
    }

    /// The answer's type and state to a well-formed request.
    fn ask(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        let mut request = [0; REQUEST];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        write_bytes(&self.memory, REQUEST_AT, &request);
        write_bytes(&self.memory, ANSWER_AT, &[0xff; ANSWER]);
        // In pieces, as a driver may have them.
        let chain = [
            (REQUEST_AT, 3, READ),
            (REQUEST_AT + 3, 21, READ),
            (ANSWER_AT, 9, WRITE),
            (ANSWER_AT + 9, 1, WRITE),
        ];
        assert_eq!(self.offer(&chain).unwrap(), 10);
        let answer = read_bytes(&self.memory, ANSWER_AT, ANSWER);
        assert_eq!(answer[2..8], [0; 6], "padding");
        (
            u16::from_le_bytes([answer[0], answer[1]]),
            u16::from_le_bytes([answer[8], answer[9]]),
        )
    }
}

#[test]
fn blocks_are_plugged_asked_for_and_unplugged() {
    const ACK: u16 = 0;
    const NACK: u16 = 1;
    const ERROR: u16 = 3;
    let mut bench = Bench::new(3);
    assert_eq!(bench.ask(request_type::PLUG, START, 2).0, ACK);
    assert_eq!(bench.region.plugged(), 2 * BLOCK);
    assert_eq!(bench.ask(request_type::PLUG, START + 2 * BLOCK, 2).0, NACK);
    assert_eq!(bench.ask(request_type::PLUG, START, 1).0, ERROR);
    assert_eq!(bench.ask(request_type::STATE, START, 2), (ACK, 0));
    assert_eq!(
        bench.ask(request_type::STATE, START + 2 * BLOCK, 1),
        (ACK, 1)
    );
    assert_eq!(bench.ask(request_type::STATE, START, 4), (ACK, 2));
    assert_eq!(bench.ask(request_type::STATE, START, 5).0, ERROR);
    assert_eq!(bench.ask(request_type::UNPLUG, START + BLOCK, 1).0, ACK);
    assert_eq!(bench.ask(request_type::UNPLUG, START + BLOCK, 1).0, ERROR);
    assert_eq!(bench.region.plugged(), BLOCK);
    assert_eq!(bench.ask(request_type::UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!(bench.region.plugged(), 0);
    assert_eq!(bench.ask(4, START, 1).0, ERROR);
    assert_eq!(bench.ask(u16::MAX, u64::MAX, u16::MAX).0, ERROR);
}

#[test]
fn requests_that_are_too_short_are_errors_and_answers_only_what_fits() {
    let mut bench = Bench::new(4);
    write_bytes(&bench.memory, REQUEST_AT, &[0; REQUEST]);
    for chain in [
        &[(ANSWER_AT, 10, WRITE)][..],
        &[(REQUEST_AT, 1, READ), (ANSWER_AT, 10, WRITE)],
        // It would plug nothing at address 0.
        &[(REQUEST_AT, 2, READ), (ANSWER_AT, 10, WRITE)],
    ] {
        assert_eq!(bench.offer(chain).unwrap(), 10);
        assert_eq!(read_bytes(&bench.memory, ANSWER_AT, 2), [3, 0]);
    }
    write_bytes(&bench.memory, ANSWER_AT, &[0xff; 4]);
    let chain = [(REQUEST_AT, 24, READ), (ANSWER_AT, 1, WRITE)];
    assert_eq!(bench.offer(&chain).unwrap(), 1);
    assert_eq!(read_bytes(&bench.memory, ANSWER_AT, 2), [3, 0xff]);
    assert_eq!(bench.offer(&[(REQUEST_AT, 24, READ)]).unwrap(), 0);
}

#[test]
fn malformed_chains_stop_the_queue() {
    for chain in [
        &[(ANSWER_AT, 10, WRITE), (REQUEST_AT, 24, READ)][..],
        &[(0x2_0000, 24, READ), (ANSWER_AT, 10, WRITE)],
    ] {
        let error = Bench::new(1).offer(chain).unwrap_err();
        assert!(matches!(error, RequestError::Chain(_)), "{error:?}");
    }
}
