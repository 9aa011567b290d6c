//! The common configuration structure (virtio 1.2 §4.1.4.3): feature negotiation, the device status machine (§3.1),
//! and where the driver puts its queues. Plain state: what a write means beyond it is given back as an [`Effect`].

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};

/// Bytes of the structure, up to `queue_reset`.
pub const SIZE: usize = 0x40;
/// "No vector" (§4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

// The bits of the device status (§2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// What the function has to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The driver has given vectors to the configuration or to a queue.
    Vectors,
    /// The driver is ready: activate the device.
    Activate,
    /// The driver resets the device.
    Reset,
}

/// A queue as the driver sets it up.
#[derive(Clone, Copy, Debug)]
struct QueueSetup {
    max_size: u16,
    size: u16,
    vector: u16,
    enabled: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            enabled: false,
            descriptors: 0,
            driver: 0,
            device: 0,
        }
    }
}

/// The structure.
#[derive(Debug)]
pub struct CommonConfiguration {
    device_features: u64,
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

impl CommonConfiguration {
    /// The structure of a device with these features and queues, behind `vectors` MSI-X vectors.
    /// VIRTIO_F_VERSION_1 is added.
    #[must_use]
    pub fn new(features: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        Self {
            device_features: features | 1 << VIRTIO_F_VERSION_1,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().copied().map(QueueSetup::new).collect(),
        }
    }

    /// The features that device and driver agreed on.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.driver_features
    }

    /// Whether the driver has set DRIVER_OK.
    #[must_use]
    pub fn is_driver_ok(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// The vector of configuration changes.
    #[must_use]
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// The vector of each queue.
    pub fn queue_vectors(&self) -> impl Iterator<Item = u16> {
        self.queues.iter().map(|queue| queue.vector)
    }

    /// Whether the driver has enabled each queue.
    pub fn queues_enabled(&self) -> impl Iterator<Item = bool> {
        self.queues.iter().map(|queue| queue.enabled)
    }

    /// Tells the driver that only a reset helps (§2.1.2).
    pub fn set_needs_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// Back to the state before the driver came.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        let offered = self.device_features;
        *self = Self::new(offered, &sizes, self.vectors);
    }

    /// The queues as the driver has set them up; those that it has not enabled are not ready. None if the driver
    /// gave a queue an address that no queue can have.
    #[must_use]
    pub fn build_queues(&self) -> Option<Vec<Queue>> {
        let event_index = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.queues
            .iter()
            .map(|setup| {
                let mut queue = Queue::new(setup.max_size).ok()?;
                if setup.enabled {
                    queue.try_set_size(setup.size).ok()?;
                    queue
                        .try_set_desc_table_address(vm_memory::GuestAddress(setup.descriptors))
                        .ok()?;
                    queue
                        .try_set_avail_ring_address(vm_memory::GuestAddress(setup.driver))
                        .ok()?;
                    queue
                        .try_set_used_ring_address(vm_memory::GuestAddress(setup.device))
                        .ok()?;
                    queue.set_event_idx(event_index);
                    queue.set_ready(true);
                }
                Some(queue)
            })
            .collect()
    }

    /// The guest reads at `offset`; beyond the end are zeros. `generation` counts the changes of the device's own
    /// configuration.
    pub fn read(&self, offset: usize, data: &mut [u8], generation: u8) {
        let image = self.image(generation);
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(image.iter().skip(offset)) {
            *byte = *value;
        }
    }

