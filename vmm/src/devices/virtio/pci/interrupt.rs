//! How a virtio device behind PCI interrupts: the vectors that its driver chose, or the ISR status (virtio 1.2
//! §4.1.4.5) for a driver that only polls. Signalled from the device's worker; takes no lock.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::common_configuration::{CommonConfiguration, NO_VECTOR};
use crate::devices::pci::host::PciHost;
use crate::devices::pci::msix::Msix;
use crate::devices::virtio::device::Interrupt;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIGURATION: u8 = 2;

/// The interrupts of one function.
pub struct PciInterrupt {
    /// The table that the guest programs.
    pub msix: Msix,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    isr: AtomicU8,
    generation: AtomicU8,
}

impl PciInterrupt {
    /// Interrupts for `queues` queues and the configuration, with `vectors` vectors to choose from.
    ///
    /// # Errors
    /// The host has no interrupt or no descriptor left.
    pub fn new(host: &dyn PciHost, queues: u16, vectors: u16) -> io::Result<Self> {
        Ok(Self {
            msix: Msix::new(host, vectors)?,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
        })
    }

    /// Takes over the vectors that the driver has chosen.
    pub fn set_vectors(&self, common: &CommonConfiguration) {
        self.config_vector
            .store(common.config_vector(), Ordering::Release);
        for (mine, chosen) in self.queue_vectors.iter().zip(common.queue_vectors()) {
            mine.store(chosen, Ordering::Release);
        }
    }

    /// The ISR status, which reading clears.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// How often the device's configuration has changed, modulo 256.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    fn signal(&self, vector: &AtomicU16, isr: u8) {
        let vector = vector.load(Ordering::Acquire);
        if vector == NO_VECTOR {
            self.isr.fetch_or(isr, Ordering::AcqRel);
        } else {
            self.msix.signal(vector);
        }
    }
}

impl Interrupt for PciInterrupt {
    fn signal_queue(&self, index: u16) {
        if let Some(vector) = self.queue_vectors.get(usize::from(index)) {
            self.signal(vector, ISR_QUEUE);
        }
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.signal(&self.config_vector, ISR_CONFIGURATION);
    }

    fn queue_eventfd(&self, index: u16) -> Option<EventFd> {
        let vector = self.queue_vectors.get(usize::from(index))?;
        self.msix.eventfd(vector.load(Ordering::Acquire))
    }
}
