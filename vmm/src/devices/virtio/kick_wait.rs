//! The wait of a device's worker that only serves its queues: for a driver's kick, or for the order to stop.

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const KICK: u64 = 0;
const STOP: u64 = 1;

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The driver has kicked.
    Kicked,
    /// The worker is to end.
    Stop,
}

/// Waits for one queue's kicks and for the order to stop.
#[derive(Debug)]
pub struct KickWait<'e> {
    epoll: Epoll,
    events: PhantomData<&'e EventFd>,
}

impl<'e> KickWait<'e> {
    /// Prepares to wait for `kick` and `stop`.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(kick: &'e EventFd, stop: &'e EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for (event, token) in [(kick, KICK), (stop, STOP)] {
            // A kick wakes once, and nobody needs to read it.
            let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        }
        Ok(Self {
            epoll,
            events: PhantomData,
        })
    }

    /// Waits until the driver kicks or the worker is to end. With `busy`, only looks whether either has happened.
    ///
    /// # Errors
    /// The host refuses the wait.
    pub fn wait(&self, busy: bool) -> io::Result<Option<Wake>> {
        let mut events = [EpollEvent::default(); 2];
        let count = match self.epoll.wait(if busy { 0 } else { -1 }, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        let happened = events.iter().take(count);
        if happened.clone().any(|event| event.data() == STOP) {
            return Ok(Some(Wake::Stop));
        }
        if happened.clone().any(|event| event.data() == KICK) {
            return Ok(Some(Wake::Kicked));
        }
        Ok(None)
    }
}
