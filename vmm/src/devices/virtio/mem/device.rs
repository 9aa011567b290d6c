//! What the driver of the memory device negotiates (virtio 1.2 §5.15): one queue, no features of its own, and a
//! configuration that says where the region is and how much of it is wanted.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT as _;

use super::backend::{BLOCK, Region};
use super::worker::Requests;
use crate::devices::virtio::device::{ActivateError, Activation, DeviceType, VirtioDevice};
use crate::devices::virtio::queue_service::QueueService;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::worker_thread::WorkerThread;

const QUEUE_SIZES: [u16; 1] = [64];
const FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The memory device.
pub struct Mem {
    region: Arc<Region>,
    worker: Option<WorkerThread<()>>,
}

impl Mem {
    /// A device that plugs from `region`.
    #[must_use]
    pub fn new(region: Arc<Region>) -> Self {
        Self {
            region,
            worker: None,
        }
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> DeviceType {
        DeviceType::Memory
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// le64 block_size, le16 node_id and padding, le64 addr, region_size,
    /// usable_region_size, plugged_size, requested_size (§5.15.4).
    fn config(&self) -> Vec<u8> {
        let fields = [
            BLOCK,
            0,
            self.region.start(),
            self.region.size(),
            self.region.size(),
            self.region.plugged(),
            self.region.wanted(),
        ];
        fields.map(u64::to_le_bytes).concat()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.worker.is_some() {
            return Err(ActivateError::NoBackend);
        }
        let queue = activation.queues.into_iter().next();
        let queue = queue
            .filter(|active| active.queue.ready())
            .ok_or(ActivateError::QueueNotReady(0))?;
        let event_idx = activation.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let service = QueueService::new(
            Ring::new(queue.queue, event_idx),
            0,
            activation.interrupt.clone(),
            Requests::new(self.region.clone()),
        );
        self.worker = Some(service.spawn("mem", activation.memory, queue.kick)?);
        self.region.set_interrupt(Some(activation.interrupt));
        Ok(())
    }

    /// What is plugged stays so (§5.15.5): the driver may still use it.
    fn reset(&mut self) {
        self.region.set_interrupt(None);
        self.worker = None;
    }
}

#[cfg(test)]
mod tests;
