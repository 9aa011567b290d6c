//! The work on a queue whose chains are answered one after the other, each at once: what the console, the entropy
//! device and the control queue of a NIC have in common. A device says by [`Answer`] what it does with a chain.
//!
//! Runs in the device's worker thread. An error means that the queue is not used any more until the driver resets the
//! device.

use std::io;
use std::sync::Arc;

use vm_memory::GuestAddressSpace as _;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Interrupt};
use super::kick_wait::{KickWait, Wake};
use super::ring::{Chain, Ring, RingError};
use super::worker_thread::WorkerThread;
use crate::memory::{GuestMemory, SharedMemory};

/// Chains answered before the worker looks whether it is to stop.
pub const BUDGET: usize = 64;

/// What a device does with the chains of a queue.
pub trait Answer {
    /// Why the queue cannot be used any more.
    type Error: From<RingError>;

    /// Does what `chain` asks for; gives how many bytes were written to it.
    ///
    /// # Errors
    /// The queue cannot be used any more.
    fn answer(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, Self::Error>;
}

/// Whether the driver may have more to be answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// No: it kicks when it has.
    All,
    /// Yes: the budget was used up.
    Budget,
}

/// A queue at work.
pub struct QueueService<D> {
    ring: Ring,
    index: u16,
    interrupt: Arc<dyn Interrupt>,
    device: D,
}

impl<D: Answer> QueueService<D> {
    /// `device` answers what comes on `ring`, which is the device's queue `index`.
    pub fn new(ring: Ring, index: u16, interrupt: Arc<dyn Interrupt>, device: D) -> Self {
        Self {
            ring,
            index,
            interrupt,
            device,
        }
    }

    /// The queue's index in its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Answers what the driver offers, as far as the budget goes, and interrupts it when it wants that.
    ///
    /// # Errors
    /// The driver broke the queue, or what the device says.
    pub fn serve(&mut self, memory: &GuestMemory) -> Result<Served, D::Error> {
        self.ring.disable_kicks(memory)?;
        let mut served = Served::Budget;
        for _ in 0..BUDGET {
            let Some(chain) = self.ring.pop(memory)? else {
                // Ask for a kick, and look again, for the driver may have offered more without one.
                if self.ring.enable_kicks(memory)? {
                    continue;
                }
                served = Served::All;
                break;
            };
            let head = chain.head_index();
            let written = self.device.answer(memory, chain)?;
            self.ring.push_used(memory, head, written)?;
            // Drivers of such queues wait for each of their chains.
            self.ring.publish(memory)?;
        }
        if self.ring.needs_interrupt(memory)? {
            self.interrupt.signal_queue(self.index);
        }
        Ok(served)
    }

    /// Serves until `stop` is signalled. What the driver has offered by then is still answered, for a machine's last
    /// words matter most.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn run(
        &mut self,
        memory: &SharedMemory,
        kick: &EventFd,
        stop: &EventFd,
    ) -> Result<(), ServiceError<D::Error>> {
        let wait = KickWait::new(kick, stop).map_err(ServiceError::Wait)?;
        // The driver may have kicked before the worker was there.
        let mut busy = true;
        while wait.wait(busy).map_err(ServiceError::Wait)? != Some(Wake::Stop) {
            let served = self.serve(&memory.memory());
            busy = served.map_err(ServiceError::Queue)? == Served::Budget;
        }
        self.serve(&memory.memory())
            .map(|_| ())
            .map_err(ServiceError::Queue)
    }
}

impl<D> QueueService<D>
where
    D: Answer<Error: std::error::Error> + Send + 'static,
{
    /// Serves in a thread called `name` until that is dropped. When the queue cannot be used any more it says so in the
    /// log, and waits for the driver to reset the device.
    ///
    /// # Errors
    /// The host has no descriptor or no thread left.
    pub fn spawn(
        mut self,
        name: &'static str,
        memory: SharedMemory,
        kick: EventFd,
    ) -> Result<WorkerThread<()>, ActivateError> {
        let thread = WorkerThread::spawn(name, move |stop| {
            if let Err(error) = self.run(&memory, &kick, &stop) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(device = name, error, "stops until the driver resets it");
            }
        });
        thread.map_err(|source| ActivateError::Host {
            operation: "start a device's thread",
            source,
        })
    }
}

/// Why a queue is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError<E> {
    /// The driver, or the device's backend.
    #[error("the queue is not usable")]
    Queue(#[source] E),
    /// The host refused the wait for kicks.
    #[error("cannot wait for the driver")]
    Wait(#[source] io::Error),
}

#[cfg(test)]
mod tests;
