use std::io;
use std::sync::{Arc, Mutex};

use super::*;
use crate::devices::virtio::device::ActiveQueue;
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, eventually, guest_memory, write_bytes,
};
use crate::memory::SharedMemory;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_device_works_again_after_a_reset_and_loses_no_last_words() {
    let kept = Kept::default();
    let mut console = Console::new(Box::new(kept.clone()));
    for _ in 0..2 {
        let memory = guest_memory(0x10000);
        let receive = TestDriver::new(&memory, 0x4000, 64);
        let mut transmit = TestDriver::new(&memory, 0, 64);
        let active = |driver: &TestDriver| ActiveQueue {
            queue: driver.queue(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        };
        let queues = vec![active(&receive), active(&transmit)];
        let kick = queues[1].kick.try_clone().unwrap();
        let interrupt = Arc::new(TestInterrupt::default());
        console
            .activate(Activation {
                memory: SharedMemory::new(memory.clone()),
                features: 0,
                queues,
                interrupt: interrupt.clone(),
            })
            .unwrap();
        write_bytes(&memory, 0x8000, b"first last");
        transmit.offer_chain(&[(0x8000, 6, READ)]);
        kick.write(1).unwrap();
        eventually("the output is used", || transmit.used_index() == 1);
        eventually("an interrupt", || interrupt.count(1) == 1);
        transmit.offer_chain(&[(0x8006, 4, READ)]);
        console.reset();
        assert_eq!(*kept.0.lock().unwrap(), b"first last");
        kept.0.lock().unwrap().clear();
    }
}

#[test]
fn the_emergency_write_prints_one_byte() {
    let kept = Kept::default();
    let mut console = Console::new(Box::new(kept.clone()));
    console.write_config(EMERGENCY_WRITE_OFFSET, &u32::from(b'!').to_le_bytes());
    console.write_config(EMERGENCY_WRITE_OFFSET, b"?");
    console.write_config(EMERGENCY_WRITE_OFFSET, &[]);
    console.write_config(0, b"x");
    assert_eq!(*kept.0.lock().unwrap(), b"!?");
}

#[test]
fn the_configuration_shows_one_port_however_it_is_read() {
    let console = Console::new(Box::new(io::sink()));
    let mut all = [0; 12];
    console.read_config(0, &mut all);
    assert_eq!(all, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let mut ports = [0; 4];
    console.read_config(4, &mut ports);
    assert_eq!(u32::from_le_bytes(ports), 1);
    let mut beyond = [0; 4];
    console.read_config(5, &mut beyond);
    console.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}
