//! What the queue logic costs without a host behind it. Not run with the other tests: `cargo test --release -p hull-vmm
//! -- --ignored --nocapture throughput`.

use std::hint::black_box;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use vm_memory::VolatileSlice;

use crate::devices::virtio::net::backend::{Backend, Offloads};
use crate::devices::virtio::net::counters::Tally;
use crate::devices::virtio::net::receive::Receiver;
use crate::devices::virtio::net::transmit::Transmitter;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{READ, TestDriver, WRITE, guest_memory};

/// A host that takes and gives frames of one length without looking at them.
struct Idle(usize);

impl AsRawFd for Idle {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

impl Backend for Idle {
    fn receive(&self, pieces: &[VolatileSlice<'_>], _spill: &mut [u8]) -> io::Result<usize> {
        black_box(pieces);
        Ok(self.0)
    }

    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
        black_box(pieces);
        Ok(())
    }

    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _attached: bool) -> io::Result<()> {
        Ok(())
    }
}

/// The time that this thread has worked, so that others on the machine do not matter.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

const ROUNDS: u32 = 2000;
const SIZE: u16 = 256;

#[test]
#[ignore = "a measurement"]
fn throughput_of_the_queues() {
    for (frame, buffer, mergeable) in [
        (76, 1536, false),
        (76, 1536, true),
        (1526, 1536, true),
        (65000, 1536, true),
        (65000, 4096, true),
    ] {
        let memory = guest_memory(8 << 20);
        let mut driver = TestDriver::new(&memory, 0, SIZE);
        let mut receiver = Receiver::new(Ring::new(driver.queue(), true), mergeable, 65565);
        let mut tally = Tally::default();
        let start = worked();
        for _ in 0..SIZE {
            driver.offer_chain(&[(0x10000, buffer, WRITE)]);
        }
        let mut driving = Duration::ZERO;
        for _ in 0..ROUNDS {
            receiver
                .run(&memory, &Idle(frame), true, &mut tally, || {})
                .unwrap();
            let start = worked();
            while driver.take_used().is_some() {
                driver.offer_chain(&[(0x10000, buffer, WRITE)]);
            }
            driving += worked() - start;
        }
        let spent = (worked() - start) - driving;
        println!(
            "receive {frame} bytes into {buffer}, mergeable {mergeable}: {:.0} ns a frame",
            spent.as_secs_f64() * 1e9 / f64::from(u32::try_from(tally.frames).unwrap())
        );
    }
    for pieces in [1, 3, 17] {
        let memory = guest_memory(8 << 20);
        let mut driver = TestDriver::new(&memory, 0, SIZE);
        let mut transmitter = Transmitter::new(Ring::new(driver.queue(), true));
        let mut tally = Tally::default();
        let mut spent = Duration::ZERO;
        for _ in 0..ROUNDS {
            for _ in 0..SIZE / pieces {
                driver.offer_chain(&vec![(0x10000, 100, READ); usize::from(pieces)]);
            }
            let start = worked();
            transmitter
                .run(&memory, &Idle(0), &mut tally, || {})
                .unwrap();
            spent += worked() - start;
        }
        println!(
            "send in {pieces} buffers: {:.0} ns a frame",
            spent.as_secs_f64() * 1e9 / f64::from(u32::try_from(tally.frames).unwrap())
        );
    }
}