    /// The structure's bytes as they read now.
    fn image(&self, generation: u8) -> [u8; SIZE] {
        let half = |features: u64, select: u32| match select {
            0 => low_half(features),
            1 => low_half(features >> 32),
            _ => 0,
        };
        let absent = QueueSetup {
            size: 0,
            ..QueueSetup::new(0)
        };
        let selected = usize::from(self.queue_select);
        let queue = self.queues.get(selected).copied().unwrap_or(absent);
        let mut image = [0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(
            0x04,
            &half(self.device_features, self.device_feature_select).to_le_bytes(),
        );
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(
            0x0c,
            &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
        );
        put(0x10, &self.config_vector.to_le_bytes());
        // A device's queues fit into the notification structure, so they are few.
        put(
            0x12,
            &u16::try_from(self.queues.len())
                .unwrap_or(u16::MAX)
                .to_le_bytes(),
        );
        put(0x14, &[self.status, generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        put(0x18, &queue.size.to_le_bytes());
        put(0x1a, &queue.vector.to_le_bytes());
        put(0x1c, &u16::from(queue.enabled).to_le_bytes());
        // Each queue's notification offset is its number.
        put(0x1e, &self.queue_select.to_le_bytes());
        put(0x20, &queue.descriptors.to_le_bytes());
        put(0x28, &queue.driver.to_le_bytes());
        put(0x30, &queue.device.to_le_bytes());
        image
    }

    /// The guest writes at `offset`. Fields are written in their own width, 64-bit ones in halves as well; anything
    /// else is ignored.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Effect {
        match (offset, data) {
            (0x14, &[status]) => return self.write_status(status),
            (_, &[a, b]) => return self.write_u16(offset, u16::from_le_bytes([a, b])),
            (_, &[a, b, c, d]) => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            (0x20 | 0x28 | 0x30, &[a, b, c, d, e, f, g, h]) => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Effect::None
    }

    fn write_u32(&mut self, offset: usize, value: u32) {
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            0x0c => self.write_driver_features(value),
            0x20..0x38 if offset.is_multiple_of(4) => {
                let high = !offset.is_multiple_of(8);
                let Some(queue) = self.selected_for_setup() else {
                    return;
                };
                let address = match offset & !7 {
                    0x20 => &mut queue.descriptors,
                    0x28 => &mut queue.driver,
                    _ => &mut queue.device,
                };
                *address = if high {
                    u64::from(low_half(*address)) | u64::from(value) << 32
                } else {
                    *address & !u64::from(u32::MAX) | u64::from(value)
                };
            }
            _ => {}
        }
    }

    fn write_u16(&mut self, offset: usize, value: u16) -> Effect {
        match offset {
            0x10 => {
                self.config_vector = self.valid_vector(value);
                return Effect::Vectors;
            }
            0x16 => self.queue_select = value,
            0x18 => {
                if let Some(queue) = self.selected_for_setup()
                    && value.is_power_of_two()
                    && value <= queue.max_size
                {
                    queue.size = value;
                }
            }
            0x1a => {
                let vector = self.valid_vector(value);
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue.vector = vector;
                    return Effect::Vectors;
                }
            }
            // A queue is enabled once and disabled by a reset (§4.1.4.3.2).
            0x1c if value == 1 => {
                if let Some(queue) = self.selected_for_setup() {
                    queue.enabled = true;
                }
            }
            _ => {}
        }
        Effect::None
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let features = self.driver_features;
        self.driver_features = match self.driver_feature_select {
            0 => features & !u64::from(u32::MAX) | u64::from(value),
            1 => u64::from(low_half(features)) | u64::from(value) << 32,
            _ => features,
        };
    }

    /// The status machine (§3.1.1): bits are only added, in their order; zero resets.
    fn write_status(&mut self, status: u8) -> Effect {
        if status == 0 {
            return Effect::Reset;
        }
        let added =
            status & !self.status & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
        if self.status & (NEEDS_RESET | FAILED) != 0 {
            self.status |= added & FAILED;
            return Effect::None;
        }
        self.status |= added & (ACKNOWLEDGE | DRIVER | FAILED);
        if added & FEATURES_OK != 0 && self.status & DRIVER != 0 && self.features_are_valid() {
            self.status |= FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
            return Effect::Activate;
        }
        Effect::None
    }

    fn features_are_valid(&self) -> bool {
        self.driver_features & !self.device_features == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn valid_vector(&self, vector: u16) -> u16 {
        if vector < self.vectors {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// The selected queue, while the driver may set it up: after the features, before DRIVER_OK, not enabled yet.
    fn selected_for_setup(&mut self) -> Option<&mut QueueSetup> {
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return None;
        }
        self.queues
            .get_mut(usize::from(self.queue_select))
            .filter(|queue| !queue.enabled)
    }
}

fn low_half(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
