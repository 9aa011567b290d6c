//! The thread of a pair of queues: it waits for the driver and the host, and gives each direction its turn.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vm_memory::GuestAddressSpace as _;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::QueueError;
use super::backend::Backend;
use super::control::Control;
use super::counters::{Counters, Tally};
use super::poller::{Poller, Ready, Source};
use super::rate::Rate;
use super::receive::{Received, Receiver};
use super::steering::Steering;
use super::transmit::{Sent, Transmitter};
use crate::devices::virtio::device::Interrupt;
use crate::devices::virtio::queue_service::{QueueService, Served};
use crate::memory::{GuestMemory, SharedMemory};

/// How long a driver with few receive buffers has to offer more before frames that do not fit are dropped.
const PATIENCE: Duration = Duration::from_millis(10);

/// What all workers of a NIC share.
pub(super) struct Shared<B> {
    pub(super) memory: SharedMemory,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) steering: Arc<Steering<B>>,
    pub(super) counters: Arc<Counters>,
    pub(super) receive_rate: Rate,
    pub(super) send_rate: Rate,
    /// VIRTIO_NET_S_LINK_UP, which the device's configuration space shows.
    pub(super) link_up: Arc<AtomicBool>,
}

/// A queue's work, the eventfd of its kicks, and its index in the device. The work ends when the driver breaks it.
pub(super) struct Side<W> {
    pub(super) work: Option<W>,
    pub(super) kick: EventFd,
    pub(super) index: u16,
}

impl<W> Side<W> {
    /// Ends the work of a queue that its driver broke.
    fn give_up(&mut self, error: &QueueError) {
        self.work = None;
        tracing::warn!(
            error = error as &dyn std::error::Error,
            queue = self.index,
            "the network device stops using a queue until the driver resets it"
        );
    }
}

/// Whether frames can be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Yes, when the host has some.
    Open,
    /// No: there are no buffers.
    NoBuffers,
    /// Not yet: there are few buffers, and until then the driver has time to offer more.
    FewBuffers(Instant),
    /// Yes, into few buffers.
    Forced,
    /// Not until then: as much as may was received. What the host has waits in its queue.
    Throttled(Instant),
    /// No: the pair is not in use, its queue is broken, or the host's side is gone.
    Closed,
}

/// The control queue at work.
pub(super) type ControlSide<B> = Side<QueueService<Control<Steering<B>>>>;

/// The work of one pair.
pub(super) struct Worker<B> {
    shared: Arc<Shared<B>>,
    pair: u16,
    receive: Side<Receiver>,
    transmit: Side<Transmitter>,
    control: Option<ControlSide<B>>,
    gate: Gate,
    /// Frames wait for the host to take them.
    blocked: bool,
    /// As much as may was sent until then. What the driver has waits in its queue.
    send_at: Option<Instant>,
    /// There are frames to be sent, or commands, without another kick.
    more_frames: bool,
    more_commands: bool,
}

impl<B: Backend> Worker<B> {
    /// The work of pair `pair`; the first also serves `control`.
    pub(super) fn new(
        shared: Arc<Shared<B>>,
        pair: u16,
        receive: Side<Receiver>,
        transmit: Side<Transmitter>,
        control: Option<ControlSide<B>>,
    ) -> Self {
        let gate = if shared.steering.is_active(pair) {
            Gate::Open
        } else {
            Gate::Closed
        };
        Self {
            shared,
            pair,
            receive,
            transmit,
            control,
            gate,
            blocked: false,
            send_at: None,
            // The driver may have kicked before the worker was there.
            more_frames: true,
            more_commands: true,
        }
    }

    /// Works until `stop` is signalled.
    pub(super) fn run(mut self, stop: &EventFd) {
        if let Err(error) = self.serve_until_stop(stop) {
            tracing::error!(%error, pair = self.pair, "a worker of the network device cannot go on");
        }
    }

