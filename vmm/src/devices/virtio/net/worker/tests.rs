//! The worker against a host that takes frames slowly: a socket with a short queue stands for it.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use hull_vmm_protocol::config::RateLimit;
use nix::time::{ClockId, clock_gettime};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::devices::virtio::net::backend::Offloads;
use crate::devices::virtio::net::tests::TestBackend;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, WRITE, eventually, guest_memory, write_bytes,
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

/// A worker's thread, and where it tells in the end how long it has worked.
struct Thread {
    thread: WorkerThread<()>,
    told: std::sync::mpsc::Receiver<Duration>,
}

impl Thread {
    fn spawn(worker: Worker<SlowHost>) -> Self {
        let (clock, told) = std::sync::mpsc::channel();
        let thread = WorkerThread::spawn("net-slow", move |stop| {
            worker.run(&stop);
            let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
            clock.send(Duration::from(spent)).unwrap();
        });
        Self {
            thread: thread.unwrap(),
            told,
        }
    }

    fn stop(self) -> Duration {
        self.thread.stop();
        self.told.recv().unwrap()
    }
}

/// A pair on `host`, whose queues' drivers are given as well, with a rate for each direction.
struct Bench {
    memory: GuestMemory,
    receive: TestDriver,
    transmit: TestDriver,
    kick: EventFd,
    counters: Arc<Counters>,
    thread: Thread,
}

impl Bench {
    fn start(host: UnixDatagram, limit: Option<RateLimit>) -> Self {
        host.set_nonblocking(true).unwrap();
        let memory = guest_memory(0x200_000);
        let mut receive = TestDriver::new(&memory, 0x8000, 256);
        for number in 0..250 {
            receive.offer_chain(&[(0x100_000 + number * 0x800, 0x800, WRITE)]);
        }
        let transmit = TestDriver::new(&memory, 0, 256);
        let counters = Arc::new(Counters::default());
        let rate = || Rate::new(limit, Instant::now());
        let shared = Arc::new(Shared {
            memory: SharedMemory::new(memory.clone()),
            interrupt: Arc::new(TestInterrupt::default()),
            steering: Arc::new(Steering::new(vec![Arc::new(SlowHost(host))], 1).unwrap()),
            counters: Arc::clone(&counters),
            receive_rate: rate(),
            send_rate: rate(),
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
        Self {
            memory,
            receive,
            transmit,
            kick,
            counters,
            thread: Thread::spawn(worker),
        }
    }

    /// Offers `count` frames of 300 bytes, of which each is its number.
    fn offer(&mut self, count: u8) {
        for number in 0..count {
            let at = 0x10000 + u64::from(number) * 0x400;
            write_bytes(&self.memory, at, &[number; 300]);
            self.transmit.offer_chain(&[(at, 300, READ)]);
        }
        self.kick.write(1).unwrap();
    }
}

#[test]
fn a_rate_lets_frames_wait_in_their_queues_and_loses_none() {
    let (host, guest) = UnixDatagram::pair().unwrap();
    host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // 20 frames at once each way, and then 100 a second.
    let limit = RateLimit {
        bytes_per_second: 28_800,
        burst_bytes: 20 * 288,
    };
    let mut bench = Bench::start(guest, Some(limit));
    let start = Instant::now();
    bench.offer(70);
    for number in 0..70_u8 {
        // The socket's queue is short: both directions go on.
        host.send(&[number; 300]).unwrap();
        let mut frame = [0; 400];
        assert_eq!(host.recv(&mut frame).unwrap(), 300);
        assert_eq!(frame[..300], [number; 300]);
    }
    eventually("all are received", || bench.receive.used_index() == 70);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(490), "{took:?}");
    let counted = bench.counters.told();
    assert_eq!((counted.sent.packets, counted.sent.dropped), (70, 0));
    assert_eq!(
        (counted.received.packets, counted.received.dropped),
        (70, 0)
    );
    // A worker that does not sleep while it waits shows in the time that it has worked.
    let spent = bench.thread.stop();
    assert!(spent < took / 2, "worked {spent:?} of {took:?}");
}

#[test]
fn a_slow_host_makes_the_guest_wait_and_loses_nothing() {
    let (host, guest) = UnixDatagram::pair().unwrap();
    host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut bench = Bench::start(guest, None);
    bench.offer(200);
    let counters = Arc::clone(&bench.counters);
    eventually("the host's queue is full", || counters.sent.frames() > 0);
    // A worker that does not sleep while it waits shows in the time that it has worked.
    std::thread::sleep(Duration::from_millis(500));
    assert!(bench.transmit.used_index() < 200);
    let mut frame = [0; 400];
    for number in 0..200 {
        assert_eq!(host.recv(&mut frame).unwrap(), 300);
        assert_eq!(frame[..300], [number; 300]);
    }
    eventually("all are used", || bench.transmit.used_index() == 200);
    eventually("all are counted", || counters.sent.frames() == 200);
    assert_eq!(counters.sent.dropped(), 0);
    let spent = bench.thread.stop();
    assert!(spent < Duration::from_millis(250), "{spent:?}");
}
