use std::sync::Mutex;

use super::*;
use crate::devices::virtio::queue_service::{QueueService, Served};
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    NEXT, READ, TestDriver, TestInterrupt, WRITE, guest_memory, read_bytes, write_bytes,
};

const REQUEST: u64 = 0x4000;
const ACK: u64 = 0x8000;
const FEATURES: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS | 0x182;

#[derive(Default)]
struct TestTarget {
    commands: Mutex<Vec<String>>,
    refuses: bool,
}

impl Target for TestTarget {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.commands
            .lock()
            .unwrap()
            .push(format!("tso4 {}", offloads.tso4));
        Ok(())
    }

    fn set_pairs(&self, count: u16) -> io::Result<()> {
        if self.refuses {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.commands.lock().unwrap().push(format!("{count} pairs"));
        Ok(())
    }
}

/// A control queue of a driver that negotiated `features`.
fn control(
    driver: &TestDriver,
    features: u64,
    target: &Arc<TestTarget>,
) -> (QueueService<Control<TestTarget>>, Arc<TestInterrupt>) {
    let interrupt = Arc::new(TestInterrupt::default());
    let control = Control::new(Arc::clone(target), features);
    let ring = Ring::new(driver.queue(), false);
    (
        QueueService::new(ring, 2, interrupt.clone(), control),
        interrupt,
    )
}

/// Executes one request and gives its ack and what it did.
fn execute(features: u64, request: &[u8], target: TestTarget) -> (u8, Vec<String>) {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let target = Arc::new(target);
    let (mut control, interrupt) = control(&driver, features, &target);
    write_bytes(&memory, REQUEST, request);
    write_bytes(&memory, ACK, &[0xff]);
    // Linux sends the header, the data and the ack in buffers of their own.
    let header = request.len().min(2);
    let lengths = [header, request.len() - header].map(|length| u32::try_from(length).unwrap());
    let head = driver.offer_chain(&[
        (REQUEST, lengths[0], READ),
        (REQUEST + u64::from(lengths[0]), lengths[1], READ),
        (ACK, 1, WRITE),
    ]);
    assert_eq!(control.serve(&memory).unwrap(), Served::All);
    assert_eq!(interrupt.count(2), 1);
    assert_eq!(driver.take_used(), Some((head, 1)));
    let commands = target.commands.lock().unwrap().clone();
    (read_bytes(&memory, ACK, 1)[0], commands)
}

/// What is asked, the negotiated features, the request, its ack, and what is done.
type Case<'c> = (&'c str, u64, &'c [u8], u8, &'c [&'c str]);

#[test]
fn commands_are_executed_or_refused() {
    let cases: &[Case] = &[
        ("pairs", FEATURES, &[4, 0, 3, 0], 0, &["3 pairs"]),
        ("pairs without the feature", 0, &[4, 0, 3, 0], 1, &[]),
        ("pairs without a count", FEATURES, &[4, 0, 3], 1, &[]),
        (
            "offloads",
            FEATURES,
            &[5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0],
            0,
            &["tso4 true"],
        ),
        (
            "no offloads",
            FEATURES,
            &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            0,
            &["tso4 false"],
        ),
        (
            "offloads that depend on others",
            FEATURES,
            &[5, 0, 0x80, 0, 0, 0, 0, 0, 0, 0],
            0,
            &["tso4 false"],
        ),
        (
            "offloads that were not negotiated",
            FEATURES,
            &[5, 0, 2, 2, 0, 0, 0, 0, 0, 0],
            1,
            &[],
        ),
        (
            "offloads that are none",
            FEATURES,
            &[5, 0, 0, 0, 0x20, 0, 0, 0, 0, 0],
            1,
            &[],
        ),
        (
            "too few bytes of offloads",
            FEATURES,
            &[5, 0, 0x82, 0, 0, 0, 0, 0, 0],
            1,
            &[],
        ),
        ("an unknown command", FEATURES, &[4, 9, 1, 0], 1, &[]),
        ("an unknown class", FEATURES, &[77, 0, 1, 0], 1, &[]),
        ("a class alone", FEATURES, &[4], 1, &[]),
        ("nothing", FEATURES, &[], 1, &[]),
        (
            "more data than any command has",
            FEATURES,
            &[4; 4000],
            1,
            &[],
        ),
    ];
    for (what, features, request, ack, commands) in cases {
        let (got, done) = execute(*features, request, TestTarget::default());
        assert_eq!(
            (got, &done[..]),
            (
                *ack,
                &commands.iter().map(ToString::to_string).collect::<Vec<_>>()[..]
            ),
            "{what}"
        );
    }
}

#[test]
fn what_the_host_refuses_is_told() {
    let target = TestTarget {
        refuses: true,
        ..TestTarget::default()
    };
    assert_eq!(execute(FEATURES, &[4, 0, 3, 0], target), (1, vec![]));
}

#[test]
fn a_command_without_room_for_its_ack_is_executed_and_given_back() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut control, _) = control(&driver, FEATURES, &Arc::default());
    write_bytes(&memory, REQUEST, &[4, 0, 1, 0]);
    let head = driver.offer_chain(&[(REQUEST, 4, READ)]);
    control.serve(&memory).unwrap();
    assert_eq!(driver.take_used(), Some((head, 0)));
}

#[test]
fn malformed_chains_end_the_queue() {
    let chains = [
        [((REQUEST, 4, READ | NEXT), 0)],
        [((0x4000_0000, 4, READ), 0)],
        [((u64::MAX, 4, READ), 0)],
    ];
    for chain in chains {
        let memory = guest_memory(0x10000);
        let mut driver = TestDriver::new(&memory, 0, 16);
        let (mut control, _) = control(&driver, FEATURES, &Arc::default());
        for (index, (buffer, next)) in (0..).zip(chain) {
            driver.set_descriptor(index, buffer, next);
        }
        driver.offer(0);
        assert!(control.serve(&memory).is_err());
    }
}
