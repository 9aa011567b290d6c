//! The PCI function around a virtio device: identity, capabilities (virtio 1.2 §4.1.4), and one BAR that holds all
//! structures.
//!
//! The driver's notifications reach the device's worker through doorbells (ioeventfds) that exist while the device
//! is active and its BAR is decoded; they follow the BAR when the guest moves it. A notification outside that time,
//! or at a BAR that overlaps another, arrives as a write to the BAR and is passed on by hand.

use std::io;
use std::sync::Arc;

use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::common_configuration::{self, CommonConfiguration, Effect};
use super::interrupt::PciInterrupt;
use crate::devices::pci::configuration::{ConfigurationSpace, Identity};
use crate::devices::pci::function::PciFunction;
use crate::devices::pci::host::PciHost;
use crate::devices::pci::msix;
use crate::devices::virtio::device::{
    Activation, ActiveQueue, DeviceType, Interrupt, VirtioDevice,
};
use crate::memory::SharedMemory;

const VENDOR: u16 = 0x1af4;
const FIRST_MODERN_DEVICE: u16 = 0x1040;
const VENDOR_CAPABILITY: u8 = 9;

const BAR: u8 = 0;
const BAR_SIZE: u32 = 0x8000;
const PART_SIZE: u32 = 0x1000;
const NOTIFY_MULTIPLIER: u32 = 4;

/// The structures in the BAR, each in [`PART_SIZE`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Part {
    Common = 0,
    Isr = 1,
    Device = 2,
    Notify = 3,
    MsixTable = 4,
    MsixPending = 5,
}

impl Part {
    fn at(offset: u64) -> Option<(Self, usize)> {
        let part = match offset / u64::from(PART_SIZE) {
            0 => Self::Common,
            1 => Self::Isr,
            2 => Self::Device,
            3 => Self::Notify,
            4 => Self::MsixTable,
            5 => Self::MsixPending,
            _ => return None,
        };
        // What remains is below PART_SIZE.
        Some((
            part,
            usize::try_from(offset % u64::from(PART_SIZE)).unwrap_or(0),
        ))
    }

    fn offset(self) -> u32 {
        self as u32 * PART_SIZE
    }
}

/// `cfg_type` of the capabilities (§4.1.4).
mod capability_type {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI_ACCESS: u8 = 5;
}

/// A virtio device as a PCI function.
pub struct VirtioPciFunction {
    configuration: ConfigurationSpace,
    /// Offset of the capability for access through configuration space (§4.1.4.9).
    access_capability: usize,
    msix_capability: usize,
    common: CommonConfiguration,
    interrupt: Arc<PciInterrupt>,
    /// Signalled when the driver notifies the queue of that number.
    kicks: Vec<EventFd>,
    /// Addresses of the doorbells that exist, and whose kick they signal.
    doorbells: Vec<(u64, usize)>,
    active: bool,
    device: Box<dyn VirtioDevice>,
    memory: SharedMemory,
    host: Arc<dyn PciHost>,
}

