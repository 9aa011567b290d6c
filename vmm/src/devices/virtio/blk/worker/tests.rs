use std::io::Write as _;
use std::os::fd::OwnedFd;

use hull_vmm_protocol::control::Moved;
use tempfile::NamedTempFile;

use super::*;
use crate::devices::virtio::queue_service::{QueueService, Served};
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    Buffer, READ, TestDriver, TestInterrupt, WRITE, guest_memory, read_bytes, write_bytes,
};

const HEADER_AT: u64 = 0x4000;
const STATUS_AT: u64 = 0x5000;
const DATA_AT: u64 = 0x1_0000;

/// A disk of so many sectors, each filled with its number, and its only queue.
struct Bench {
    memory: GuestMemory,
    driver: TestDriver,
    service: QueueService<Requests>,
    activity: Arc<Activity>,
    file: NamedTempFile,
}

impl Bench {
    fn new(sectors: u8, readonly: bool) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        for sector in 0..sectors {
            file.write_all(&[sector; 512]).unwrap();
        }
        let descriptor = match readonly {
            true => OwnedFd::from(std::fs::File::open(file.path()).unwrap()),
            false => file.reopen().unwrap().into(),
        };
        let disk = Arc::new(Disk::new(descriptor, readonly).unwrap());
        let memory = guest_memory(0x10_0000);
        let driver = TestDriver::new(&memory, 0, 64);
        let interrupt = Arc::new(TestInterrupt::default());
        let mut name = [0; NAME];
        name[..4].copy_from_slice(b"root");
        let activity = Arc::<Activity>::default();
        let requests = Requests::new(disk, name, Arc::clone(&activity));
        let service = QueueService::new(Ring::new(driver.queue(), false), 0, interrupt, requests);
        Self {
            memory,
            driver,
            service,
            activity,
            file,
        }
    }

    /// Has a request with `data` done; gives its status and how much was written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        write_bytes(&self.memory, HEADER_AT, &header);
        write_bytes(&self.memory, STATUS_AT, &[0xff]);
        let mut chain = vec![(HEADER_AT, 16, READ)];
        chain.extend(data);
        chain.push((STATUS_AT, 1, WRITE));
        let head = self.driver.offer_chain(&chain);
        assert_eq!(self.service.serve(&self.memory).unwrap(), Served::All);
        let (used, written) = self.driver.take_used().unwrap();
        assert_eq!(used, head);
        (read_bytes(&self.memory, STATUS_AT, 1)[0], written)
    }

    /// A request to discard or zero `sectors` from `sector` on.
    fn on_range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        write_bytes(&self.memory, DATA_AT, &range);
        self.request(kind, 0, &[(DATA_AT, 16, READ)]).0
    }

    fn contents(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }
}

#[test]
fn sectors_are_read_into_any_buffers_and_written_from_them() {
    let mut bench = Bench::new(8, false);
    let pieces = [
        (DATA_AT, 100, WRITE),
        (DATA_AT + 0x1000, 900, WRITE),
        (DATA_AT + 0x2000, 24, WRITE),
    ];
    assert_eq!(bench.request(request_type::IN, 3, &pieces), (0, 1025));
    let memory = &bench.memory;
    assert_eq!(
        read_bytes(memory, DATA_AT, 101),
        [&[3; 100][..], &[0]].concat()
    );
    let second = read_bytes(memory, DATA_AT + 0x1000, 900);
    assert_eq!(second, [&[3; 412][..], &[4; 488]].concat());

    write_bytes(&bench.memory, DATA_AT, &[9; 1024]);
    let pieces = [(DATA_AT, 1, READ), (DATA_AT, 511, READ)];
    assert_eq!(bench.request(request_type::OUT, 7, &pieces), (0, 1));
    assert_eq!(bench.request(request_type::FLUSH, 0, &[]), (0, 1));
    assert_eq!(bench.contents()[6 * 512..], [[6; 512], [9; 512]].concat());
    let name = [(DATA_AT, 20, WRITE)];
    assert_eq!(bench.request(request_type::GET_ID, 0, &name), (0, 21));
    let told = read_bytes(&bench.memory, DATA_AT, 20);
    assert_eq!(told, [&b"root"[..], &[0; 16]].concat());

    let moved = |operations, bytes| Moved { operations, bytes };
    assert_eq!(bench.activity.to_guest.told(), moved(1, 1024));
    assert_eq!(bench.activity.from_guest.told(), moved(1, 512));
    assert_eq!(bench.activity.failed(), 0);
    bench.request(99, 0, &[]);
    assert_eq!(bench.activity.failed(), 1);
}

#[test]
fn header_and_status_may_lie_in_any_buffers() {
    let mut bench = Bench::new(2, false);
    let mut header = [0; HEADER];
    header[8] = 1;
    write_bytes(&bench.memory, HEADER_AT, &header);
    // The header in three pieces; data and status in one.
    bench.driver.offer_chain(&[
        (HEADER_AT, 3, READ),
        (HEADER_AT + 3, 8, READ),
        (HEADER_AT + 11, 5, READ),
        (DATA_AT, 513, WRITE),
    ]);
    assert_eq!(bench.service.serve(&bench.memory).unwrap(), Served::All);
    assert_eq!(bench.driver.take_used().unwrap().1, 513);
    let read = read_bytes(&bench.memory, DATA_AT, 513);
    assert_eq!(read, [&[1; 512][..], &[0]].concat());
}

