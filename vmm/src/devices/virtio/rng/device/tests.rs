use std::sync::Arc;

use super::*;
use crate::devices::virtio::device::ActiveQueue;
use crate::devices::virtio::test_driver::{
    TestDriver, TestInterrupt, WRITE, assert_refuses_a_queue_that_was_not_enabled, eventually,
    guest_memory, read_bytes,
};
use crate::memory::SharedMemory;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[test]
fn the_device_works_again_after_a_reset() {
    let mut rng = Rng::new().unwrap();
    for event_idx in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let memory = guest_memory(0x10000);
        let mut driver = TestDriver::new(&memory, 0, 64);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Arc::new(TestInterrupt::default());
        rng.activate(Activation {
            memory: SharedMemory::new(memory.clone()),
            features: event_idx,
            queues: vec![ActiveQueue {
                queue: driver.queue(),
                kick: kick.try_clone().unwrap(),
            }],
            interrupt: interrupt.clone(),
        })
        .unwrap();
        for _ in 0..3 {
            let head = driver.offer_chain(&[(0x1000, 64, WRITE)]);
            kick.write(1).unwrap();
            let mut used = None;
            eventually("entropy arrives", || {
                used = driver.take_used();
                used.is_some()
            });
            assert_eq!(used, Some((head, 64)));
        }
        assert_ne!(read_bytes(&memory, 0x1000, 64), vec![0; 64]);
        eventually("interrupts", || interrupt.count(0) > 0);
        rng.reset();
    }
}

#[test]
fn a_queue_that_was_not_enabled_is_refused() {
    assert_refuses_a_queue_that_was_not_enabled(&mut Rng::new().unwrap());
}
