//! Moves packets between the queues and the muxer.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::backend::HostSockets;
use super::muxer::{FIRST_ENDPOINT, Muxer};
use super::packet::{Packet, PacketRoom};
use crate::devices::virtio::activity::Activity;
use crate::devices::virtio::device::Interrupt;
use crate::devices::virtio::ring::{Chain, Ring, RingError};
use crate::memory::{GuestMemory, SharedMemory};

/// The queues by their index (§5.10.2). The third is for events, of which there are none yet.
pub(super) const RX_QUEUE: u16 = 0;
pub(super) const TX_QUEUE: u16 = 1;

const STOP: u64 = 0;
const RX_KICK: u64 = 1;
const TX_KICK: u64 = 2;
const LISTENER: u64 = 3;
const _: () = assert!(LISTENER < FIRST_ENDPOINT);

/// Packets moved in each direction before the other one, and a request to stop, get their turn.
const PACKETS_PER_TURN: usize = 256;

/// How long a host that is short of descriptors is left alone before the next connection is accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What the worker waits for at once.
const EVENTS_PER_TURN: usize = 64;

/// One of the device's queues.
pub(super) struct KickedRing {
    pub(super) ring: Ring,
    /// Signalled when the driver offers more.
    pub(super) kick: EventFd,
}

/// The device at work.
pub(super) struct Worker<H> {
    activity: Arc<Activity>,
    memory: SharedMemory,
    rx: KickedRing,
    tx: KickedRing,
    interrupt: Arc<dyn Interrupt>,
    pub(super) muxer: Muxer<H>,
    accept_again: Option<Instant>,
}

/// Whether the worker goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is more to do at once.
    Busy,
    /// There is nothing to do until the next event.
    Idle,
    /// The worker was told to stop, or the driver broke a queue.
    Stop,
}

impl<H: HostSockets> Worker<H> {
    /// A worker that waits for its queues, its listener and `stop`.
    ///
    /// # Errors
    /// The host refuses to watch one of them.
    pub(super) fn new(
        memory: SharedMemory,
        rx: KickedRing,
        tx: KickedRing,
        interrupt: Arc<dyn Interrupt>,
        muxer: Muxer<H>,
        activity: Arc<Activity>,
    ) -> io::Result<Self> {
        let worker = Self {
            activity,
            memory,
            rx,
            tx,
            interrupt,
            muxer,
            accept_again: None,
        };
        worker.watch(worker.rx.kick.as_raw_fd(), RX_KICK)?;
        worker.watch(worker.tx.kick.as_raw_fd(), TX_KICK)?;
        worker.watch(worker.muxer.listener().as_raw_fd(), LISTENER)?;
        Ok(worker)
    }

