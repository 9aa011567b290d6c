//! What a pair's worker waits for.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// The events of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The worker is to end.
    Stop,
    /// The driver has offered receive buffers.
    ReceiveKick,
    /// The driver has offered frames.
    TransmitKick,
    /// The driver has offered commands.
    ControlKick,
    /// The pairs in use have changed.
    Steering,
    /// The backend is ready for input or output.
    Backend,
}

const SOURCES: [Source; 6] = [
    Source::Stop,
    Source::ReceiveKick,
    Source::TransmitKick,
    Source::ControlKick,
    Source::Steering,
    Source::Backend,
];

/// What has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) stop: bool,
    pub(super) receive_kick: bool,
    pub(super) transmit_kick: bool,
    pub(super) control_kick: bool,
    pub(super) steering: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// Waits for a worker's events.
pub(super) struct Poller {
    epoll: Epoll,
    backend: RawFd,
    interest: EventSet,
}

impl Poller {
    /// Waits for nothing yet; `backend` must stay open.
    pub(super) fn new(backend: RawFd) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            backend,
            interest: EventSet::empty(),
        })
    }

    /// Waits for `event`, too, which must stay open. Each time it is signalled wakes the worker once, and nobody needs
    /// to read it.
    pub(super) fn add(&self, event: &EventFd, source: Source) -> io::Result<()> {
        let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, source as u64);
        self.epoll
            .ctl(ControlOperation::Add, event.as_raw_fd(), interest)
    }

    /// Waits for the backend to be ready as `interest` says. If that is empty, the backend is not looked at, not even
    /// for errors, which otherwise are always told.
    pub(super) fn watch_backend(&mut self, interest: EventSet) -> io::Result<()> {
        if interest == self.interest {
            return Ok(());
        }
        let operation = match (self.interest.is_empty(), interest.is_empty()) {
            (true, _) => ControlOperation::Add,
            (false, true) => ControlOperation::Delete,
            (false, false) => ControlOperation::Modify,
        };
        let event = EpollEvent::new(interest, Source::Backend as u64);
        self.epoll.ctl(operation, self.backend, event)?;
        self.interest = interest;
        Ok(())
    }

    /// Waits up to `timeout` milliseconds, or for ever if that is -1.
    pub(super) fn wait(&self, timeout: i32) -> io::Result<Ready> {
        let mut events = [EpollEvent::default(); SOURCES.len()];
        let count = match self.epoll.wait(timeout, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        let mut ready = Ready::default();
        for event in &events[..count] {
            let source = usize::try_from(event.data())
                .ok()
                .and_then(|at| SOURCES.get(at));
            match source {
                Some(Source::Stop) => ready.stop = true,
                Some(Source::ReceiveKick) => ready.receive_kick = true,
                Some(Source::TransmitKick) => ready.transmit_kick = true,
                Some(Source::ControlKick) => ready.control_kick = true,
                Some(Source::Steering) => ready.steering = true,
                Some(Source::Backend) => {
                    // An error is found out by using it.
                    let error = event
                        .event_set()
                        .intersects(EventSet::ERROR | EventSet::HANG_UP);
                    ready.readable |= error || event.event_set().contains(EventSet::IN);
                    ready.writable |= error || event.event_set().contains(EventSet::OUT);
                }
                None => {}
            }
        }
        Ok(ready)
    }
}
