//! The machine: puts memory, KVM, buses and devices together ([`build`]), attaches and detaches devices
//! ([`devices`]), runs the vCPUs ([`vcpus`]), and ends.
//!
//! It is owned by the main thread. vCPU threads reach the buses; device workers reach guest memory and their
//! interrupts; all of them tell of the end through [`end::EndReport`] and print through [`console_log::ConsoleLog`].
//!
//! Order at the end: the vCPUs stop first, then the devices, so that nothing runs that could start a device again.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hull_vmm_protocol::control::VmStatus;

use crate::boot::BootError;
use crate::devices::pci::root::{AttachError, PciRoot};
use crate::kvm::KvmError;
use crate::kvm::statistics::Statistics;
use crate::kvm::vcpu::Environment;
use crate::memory::MemoryError;

pub mod build;
pub mod console_log;
pub mod devices;
pub mod end;
pub mod growth;
pub mod vcpus;

use console_log::ConsoleLog;
use devices::{DeviceError, Devices};
use end::EndReport;
use growth::Growth;
use vcpus::{VcpuThreads, WaitingVcpus};

/// Why a machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// There is nothing to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// CPUID has more entries than KVM takes.
    #[error("CPUID of a vCPU")]
    Cpuid(#[source] vmm_sys_util::fam::Error),
    /// A part of the bus cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A device that every machine has cannot be attached.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The host refused something.
    #[error("{operation}")]
    Host {
        /// What was asked of it.
        operation: &'static str,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
}

/// A machine.
pub struct Machine {
    /// Its devices behind PCI.
    pub devices: Devices,
    /// What its console has printed.
    pub console: ConsoleLog,
    /// Where its end is told.
    pub end: EndReport,
    growth: Growth,
    pci: Arc<PciRoot>,
    environment: Environment,
    /// Of each vCPU.
    statistics: Vec<Statistics>,
    waiting: WaitingVcpus,
    running: VcpuThreads,
}

impl Machine {
    /// Starts the vCPUs.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(&mut self) -> Result<(), MachineError> {
        for vcpu in self.waiting.drain() {
            self.running
                .spawn(vcpu, self.environment.clone(), self.end.clone())
                .map_err(|source| MachineError::Host {
                    operation: "start a vCPU's thread",
                    source,
                })?;
        }
        Ok(())
    }

    /// Stops the vCPUs, then the devices.
    pub fn stop(&mut self) {
        self.environment.stop.set();
        self.running.join();
        self.pci.shut_down();
    }

    /// How the machine is.
    #[must_use]
    pub fn status(&self) -> VmStatus {
        VmStatus {
            pid: std::process::id(),
            exits: self.environment.exits.load(Ordering::Relaxed),
            devices: self.devices.ids(),
            memory_mib: self.growth.memory_mib(),
        }
    }

    /// What KVM has counted of the vCPUs, over all of them. Empty where it does not count.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn vcpu_counters(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut counters = BTreeMap::new();
        for vcpu in &self.statistics {
            for (name, count) in vcpu.read()? {
                *counters.entry(name.to_owned()).or_default() += count;
            }
        }
        Ok(counters)
    }

    /// Asks the guest to have `memory_mib` MiB of memory.
    ///
    /// # Errors
    /// It has more from the start or cannot have so much, or the bus is full.
    pub fn resize_memory(&mut self, memory_mib: u32) -> Result<(), DeviceError> {
        self.growth.resize(&mut self.devices, memory_mib)
    }
}