    fn watch(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, token);
        self.muxer.epoll().ctl(ControlOperation::Add, fd, event)
    }

    /// Works until `stop` is signalled, then ends all connections and gives the host's side back.
    pub(super) fn run(mut self, stop: &EventFd) -> H {
        if let Err(error) = self.watch(stop.as_raw_fd(), STOP) {
            tracing::error!(%error, "the vsock worker cannot be stopped, so it does not start");
            return self.muxer.into_host();
        }
        let mut turn = Turn::Busy;
        loop {
            let wait = match turn {
                Turn::Busy => Some(Duration::ZERO),
                Turn::Idle => self.time_to_next_deadline(),
                Turn::Stop => {
                    self.take_last_words();
                    return self.muxer.into_host();
                }
            };
            turn = self.turn(wait);
        }
    }

    /// Passes on what the guest sent just before its machine ended or its driver let go of the device.
    fn take_last_words(&mut self) {
        let memory = self.memory.memory();
        for _ in 0..usize::from(self.tx.ring.size()).div_ceil(PACKETS_PER_TURN) {
            if let Err(error) = self.take_from_guest(&memory) {
                tracing::debug!(%error, "the guest's last packets are lost");
                return;
            }
        }
    }

    fn time_to_next_deadline(&self) -> Option<Duration> {
        let deadlines = [self.muxer.next_deadline(), self.accept_again];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Waits for events, at most for `wait`, and does what they ask for.
    pub(super) fn turn(&mut self, wait: Option<Duration>) -> Turn {
        let timeout = wait.map_or(-1, |wait| {
            // Rounded up, so that a deadline has passed when the wait is over.
            i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        let mut events = [EpollEvent::default(); EVENTS_PER_TURN];
        let count = match self.muxer.epoll().wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                tracing::error!(%error, "the vsock worker cannot wait for events");
                return Turn::Stop;
            }
        };
        for event in &events[..count] {
            match event.data() {
                STOP => return Turn::Stop,
                // Its count says nothing: both queues are looked at in every turn.
                RX_KICK => drop(self.rx.kick.read()),
                TX_KICK => drop(self.tx.kick.read()),
                LISTENER => self.accept(),
                id => {
                    let events = EventSet::from_bits_truncate(event.events());
                    self.muxer.host_event(id, events);
                }
            }
        }
        let now = Instant::now();
        if self.accept_again.is_some_and(|again| again <= now) {
            self.accept_again = None;
            self.set_listening(true);
        }
        self.muxer.expire(now);
        match self.move_packets(now) {
            Ok(more) if more || count == EVENTS_PER_TURN => Turn::Busy,
            Ok(_) => Turn::Idle,
            Err(error) => {
                tracing::debug!(%error, "the driver broke a vsock queue");
                Turn::Stop
            }
        }
    }

    /// Moves packets both ways. True if the turn was over before all were moved.
    fn move_packets(&mut self, now: Instant) -> Result<bool, RingError> {
        let memory = self.memory.memory();
        let tx_left = self.take_from_guest(&memory)?;
        let rx_left = self.give_to_guest(&memory, now)?;
        Ok(tx_left || rx_left)
    }

    fn accept(&mut self) {
        if let Err(error) = self.muxer.accept() {
            tracing::warn!(%error, "vsock connections of the host wait");
            self.accept_again = Some(Instant::now() + ACCEPT_RETRY);
            self.set_listening(false);
        }
    }

    fn set_listening(&self, listening: bool) {
        let events = if listening {
            EventSet::IN
        } else {
            EventSet::empty()
        };
        let listener = self.muxer.listener().as_raw_fd();
        let event = EpollEvent::new(events, LISTENER);
        let changed = self
            .muxer
            .epoll()
            .ctl(ControlOperation::Modify, listener, event);
        if let Err(error) = changed {
            tracing::error!(%error, "the vsock listener cannot be watched");
        }
    }

    /// Hands the guest's packets to the muxer. True if the turn was over before all were taken.
    fn take_from_guest(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        let mut taken = 0;
        while taken < PACKETS_PER_TURN
            && let Some(chain) = pop(&mut self.tx.ring, memory)?
        {
            let head = chain.head_index();
            match Packet::from_chain(memory, chain) {
                Ok(packet) => {
                    let has_payload = packet.payload.is_some();
                    let payload = if has_payload { packet.header.len } else { 0 };
                    self.activity.from_guest.add(payload.into());
                    self.muxer.receive(&packet);
                }
                Err(error) => {
                    self.activity.fail();
                    tracing::debug!(%error, "dropped a packet of the guest");
                }
            }
            self.tx.ring.push_used(memory, head, 0)?;
            taken += 1;
        }
        self.show(TX_QUEUE, memory)?;
        Ok(taken == PACKETS_PER_TURN)
    }

    /// Fills the guest's buffers with packets. True if the turn was over before all were sent.
    fn give_to_guest(&mut self, memory: &GuestMemory, now: Instant) -> Result<bool, RingError> {
        let mut given = 0;
        while given < PACKETS_PER_TURN
            && self.muxer.has_packet()
            && let Some(chain) = pop(&mut self.rx.ring, memory)?
        {
            let head = chain.head_index();
            let used = match PacketRoom::from_chain(memory, chain) {
                Ok(room) => match self.muxer.next_packet(&room, now) {
                    Some(header) => {
                        self.activity.to_guest.add(header.len.into());
                        room.finish(header)
                    }
                    None => {
                        self.rx.ring.unpop(1);
                        break;
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, "returned a buffer of the guest unused");
                    0
                }
            };
            self.rx.ring.push_used(memory, head, used)?;
            given += 1;
        }
        self.show(RX_QUEUE, memory)?;
        Ok(given == PACKETS_PER_TURN)
    }

    /// Shows the driver what was used.
    fn show(&mut self, index: u16, memory: &GuestMemory) -> Result<(), RingError> {
        let ring = match index {
            RX_QUEUE => &mut self.rx.ring,
            _ => &mut self.tx.ring,
        };
        ring.publish(memory)?;
        if ring.needs_interrupt(memory)? {
            self.interrupt.signal_queue(index);
        }
        Ok(())
    }
}

/// The next chain that the driver offers; if there is none, the driver will kick for the next one.
fn pop<'m>(ring: &mut Ring, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, RingError> {
    if let Some(chain) = ring.pop(memory)? {
        return Ok(Some(chain));
    }
    if ring.enable_kicks(memory)? {
        return ring.pop(memory);
    }
    Ok(None)
}
