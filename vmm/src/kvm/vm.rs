//! A machine: its memory, its interrupt controllers, its doorbells.

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vm_memory::{GuestMemory as _, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use super::KvmError;
use super::msi::Routes;
use super::vcpu::Vcpu;
use crate::devices::pci::host::{MsiVector, PciHost};
use crate::memory::GuestMemory;
use crate::memory::layout::{KVM_IDENTITY_MAP, KVM_TSS};

/// A machine. Its IOAPIC, PICs and local APICs are KVM's; it has no PIT, for its guests have kvm-clock and the TSC
/// deadline timer.
pub struct Vm {
    fd: Arc<VmFd>,
    routes: Arc<Routes>,
    /// Mapped as long as the machine may access it.
    memory: Option<GuestMemory>,
}

impl Vm {
    pub(super) fn new(fd: VmFd) -> Result<Self, KvmError> {
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(|error| KvmError::new("KVM_SET_IDENTITY_MAP_ADDR", error))?;
        fd.set_tss_address(KVM_TSS)
            .map_err(|error| KvmError::new("KVM_SET_TSS_ADDR", error))?;
        fd.create_irq_chip().map_err(|error| {
            KvmError::new("make interrupt controllers (KVM_CREATE_IRQCHIP)", error)
        })?;
        let fd = Arc::new(fd);
        Ok(Self {
            routes: Routes::new(fd.clone()),
            fd,
            memory: None,
        })
    }

    /// Gives the machine its memory.
    ///
    /// # Errors
    /// KVM refused.
    pub fn set_memory(&mut self, memory: &GuestMemory) -> Result<(), KvmError> {
        let error = |source| KvmError {
            operation: "give the machine its memory (KVM_SET_USER_MEMORY_REGION)",
            source,
        };
        for (slot, region) in (0..).zip(memory.iter()) {
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|source| error(io::Error::other(source)))?;
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host.expose_provenance() as u64,
            };
            // SAFETY: the range is mapped, and stays so while `self.memory` holds it, which is set below and
            // never taken back. Regions do not overlap.
            #[allow(unsafe_code)]
            let result = unsafe { self.fd.set_user_memory_region(region) };
            result.map_err(|source| error(source.into()))?;
        }
        self.memory = Some(memory.clone());
        Ok(())
    }

    /// Makes the CPU with this number, which is its APIC id.
    ///
    /// # Errors
    /// KVM refused.
    pub fn create_vcpu(&self, number: u8) -> Result<Vcpu, KvmError> {
        let fd = self
            .fd
            .create_vcpu(number.into())
            .map_err(|error| KvmError::new("make a CPU (KVM_CREATE_VCPU)", error))?;
        Ok(Vcpu::new(number, fd))
    }

    /// Raises the ISA interrupt `line` whenever `event` is signalled.
    ///
    /// # Errors
    /// KVM refused.
    pub fn connect_line(&self, line: u32, event: &EventFd) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(event, line)
            .map_err(|error| KvmError::new("connect an interrupt (KVM_IRQFD)", error))
    }

    /// What PCI functions get of the machine.
    #[must_use]
    pub fn pci_host(&self) -> Arc<dyn PciHost> {
        Arc::new(KvmPciHost {
            fd: self.fd.clone(),
            routes: self.routes.clone(),
        })
    }
}

struct KvmPciHost {
    fd: Arc<VmFd>,
    routes: Arc<Routes>,
}

impl PciHost for KvmPciHost {
    fn interrupt(&self) -> io::Result<Box<dyn MsiVector>> {
        Ok(Box::new(self.routes.vector()?))
    }

    fn add_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.fd.register_ioevent(event, &address, NoDatamatch)?)
    }

    fn remove_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.fd.unregister_ioevent(event, &address, NoDatamatch)?)
    }
}