#[test]
fn what_is_discarded_or_zeroed_reads_as_zeroes() {
    let mut bench = Bench::new(8, false);
    for (kind, sector, flags) in [
        (request_type::DISCARD, 1, 0),
        (request_type::WRITE_ZEROES, 3, 0),
        (request_type::WRITE_ZEROES, 5, UNMAP),
    ] {
        assert_eq!(bench.on_range(kind, sector, 1, flags), 0, "{kind}");
    }
    let firsts: Vec<u8> = bench
        .contents()
        .chunks(512)
        .map(|sector| sector[0])
        .collect();
    assert_eq!(firsts, [0, 0, 2, 0, 4, 0, 6, 7]);
    assert_eq!(bench.on_range(request_type::DISCARD, 8, 0, 0), 0);
    assert_eq!(bench.on_range(request_type::DISCARD, 7, 1, 1), 2, "a flag");
    assert_eq!(bench.on_range(request_type::DISCARD, 7, 2, 0), 1);
    assert_eq!(bench.on_range(request_type::DISCARD, u64::MAX, 2, 0), 1);
    assert_eq!(
        bench.on_range(request_type::WRITE_ZEROES, 0, u32::MAX, 0),
        1
    );
    let half = [(DATA_AT, 8, READ)];
    assert_eq!(bench.request(request_type::DISCARD, 0, &half), (1, 1));
}

#[test]
fn what_is_not_on_the_disk_or_not_to_be_written_fails_and_changes_nothing() {
    let mut bench = Bench::new(4, false);
    let before = bench.contents();
    write_bytes(&bench.memory, DATA_AT, &[9; 1024]);
    let (one, two) = ([(DATA_AT, 512, READ)], [(DATA_AT, 1024, READ)]);
    for (sector, data) in [
        (4, &one[..]),
        (3, &two[..]),
        (u64::MAX, &one[..]),
        (u64::MAX / 512, &one[..]),
        (0, &[(DATA_AT, 511, READ)][..]),
    ] {
        assert_eq!(bench.request(request_type::OUT, sector, data), (1, 1));
    }
    let one = [(DATA_AT, 512, WRITE)];
    assert_eq!(bench.request(request_type::IN, 4, &one), (1, 1));
    assert_eq!(bench.request(99, 0, &[]), (2, 1));
    assert_eq!(bench.contents(), before);

    let mut bench = Bench::new(4, true);
    let data = [(DATA_AT, 512, READ)];
    assert_eq!(bench.request(request_type::OUT, 0, &data), (1, 1));
    assert_eq!(bench.on_range(request_type::DISCARD, 0, 1, 0), 1);
    assert_eq!(bench.request(request_type::IN, 0, &one), (0, 513));
    assert_eq!(bench.contents(), before);
}

#[test]
fn a_request_is_bounded() {
    let mut bench = Bench::new(4, false);
    bench.file.as_file().set_len(64 << 20).unwrap();
    let disk = Disk::new(bench.file.reopen().unwrap().into(), false).unwrap();
    let requests = Requests::new(Arc::new(disk), [0; NAME], Arc::default());
    let ring = Ring::new(bench.driver.queue(), false);
    bench.service = QueueService::new(ring, 0, Arc::new(TestInterrupt::default()), requests);
    let pieces = [(DATA_AT, 0x8_0000, WRITE); 62];
    assert_eq!(
        bench.request(request_type::IN, 0, &pieces),
        (0, (31 << 20) + 1)
    );
    let pieces = [(DATA_AT, 0x9_0000, WRITE); 62];
    let (status, written) = bench.request(request_type::IN, 0, &pieces);
    assert_eq!((status, written), (1, 1));
}

#[test]
fn a_disk_that_has_shrunk_fails_what_it_has_no_more() {
    let mut bench = Bench::new(4, false);
    bench.file.as_file().set_len(512).unwrap();
    let two = [(DATA_AT, 1024, WRITE)];
    assert_eq!(bench.request(request_type::IN, 0, &two), (1, 1));
}

#[test]
fn what_cannot_even_be_refused_ends_the_queue() {
    for chain in [
        &[(HEADER_AT, 16, READ)][..],
        &[(HEADER_AT, 16, READ), (STATUS_AT, 0, WRITE)],
    ] {
        let mut bench = Bench::new(4, false);
        bench.driver.offer_chain(chain);
        let ended = bench.service.serve(&bench.memory);
        assert!(matches!(ended, Err(RequestError::NoStatus)), "{ended:?}");
    }
    let mut bench = Bench::new(4, false);
    let chain = [(STATUS_AT, 1, WRITE), (HEADER_AT, 16, READ)];
    bench.driver.offer_chain(&chain);
    let ended = bench.service.serve(&bench.memory);
    let direction = RequestError::Chain(ChainError::Direction);
    assert_eq!(ended.unwrap_err().to_string(), direction.to_string());
}

#[test]
fn a_request_without_a_whole_header_fails() {
    let mut bench = Bench::new(4, false);
    let chain = [(HEADER_AT, 15, READ), (STATUS_AT, 1, WRITE)];
    bench.driver.offer_chain(&chain);
    bench.service.serve(&bench.memory).unwrap();
    assert_eq!(read_bytes(&bench.memory, STATUS_AT, 1), [1]);
}
