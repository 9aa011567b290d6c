//! What the driver of the block device negotiates (virtio 1.2 §5.2): a queue for each vCPU that is to have one, the
//! disk's size and shape, and what it can do beyond reading and writing.

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT as _;

use super::backend::Disk;
use super::worker::{NAME, Requests};
use super::{MAX_PIECE, MAX_PIECES, MAX_RANGE_SECTORS, MAX_RANGES, QUEUE_SIZE, SECTOR};
use crate::devices::virtio::activity::Activity;
use crate::devices::virtio::device::{ActivateError, Activation, DeviceType, VirtioDevice};
use crate::devices::virtio::queue_service::QueueService;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::worker_thread::WorkerThread;

/// The most queues of a disk.
pub const MAX_QUEUES: u16 = 8;

const FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_MQ;
const WRITABLE_FEATURES: u64 = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// Bytes of the configuration (§5.2.4).
const CONFIG: usize = 60;

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The name is too long.
    #[error("a serial number of {0} bytes; it has at most 20")]
    Name(usize),
    /// There are no queues, or too many.
    #[error("{0} queues; 1 to {MAX_QUEUES} are possible")]
    Queues(u16),
}

/// The block device. See [`super`].
#[derive(Debug)]
pub struct Blk {
    disk: Arc<Disk>,
    name: [u8; NAME],
    queue_sizes: Vec<u16>,
    activity: Arc<Activity>,
    workers: Vec<WorkerThread<()>>,
}

impl Blk {
    /// A device that is `disk`, which the guest knows by its serial number `name`.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn new(disk: Disk, name: &str, queues: u16) -> Result<Self, BlkError> {
        let mut bytes = [0; NAME];
        bytes
            .get_mut(..name.len())
            .ok_or(BlkError::Name(name.len()))?
            .copy_from_slice(name.as_bytes());
        if queues == 0 || queues > MAX_QUEUES {
            return Err(BlkError::Queues(queues));
        }
        Ok(Self {
            disk: Arc::new(disk),
            name: bytes,
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            activity: Arc::default(),
            workers: Vec::new(),
        })
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        FEATURES
            | match self.disk.is_readonly() {
                true => 1 << VIRTIO_BLK_F_RO,
                false => WRITABLE_FEATURES,
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn activity(&self) -> Option<Arc<Activity>> {
        Some(Arc::clone(&self.activity))
    }

    fn config(&self) -> Vec<u8> {
        let mut bytes = vec![0; CONFIG];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.disk.sectors().to_le_bytes());
        put(8, &MAX_PIECE.to_le_bytes());
        put(12, &u32::from(MAX_PIECES).to_le_bytes());
        put(20, &self.disk.logical_block().to_le_bytes());
        // At most MAX_QUEUES.
        let queues = u16::try_from(self.queue_sizes.len()).unwrap_or(MAX_QUEUES);
        put(34, &queues.to_le_bytes());
        let sectors_of_block = u64::from(self.disk.logical_block()) / SECTOR;
        let alignment = u32::try_from(sectors_of_block).unwrap_or(1);
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &alignment.to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        // write_zeroes_may_unmap.
        put(56, &[1]);
        bytes
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if !self.workers.is_empty() {
            return Err(ActivateError::NoBackend);
        }
        let event_idx = activation.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut workers = Vec::with_capacity(activation.queues.len());
        for (index, active) in (0..).zip(activation.queues) {
            if !active.queue.ready() {
                // A driver may use fewer queues than there are, but not none.
                if index == 0 {
                    return Err(ActivateError::QueueNotReady(0));
                }
                continue;
            }
            let service = QueueService::new(
                Ring::new(active.queue, event_idx),
                index,
                activation.interrupt.clone(),
                Requests::new(
                    Arc::clone(&self.disk),
                    self.name,
                    Arc::clone(&self.activity),
                ),
            );
            workers.push(service.spawn("blk", activation.memory.clone(), active.kick)?);
        }
        self.workers = workers;
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.clear();
    }
}

#[cfg(test)]
mod tests;
