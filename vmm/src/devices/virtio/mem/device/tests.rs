use std::sync::atomic::Ordering;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::virtio::device::ActiveQueue;
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, WRITE, assert_refuses_a_queue_that_was_not_enabled,
    eventually, guest_memory, read_bytes, write_bytes,
};
use crate::memory::SharedMemory;

const START: u64 = 4 << 30;

fn field(device: &Mem, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    device.read_config(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn the_configuration_says_where_the_region_is_and_how_much_is_wanted() {
    let region = Arc::new(Region::new(START..START + 8 * BLOCK));
    let device = Mem::new(region.clone());
    let read = || [0, 8, 16, 24, 32, 40, 48].map(|offset| field(&device, offset));
    let size = 8 * BLOCK;
    assert_eq!(read(), [BLOCK, 0, START, size, size, 0, 0]);
    region.want(3 * BLOCK);
    assert_eq!(read(), [BLOCK, 0, START, size, size, 0, 3 * BLOCK]);
    let mut bytes = [0xff; 12];
    device.read_config(52, &mut bytes);
    assert_eq!(bytes[4..], [0xff; 8], "beyond its end");
    device.read_config(u64::MAX, &mut bytes);
}

#[test]
fn the_driver_is_told_of_what_is_wanted_and_keeps_what_it_has_over_a_reset() {
    let region = Arc::new(Region::new(START..START + 8 * BLOCK));
    let mut device = Mem::new(region.clone());
    region.want(BLOCK);
    for round in 1..=2_u64 {
        let memory = guest_memory(0x1_0000);
        let mut driver = TestDriver::new(&memory, 0, 64);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Arc::new(TestInterrupt::default());
        device
            .activate(Activation {
                memory: SharedMemory::new(memory.clone()),
                features: 0,
                queues: vec![ActiveQueue {
                    queue: driver.queue(),
                    kick: kick.try_clone().unwrap(),
                }],
                interrupt: interrupt.clone(),
            })
            .unwrap();
        assert_eq!(interrupt.config.load(Ordering::SeqCst), 0);
        region.want(round * BLOCK);
        assert_eq!(interrupt.config.load(Ordering::SeqCst), 1);

        let mut request = [0; 24];
        request[8..16].copy_from_slice(&(START + (round - 1) * BLOCK).to_le_bytes());
        request[16] = 1;
        write_bytes(&memory, 0x4000, &request);
        driver.offer_chain(&[(0x4000, 24, READ), (0x5000, 10, WRITE)]);
        kick.write(1).unwrap();
        eventually("the request is answered", || driver.take_used().is_some());
        assert_eq!(read_bytes(&memory, 0x5000, 2), [0, 0]);
        assert_eq!(field(&device, 40), round * BLOCK);
        eventually("interrupts", || interrupt.count(0) > 0);
        device.reset();
        region.want(round * BLOCK);
        assert_eq!(interrupt.config.load(Ordering::SeqCst), 1, "not after it");
    }
}

#[test]
fn a_queue_that_was_not_enabled_is_refused() {
    let region = Arc::new(Region::new(START..START + BLOCK));
    assert_refuses_a_queue_that_was_not_enabled(&mut Mem::new(region));
}
