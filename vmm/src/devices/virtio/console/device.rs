//! What the driver of the console negotiates (virtio 1.2 §5.3): one port, so two queues, and the emergency write.

use std::fmt;
use std::io::Write;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT as _;

use super::backend::Output;
use super::worker::Transmit;
use crate::devices::virtio::device::{ActivateError, Activation, DeviceType, VirtioDevice};
use crate::devices::virtio::queue_service::QueueService;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::worker_thread::WorkerThread;

/// VIRTIO_CONSOLE_F_EMERG_WRITE.
const EMERGENCY_WRITE: u32 = 2;
const FEATURES: u64 =
    1 << EMERGENCY_WRITE | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// receiveq and transmitq of port 0 (§5.3.2).
const QUEUE_SIZES: [u16; 2] = [64, 64];
const TRANSMIT: u16 = 1;

/// `emerg_wr` in the configuration space.
const EMERGENCY_WRITE_OFFSET: u64 = 8;

/// The console.
pub struct Console {
    output: Output,
    worker: Option<WorkerThread<()>>,
}

impl Console {
    /// A console that prints to `sink`. Writes to it should not block for long: the guest waits for its console. It
    /// sets how much is kept; what it refuses is lost.
    #[must_use]
    pub fn new(sink: Box<dyn Write + Send>) -> Self {
        Self {
            output: Output::new(sink),
            worker: None,
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Console")
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `struct virtio_console_config` (§5.3.4); the size is not offered.
    fn config(&self) -> Vec<u8> {
        let (columns, rows, ports) = (0_u16, 0_u16, 1_u32);
        [
            &columns.to_le_bytes()[..],
            &rows.to_le_bytes(),
            &ports.to_le_bytes(),
        ]
        .concat()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // §5.3.4: the lowest byte is printed, before DRIVER_OK as well.
        if offset == EMERGENCY_WRITE_OFFSET
            && let Some(byte) = data.first()
        {
            self.output.write(&[*byte]);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.worker.is_some() {
            return Err(ActivateError::NoBackend);
        }
        // Nothing is ever received, so the receive queue's buffers stay with it.
        let transmit = activation.queues.into_iter().nth(usize::from(TRANSMIT));
        let transmit = transmit
            .filter(|active| active.queue.ready())
            .ok_or(ActivateError::QueueNotReady(TRANSMIT))?;
        let event_idx = activation.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let service = QueueService::new(
            Ring::new(transmit.queue, event_idx),
            TRANSMIT,
            activation.interrupt,
            Transmit::new(self.output.clone()),
        );
        self.worker = Some(service.spawn("console", activation.memory, transmit.kick)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

#[cfg(test)]
mod tests;