    fn serve_until_stop(&mut self, stop: &EventFd) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut poller = Poller::new(shared.steering.backend(self.pair).as_raw_fd())?;
        poller.add(stop, Source::Stop)?;
        poller.add(&self.receive.kick, Source::ReceiveKick)?;
        poller.add(&self.transmit.kick, Source::TransmitKick)?;
        poller.add(shared.steering.changed(self.pair), Source::Steering)?;
        if let Some(control) = &self.control {
            poller.add(&control.kick, Source::ControlKick)?;
        }
        loop {
            poller.watch_backend(self.interest())?;
            let ready = poller.wait(self.timeout())?;
            if ready.stop {
                return Ok(());
            }
            if ready.steering {
                // A queue of a tap that was detached and attached again has to be looked at afresh.
                poller.watch_backend(EventSet::empty())?;
                let active = shared.steering.is_active(self.pair) && self.receive.work.is_some();
                self.gate = if active { Gate::Open } else { Gate::Closed };
            }
            self.take_turns(ready);
        }
    }

    /// What the backend must be ready for to go on.
    fn interest(&self) -> EventSet {
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, matches!(self.gate, Gate::Open | Gate::Forced));
        interest.set(EventSet::OUT, self.blocked);
        interest
    }

    /// For how many milliseconds there is nothing to do.
    fn timeout(&self) -> i32 {
        if self.more_frames || self.more_commands {
            return 0;
        }
        let receive_at = match self.gate {
            Gate::FewBuffers(until) | Gate::Throttled(until) => Some(until),
            _ => None,
        };
        match receive_at.into_iter().chain(self.send_at).min() {
            // Rounded up, so that the time is over then.
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now()).as_millis() + 1;
                i32::try_from(left).unwrap_or(i32::MAX)
            }
            None => -1,
        }
    }

    /// Gives each queue that has something to do its turn.
    fn take_turns(&mut self, ready: Ready) {
        let shared = Arc::clone(&self.shared);
        let memory = shared.memory.memory();
        if ready.control_kick || self.more_commands {
            self.serve_commands(&memory);
        }
        if self.blocked && ready.writable {
            self.blocked = false;
            self.more_frames = true;
        }
        if self.send_at.is_some_and(|at| at <= Instant::now()) {
            self.send_at = None;
            self.more_frames = true;
        }
        if !self.blocked && self.send_at.is_none() && (ready.transmit_kick || self.more_frames) {
            self.send(&memory);
        }
        self.gate = match self.gate {
            Gate::Closed => Gate::Closed,
            _ if ready.receive_kick => Gate::Open,
            Gate::FewBuffers(until) if until <= Instant::now() => Gate::Forced,
            Gate::Throttled(until) if until <= Instant::now() => Gate::Open,
            unchanged => unchanged,
        };
        // After a kick the host may have frames, though it was not asked.
        if matches!(self.gate, Gate::Open | Gate::Forced) && (ready.readable || ready.receive_kick)
        {
            self.receive(&memory);
        }
    }

    fn serve_commands(&mut self, memory: &GuestMemory) {
        self.more_commands = false;
        let Some(side) = &mut self.control else {
            return;
        };
        let Some(work) = &mut side.work else {
            return;
        };
        match work.serve(memory) {
            Ok(served) => self.more_commands = served == Served::Budget,
            Err(error) => side.give_up(&error),
        }
    }

    fn send(&mut self, memory: &GuestMemory) {
        self.more_frames = false;
        let side = &mut self.transmit;
        let Some(work) = &mut side.work else {
            return;
        };
        let now = Instant::now();
        match self.shared.send_rate.allowance(now) {
            Ok(bytes) => work.set_budget(bytes),
            Err(until) => {
                self.send_at = Some(until);
                return;
            }
        }
        let backend = self.shared.steering.backend(self.pair);
        let signal = || self.shared.interrupt.signal_queue(side.index);
        let mut tally = Tally::default();
        match work.run(memory, backend, &mut tally, signal) {
            Ok(Sent::All) => {}
            Ok(Sent::Budget) => self.more_frames = true,
            Ok(Sent::Blocked) => self.blocked = true,
            Err(error) => side.give_up(&error),
        }
        self.shared.send_rate.take(now, tally.bytes);
        self.shared.counters.sent.add(tally);
    }

    fn receive(&mut self, memory: &GuestMemory) {
        let side = &mut self.receive;
        let Some(work) = &mut side.work else {
            self.gate = Gate::Closed;
            return;
        };
        let now = Instant::now();
        match self.shared.receive_rate.allowance(now) {
            Ok(bytes) => work.set_budget(bytes),
            Err(until) => {
                self.gate = Gate::Throttled(until);
                return;
            }
        }
        let backend = self.shared.steering.backend(self.pair);
        let signal = || self.shared.interrupt.signal_queue(side.index);
        let mut tally = Tally::default();
        let forced = self.gate == Gate::Forced;
        match work.run(memory, backend, forced, &mut tally, signal) {
            Ok(Received::Waiting) => {}
            Ok(Received::NoBuffers) => self.gate = Gate::NoBuffers,
            Ok(Received::FewBuffers) => self.gate = Gate::FewBuffers(Instant::now() + PATIENCE),
            Ok(Received::Lost(error)) => {
                self.gate = Gate::Closed;
                self.lose_link(&error);
            }
            Err(error) => {
                side.give_up(&error);
                self.gate = Gate::Closed;
            }
        }
        self.shared.receive_rate.take(now, tally.bytes);
        self.shared.counters.received.add(tally);
    }

    /// The host's side cannot be read. For other pairs than the first that is how they learn that they are not in
    /// use; else the interface is gone, and the guest sees its link go down.
    fn lose_link(&self, error: &io::Error) {
        if self.pair == 0 && self.shared.link_up.swap(false, Ordering::SeqCst) {
            tracing::warn!(%error, "the network interface is gone on the host");
            self.shared.interrupt.signal_config();
        }
    }
}

#[cfg(test)]
mod tests;
