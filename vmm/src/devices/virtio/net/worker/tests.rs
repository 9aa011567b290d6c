//! The worker against a host that takes frames slowly: a socket with a short queue stands for it.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::devices::virtio::net::backend::Offloads;
use crate::devices::virtio::net::tests::TestBackend;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, eventually, guest_memory, write_bytes,
};
use crate::devices::virtio::worker_thread::WorkerThread;

struct SlowHost(UnixDatagram);

impl AsRawFd for SlowHost {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Backend for SlowHost {
    fn receive(&self, _pieces: &[VolatileSlice<'_>], spill: &mut [u8]) -> io::Result<usize> {
        self.0.recv(spill)
    }

    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
        let frame = TestBackend::default();
        frame.send(pieces)?;
        self.0.send(&frame.sent.lock().unwrap()[0]).map(|_| ())
    }

    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _attached: bool) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_host_makes_the_guest_wait_and_loses_nothing() {
    let memory = guest_memory(0x100_000);
    let receive = TestDriver::new(&memory, 0x8000, 256);
    let mut transmit = TestDriver::new(&memory, 0, 256);
    let (host, guest) = UnixDatagram::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let counters = Arc::new(Counters::default());
    let shared = Arc::new(Shared {
        memory: SharedMemory::new(memory.clone()),
        interrupt: Arc::new(TestInterrupt::default()),
        steering: Arc::new(Steering::new(vec![Arc::new(SlowHost(guest))], 1).unwrap()),
        counters: Arc::clone(&counters),
        receive_rate: Rate::default(),
        send_rate: Rate::default(),
        link_up: Arc::new(AtomicBool::new(true)),
    });
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let worker = Worker::new(
        shared,
        0,
        Side {
            work: Some(Receiver::new(Ring::new(receive.queue(), true), true, 1600)),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            index: 0,
        },
        Side {
            work: Some(Transmitter::new(Ring::new(transmit.queue(), true))),
            kick: kick.try_clone().unwrap(),
            index: 1,
        },
        None,
    );
    let (clock, told) = std::sync::mpsc::channel();
    let thread = WorkerThread::spawn("net-slow", move |stop| {
        worker.run(&stop);
        let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        clock.send(Duration::from(spent)).unwrap();
    })
    .unwrap();
    for number in 0..200_u8 {
        let at = 0x10000 + u64::from(number) * 0x400;
        write_bytes(&memory, at, &[number; 300]);
        transmit.offer_chain(&[(at, 300, READ)]);
    }
    kick.write(1).unwrap();
    eventually("the host's queue is full", || counters.sent.frames() > 0);
    // A worker that does not sleep while it waits shows in the time that it has worked.
    std::thread::sleep(Duration::from_millis(500));
    assert!(transmit.used_index() < 200);
    let mut frame = [0; 400];
    for number in 0..200 {
        assert_eq!(host.recv(&mut frame).unwrap(), 300);
        assert_eq!(frame[..300], [number; 300]);
    }
    eventually("all are used", || transmit.used_index() == 200);
    eventually("all are counted", || counters.sent.frames() == 200);
    assert_eq!(counters.sent.dropped(), 0);
    thread.stop();
    let spent = told.recv().unwrap();
    assert!(spent < Duration::from_millis(250), "{spent:?}");
}