impl VirtioPciFunction {
    /// The function of `device`. Its driver can choose among `vectors` interrupt vectors: one for each queue and one
    /// for the configuration is best, and two serve.
    ///
    /// # Errors
    /// The host has no interrupt or no descriptor left.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: SharedMemory,
        host: Arc<dyn PciHost>,
        vectors: u16,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let queues = u16::try_from(sizes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let interrupt = PciInterrupt::new(host.as_ref(), queues, vectors)?;
        let kicks = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<_>>()?;
        let kind = device.device_type();
        let mut configuration = ConfigurationSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_MODERN_DEVICE + kind as u16,
            class: class(kind),
            revision: 1,
            subsystem: (VENDOR, FIRST_MODERN_DEVICE),
        })
        .with_bar(BAR.into(), BAR_SIZE);
        // MSI-X comes first: a kernel looks for it often, and each step of the list is two exits.
        let (body, writable) = interrupt.msix.capability(
            BAR.into(),
            Part::MsixTable.offset(),
            Part::MsixPending.offset(),
        );
        let msix_capability = configuration.add_capability(msix::CAPABILITY_ID, &body, &writable);
        let access_capability = add_virtio_capabilities(&mut configuration);
        let common = CommonConfiguration::new(device.features(), sizes, vectors);
        Ok(Self {
            configuration,
            access_capability,
            msix_capability,
            common,
            interrupt: Arc::new(interrupt),
            kicks,
            doorbells: Vec::new(),
            active: false,
            device,
            memory,
            host,
        })
    }

    fn write_common(&mut self, offset: usize, data: &[u8]) {
        match self.common.write(offset, data) {
            Effect::None => {}
            Effect::Vectors => {
                self.interrupt.set_vectors(&self.common);
                if self.active {
                    self.device.vectors_changed();
                }
            }
            Effect::Activate => {
                if let Err(error) = self.activate() {
                    tracing::debug!(device = ?self.device.device_type(), %error, "activate");
                    self.common.set_needs_reset();
                    self.interrupt.signal_config();
                }
            }
            Effect::Reset => self.reset(),
        }
    }

    fn activate(&mut self) -> Result<(), ActivationError> {
        let queues = self.common.build_queues().ok_or(ActivationError::Queue)?;
        let memory = self.memory.memory();
        if queues
            .iter()
            .any(|queue| queue.ready() && !queue.is_valid(&*memory))
        {
            return Err(ActivationError::Queue);
        }
        let queues = queues
            .into_iter()
            .zip(&self.kicks)
            .map(|(queue, kick)| {
                let kick = kick.try_clone()?;
                Ok(ActiveQueue { queue, kick })
            })
            .collect::<io::Result<_>>()
            .map_err(ActivationError::Kick)?;
        self.device.activate(Activation {
            memory: self.memory.clone(),
            features: self.common.features(),
            queues,
            interrupt: self.interrupt.clone(),
        })?;
        self.active = true;
        self.place_doorbells();
        Ok(())
    }

    fn reset(&mut self) {
        if self.active {
            self.active = false;
            self.device.reset();
        }
        self.place_doorbells();
        for kick in &self.kicks {
            // An eventfd that counts nothing says so; that is what is wanted.
            let _ = kick.read();
        }
        self.common.reset();
        self.interrupt.set_vectors(&self.common);
        self.interrupt.take_isr();
    }

    /// Makes the doorbells agree with whether the device is active and where its BAR is.
    fn place_doorbells(&mut self) {
        let base = self
            .configuration
            .decoded_bar(BAR.into())
            .filter(|_| self.active);
        let wanted: Vec<(u64, usize)> = base.map_or_else(Vec::new, |base| {
            let notify = base + u64::from(Part::Notify.offset());
            self.common
                .queues_enabled()
                .enumerate()
                .filter(|(_, enabled)| *enabled)
                .map(|(queue, _)| (notify + queue as u64 * u64::from(NOTIFY_MULTIPLIER), queue))
                .collect()
        });
        if wanted == self.doorbells {
            return;
        }
        for (address, queue) in self.doorbells.drain(..) {
            if let Err(error) = self.host.remove_doorbell(address, &self.kicks[queue]) {
                tracing::warn!(%error, address, "remove a doorbell");
            }
        }
        for (address, queue) in wanted {
            match self.host.add_doorbell(address, &self.kicks[queue]) {
                Ok(()) => self.doorbells.push((address, queue)),
                // BARs overlap: notifications arrive as writes to the BAR.
                Err(error) => tracing::debug!(%error, address, "add a doorbell"),
            }
        }
    }

    /// What the driver's access through configuration space is aimed at: offset in the BAR and length.
    fn access_target(&self) -> Option<(u64, usize)> {
        let [bar] = self.capability_bytes(4);
        let offset = u32::from_le_bytes(self.capability_bytes(8));
        let length = u32::from_le_bytes(self.capability_bytes(12));
        let valid = bar == BAR && matches!(length, 1 | 2 | 4);
        valid.then(|| (offset.into(), length as usize))
    }

    fn capability_bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.configuration
            .read(self.access_capability + offset, &mut bytes);
        bytes
    }

    /// Whether an access of configuration space at `offset` is one of the window to the BAR.
    fn is_window(&self, offset: usize) -> bool {
        offset == self.access_capability + 16
    }
}

impl PciFunction for VirtioPciFunction {
    fn configuration(&self) -> &ConfigurationSpace {
        &self.configuration
    }

    fn configuration_mut(&mut self) -> &mut ConfigurationSpace {
        &mut self.configuration
    }

    fn read_configuration(&mut self, offset: usize, data: &mut [u8]) {
        if self.is_window(offset)
            && let Some((target, length)) = self.access_target()
            && data.len() >= length
        {
            data.fill(0);
            self.read_bar(BAR.into(), target, &mut data[..length]);
            return;
        }
        self.configuration.read(offset, data);
    }

