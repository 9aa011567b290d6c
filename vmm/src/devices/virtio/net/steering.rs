//! Which pairs of a NIC are in use. The control queue's worker changes it, and every pair's worker follows.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Backend, Offloads};
use super::control::Target;

/// The pairs of a NIC.
#[derive(Debug)]
pub(super) struct Steering<B> {
    backends: Vec<Arc<B>>,
    /// Pairs whose queues the driver has set up.
    usable: u16,
    active: AtomicU16,
    /// Tells each pair's worker that `active` has changed.
    changed: Vec<EventFd>,
}

impl<B: Backend> Steering<B> {
    /// Uses the first pair alone, as the driver expects at first (§5.1.6.5.5). The first `usable` pairs can be used.
    pub(super) fn new(backends: Vec<Arc<B>>, usable: u16) -> io::Result<Self> {
        let changed = backends
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC));
        let changed = changed.collect::<io::Result<_>>()?;
        let steering = Self {
            backends,
            usable,
            active: AtomicU16::new(1),
            changed,
        };
        steering.attach(1)?;
        Ok(steering)
    }

    /// The backend of pair `index`.
    pub(super) fn backend(&self, index: u16) -> &B {
        &self.backends[usize::from(index)]
    }

    /// What tells pair `index` of changes.
    pub(super) fn changed(&self, index: u16) -> &EventFd {
        &self.changed[usize::from(index)]
    }

    /// Whether pair `index` is in use.
    pub(super) fn is_active(&self, index: u16) -> bool {
        index < self.active.load(Ordering::SeqCst)
    }

    fn attach(&self, count: u16) -> io::Result<()> {
        for (index, backend) in self.backends.iter().enumerate().skip(1) {
            backend.set_attached(index < usize::from(count))?;
        }
        Ok(())
    }
}

impl<B: Backend> Target for Steering<B> {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.backend(0).set_offloads(offloads)
    }

    fn set_pairs(&self, count: u16) -> io::Result<()> {
        if count == 0 || count > self.usable {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.attach(count)?;
        self.active.store(count, Ordering::SeqCst);
        for changed in &self.changed {
            changed.write(1)?;
        }
        Ok(())
    }
}
