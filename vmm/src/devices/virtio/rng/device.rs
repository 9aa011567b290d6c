//! What the driver of the entropy device negotiates (virtio 1.2 §5.4): one queue, no features and no configuration of
//! its own.

use std::fs::File;
use std::io;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT as _;

use super::backend;
use super::worker::Fill;
use crate::devices::virtio::device::{ActivateError, Activation, DeviceType, VirtioDevice};
use crate::devices::virtio::queue_service::QueueService;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::worker_thread::WorkerThread;

const QUEUE_SIZES: [u16; 1] = [64];
const FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    source: File,
    worker: Option<WorkerThread<()>>,
}

impl Rng {
    /// A device that takes from the host's random number generator.
    ///
    /// # Errors
    /// `/dev/urandom` cannot be opened.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            source: backend::open()?,
            worker: None,
        })
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.worker.is_some() {
            return Err(ActivateError::NoBackend);
        }
        let requests = activation
            .queues
            .into_iter()
            .next()
            .filter(|active| active.queue.ready());
        let requests = requests.ok_or(ActivateError::QueueNotReady(0))?;
        let event_idx = activation.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let source = self
            .source
            .try_clone()
            .map_err(|source| ActivateError::Host {
                operation: "duplicate the entropy source",
                source,
            })?;
        let service = QueueService::new(
            Ring::new(requests.queue, event_idx),
            0,
            activation.interrupt,
            Fill::new(source),
        );
        self.worker = Some(service.spawn("rng", activation.memory, requests.kick)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

#[cfg(test)]
mod tests;