    fn write_configuration(&mut self, offset: usize, data: &[u8]) {
        if self.is_window(offset) {
            if let Some((target, length)) = self.access_target()
                && data.len() >= length
            {
                self.write_bar(BAR.into(), target, &data[..length]);
            }
            return;
        }
        self.configuration.write(offset, data);
        let control = self.msix_capability + 2;
        if (control..control + 2).any(|byte| (offset..offset + data.len()).contains(&byte)) {
            let mut bytes = [0; 2];
            self.configuration.read(control, &mut bytes);
            self.interrupt.msix.set_control(u16::from_le_bytes(bytes));
        }
        self.place_doorbells();
    }

    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((part, at)) = Part::at(offset) else {
            return;
        };
        match part {
            Part::Common => self.common.read(at, data, self.interrupt.generation()),
            Part::Isr => {
                if let (0, Some(byte)) = (at, data.first_mut()) {
                    *byte = self.interrupt.take_isr();
                }
            }
            Part::Device => self.device.read_config(at as u64, data),
            Part::Notify => {}
            Part::MsixTable => self.interrupt.msix.read_table(at, data),
            Part::MsixPending => self.interrupt.msix.read_pending(at, data),
        }
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        let Some((part, at)) = Part::at(offset) else {
            return;
        };
        match part {
            Part::Common if at < common_configuration::SIZE => self.write_common(at, data),
            Part::Device => self.device.write_config(at as u64, data),
            Part::Notify => {
                if let Some(kick) = self.kicks.get(at / NOTIFY_MULTIPLIER as usize) {
                    // It fails when the counter is full: then the queue is notified as it is.
                    let _ = kick.write(1);
                }
            }
            Part::MsixTable => self.interrupt.msix.write_table(at, data),
            Part::Common | Part::Isr | Part::MsixPending => {}
        }
    }

    fn shut_down(&mut self) {
        if self.common.is_driver_ok() {
            tracing::debug!(device = ?self.device.device_type(), "shut down while its driver uses it");
        }
        self.reset();
        self.interrupt.msix.set_control(0);
    }
}

/// Why a device is not activated.
#[derive(Debug, thiserror::Error)]
enum ActivationError {
    #[error("the driver has put a queue where there is no memory, or not aligned")]
    Queue,
    #[error("duplicate an eventfd")]
    Kick(#[source] io::Error),
    #[error(transparent)]
    Device(#[from] crate::devices::virtio::device::ActivateError),
}

/// Adds the virtio capabilities; gives the offset of the one for access through configuration space.
fn add_virtio_capabilities(configuration: &mut ConfigurationSpace) -> usize {
    let body = |kind: u8, offset: u32, length: u32, extra: &[u8]| {
        // After the id and the link: length of the capability, type, BAR, id, padding, offset, length.
        let whole = 16 + extra.len();
        // It is 20 at most.
        let mut body = vec![u8::try_from(whole).unwrap_or(0), kind, BAR, 0, 0, 0];
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(extra);
        body
    };
    for (kind, part) in [
        (capability_type::COMMON, Part::Common),
        (capability_type::ISR, Part::Isr),
        (capability_type::DEVICE, Part::Device),
    ] {
        let body = body(kind, part.offset(), PART_SIZE, &[]);
        configuration.add_capability(VENDOR_CAPABILITY, &body, &[]);
    }
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    let notify = body(
        capability_type::NOTIFY,
        Part::Notify.offset(),
        PART_SIZE,
        &multiplier,
    );
    configuration.add_capability(VENDOR_CAPABILITY, &notify, &[]);
    let access = body(capability_type::PCI_ACCESS, 0, 0, &[0; 4]);
    let mut writable = vec![0xff; access.len()];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    configuration.add_capability(VENDOR_CAPABILITY, &access, &writable)
}

/// PCI class, subclass and interface.
fn class(kind: DeviceType) -> u32 {
    match kind {
        DeviceType::Net => 0x02_0000,
        DeviceType::Block | DeviceType::FileSystem => 0x01_8000,
        DeviceType::Console | DeviceType::Vsock => 0x07_8000,
        DeviceType::Entropy | DeviceType::Memory => 0xff_0000,
    }
}

#[cfg(test)]
mod tests;
