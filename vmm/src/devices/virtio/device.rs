//! What a transport knows of a virtio device, and what a device gets when its driver is ready.

use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::activity::Activity;
use crate::memory::SharedMemory;

/// virtio device ids (virtio 1.2 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceType {
    /// §5.1.
    Net = 1,
    /// §5.2.
    Block = 2,
    /// §5.3.
    Console = 3,
    /// §5.4.
    Entropy = 4,
    /// §5.10.
    Vsock = 19,
    /// §5.15.
    Memory = 24,
    /// §5.11.
    FileSystem = 26,
}

/// A virtio device behind any transport. The transport keeps the status machine (virtio 1.2 §3.1), the negotiated
/// features and the queues' addresses; the device has its configuration space and its work.
pub trait VirtioDevice: Send {
    /// Its device id.
    fn device_type(&self) -> DeviceType;

    /// Its feature bits (virtio 1.2 §6); the transport adds VIRTIO_F_VERSION_1 and its own.
    fn features(&self) -> u64;

    /// The largest size of each queue, each a power of two; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// What it has moved, if it counts that and is no NIC.
    fn activity(&self) -> Option<Arc<Activity>> {
        None
    }

    /// The device configuration space as it is now (virtio 1.2 §2.5).
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Reads from the device configuration space. Bytes beyond its end are left as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(self.config().iter().skip(start)) {
            *byte = *value;
        }
    }

    /// Writes to the device configuration space; what is not writable is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver has set DRIVER_OK: start working. The queues move to the worker.
    ///
    /// # Errors
    /// The device cannot work; the transport sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver has given queues of the device, which works, other interrupt vectors. Only for a device that has
    /// asked for [`Interrupt::queue_eventfd`].
    fn vectors_changed(&mut self) {}

    /// The driver resets the device: stop working and take back what the worker was given, so that it can be
    /// activated again. When this returns, no thread touches guest memory for this device.
    fn reset(&mut self);
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// Guest memory.
    pub memory: SharedMemory,
    /// The features that device and driver agreed on.
    pub features: u64,
    /// All queues in order; those that the driver did not enable are not ready (`QueueT::ready`).
    pub queues: Vec<ActiveQueue>,
    /// How the device interrupts.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A queue and the eventfd that its driver's notifications arrive on.
pub struct ActiveQueue {
    /// The queue, set up and valid if it is ready.
    pub queue: Queue,
    /// Signalled by KVM (ioeventfd) when the driver writes the queue's notification address.
    pub kick: EventFd,
}

/// A device's interrupts, from any thread.
pub trait Interrupt: Send + Sync {
    /// The used ring of queue `index` has new entries (after asking `Queue::needs_notification`).
    fn signal_queue(&self, index: u16);

    /// The configuration space has changed.
    fn signal_config(&self);

    /// The eventfd that interrupts for queue `index`, for backends in the kernel (vhost); none if the driver
    /// gave the queue no vector.
    fn queue_eventfd(&self, index: u16) -> Option<EventFd>;
}

/// Why a device cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver enabled fewer queues than the device needs.
    #[error("queue {0} was not enabled")]
    QueueNotReady(u16),
    /// The device is at work already, or what it needs is gone.
    #[error("the device has no backend to work with")]
    NoBackend,
    /// What works on the queues in the device's stead cannot.
    #[error("what serves the device's queues does not start")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The host refused something.
    #[error("{operation}")]
    Host {
        /// What was asked of the host.
        operation: &'static str,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
}
