use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, eventually, guest_memory,
};
use crate::devices::virtio::worker_thread::WorkerThread;

/// Answers with the chain's head, up to the first chain that it is told to fail at.
struct Echo {
    fail_at: Option<u16>,
}

#[derive(Debug)]
enum EchoError {
    Ring,
    Told,
}

impl From<RingError> for EchoError {
    fn from(_: RingError) -> Self {
        Self::Ring
    }
}

impl Answer for Echo {
    type Error = EchoError;

    fn answer(&mut self, _memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, EchoError> {
        match chain.head_index() {
            head if Some(head) == self.fail_at => Err(EchoError::Told),
            head => Ok(head.into()),
        }
    }
}

fn service(driver: &TestDriver, fail_at: Option<u16>) -> (QueueService<Echo>, Arc<TestInterrupt>) {
    let interrupt = Arc::new(TestInterrupt::default());
    let ring = Ring::new(driver.queue(), false);
    (
        QueueService::new(ring, 3, interrupt.clone(), Echo { fail_at }),
        interrupt,
    )
}

#[test]
fn chains_are_answered_in_order_with_one_interrupt() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut service, interrupt) = service(&driver, None);
    let heads = [1, 2, 3].map(|_| driver.offer_chain(&[(0x1000, 4, READ)]));
    assert_eq!(service.serve(&memory).unwrap(), Served::All);
    for head in heads {
        assert_eq!(driver.take_used(), Some((head, head.into())));
    }
    assert_eq!(interrupt.count(3), 1);
    assert_eq!(service.serve(&memory).unwrap(), Served::All);
    assert_eq!(interrupt.count(3), 1, "nothing new");
}

#[test]
fn a_round_is_bounded() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 128);
    let (mut service, _) = service(&driver, None);
    for _ in 0..=BUDGET {
        driver.offer_chain(&[(0x4000, 8, READ)]);
    }
    assert_eq!(service.serve(&memory).unwrap(), Served::Budget);
    assert_eq!(service.serve(&memory).unwrap(), Served::All);
    assert_eq!(usize::from(driver.used_index()), BUDGET + 1);
}

#[test]
fn what_the_device_or_the_ring_fails_at_ends_the_service() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let head = driver.offer_chain(&[(0x1000, 4, READ)]);
    let (mut failing, _) = service(&driver, Some(head));
    assert!(matches!(failing.serve(&memory), Err(EchoError::Told)));
    let (mut broken, _) = service(&driver, None);
    driver.set_avail_index(1000);
    assert!(matches!(broken.serve(&memory), Err(EchoError::Ring)));
}

#[test]
fn a_thread_serves_kicks_and_the_last_words() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, 16);
    let (mut service, _) = service(&driver, None);
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let kick_of_worker = kick.try_clone().unwrap();
    let shared = SharedMemory::new(memory.clone());
    driver.offer_chain(&[(0x1000, 4, READ)]);
    let thread = WorkerThread::spawn("service", move |stop| {
        service.run(&shared, &kick_of_worker, &stop).is_ok()
    })
    .unwrap();
    eventually("what came before the thread is answered", || {
        driver.used_index() == 1
    });
    driver.offer_chain(&[(0x1000, 4, READ)]);
    kick.write(1).unwrap();
    eventually("a kick is answered", || driver.used_index() == 2);
    // Without a kick, and so perhaps only at the end.
    driver.offer_chain(&[(0x1000, 4, READ)]);
    assert_eq!(thread.stop(), Some(true));
    assert_eq!(driver.used_index(), 3);
}
