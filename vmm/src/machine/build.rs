//! Makes a machine from its configuration and from what was opened for it. Runs in the main thread, inside the jail.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hull_vmm_protocol::config::VmConfig;
use hull_vmm_protocol::outcome::Cause;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::console_log::ConsoleLog;
use super::devices::Devices;
use super::end::{End, EndReport};
use super::growth::Growth;
use super::vcpus::{VcpuThreads, WaitingVcpus};
use super::{Machine, MachineError};
use crate::arch::x86_64::registers::Entry;
use crate::arch::x86_64::{cpuid, mp_table, msrs};
use crate::boot::{self, BootFile, command_line};
use crate::bus::Bus;
use crate::devices::legacy::reset::{self, ResetPort};
use crate::devices::legacy::serial::{self, SerialPort};
use crate::devices::pci::host_bridge::HostBridge;
use crate::devices::pci::pvpanic::PvPanic;
use crate::devices::pci::root::{self, PciRoot};
use crate::devices::virtio::console::device::Console;
use crate::devices::virtio::rng::device::Rng;
use crate::devices::virtio::vsock::device::Vsock;
use crate::kvm::system::System;
use crate::kvm::vcpu::{Environment, StopSignal, Vcpu};
use crate::kvm::vm::Vm;
use crate::memory::layout::{Layout, PCI_WINDOW};
use crate::memory::{self, SharedMemory};

/// What is opened for a machine before the jail is entered.
pub struct Opened {
    /// KVM.
    pub system: System,
    /// The kernel.
    pub kernel: BootFile,
    /// The initial RAM file system.
    pub initramfs: BootFile,
    /// The console's log.
    pub console: ConsoleLog,
    /// Where programs of the host connect to the guest.
    pub vsock: UnixListener,
    /// Where the guest's connections go: this path, `_`, and the port.
    pub vsock_prefix: PathBuf,
    /// The entropy device, whose source is open.
    pub rng: Rng,
}

/// Makes the machine. Its vCPUs do not run yet.
///
/// # Errors
/// See [`MachineError`].
pub fn build(config: &VmConfig, mut opened: Opened) -> Result<Machine, MachineError> {
    let layout = Layout::new(config.memory_mib).growing_to(config.max_memory_mib);
    let memory = memory::map(&layout)?;
    let mut vm = opened.system.create_vm()?;
    vm.set_memory(&memory)?;
    let line = command_line::compose(
        config.vcpus,
        config.max_vcpus,
        config.early_serial,
        &config.cmdline,
    );
    let entry = boot::load(
        &memory,
        &layout,
        &mut opened.kernel,
        &mut opened.initramfs,
        &line,
    )?;
    mp_table::write(&memory, config.max_vcpus).map_err(boot::BootError::Structure)?;
    let vcpus = make_vcpus(&opened.system, &vm, config.max_vcpus, entry)?;
    let mut statistics = Vec::new();
    for vcpu in &vcpus {
        statistics.extend(vcpu.statistics()?);
    }

    let end = EndReport::new().map_err(|source| host("make an eventfd", source))?;
    let environment = Environment {
        ports: Arc::default(),
        memory: Arc::default(),
        exits: Arc::new(AtomicU64::new(0)),
        stop: StopSignal::default(),
    };
    let pci = Arc::new(PciRoot::new(environment.memory.clone(), PCI_WINDOW));
    environment.ports.map(root::PORT, root::PORTS, pci.clone());
    add_legacy_devices(
        &vm,
        &environment.ports,
        &end,
        config.early_serial,
        &opened.console,
    )?;
    pci.attach(Box::new(HostBridge::default()))?;
    let panic = end.clone();
    pci.attach(Box::new(PvPanic::new(move || panic.tell_panic())))?;
    let mut devices = Devices::new(SharedMemory::new(memory), vm.pci_host(), pci.clone());
    let vsock = Vsock::new(config.vsock.cid, opened.vsock, opened.vsock_prefix)
        .map_err(|source| host("set up the vsock device's socket", source))?;
    devices.attach_permanent("vsock", Box::new(vsock))?;
    let console = Console::new(Box::new(opened.console.clone()));
    devices.attach_permanent("console", Box::new(console))?;
    devices.attach_permanent("rng", Box::new(opened.rng))?;
    Ok(Machine {
        growth: Growth::new(config, layout.growth()),
        devices,
        console: opened.console,
        end,
        pci,
        environment,
        statistics,
        waiting: WaitingVcpus(vcpus),
        running: VcpuThreads::default(),
    })
}

/// Makes all vCPUs. The first starts at `entry`; the others wait until the guest starts them.
fn make_vcpus(
    system: &System,
    vm: &Vm,
    count: u8,
    entry: Entry,
) -> Result<Vec<Vcpu>, MachineError> {
    let supported = system.supported_cpuid()?;
    let tsc_deadline = system.has_tsc_deadline();
    let msrs = msrs::at_boot();
    let mut vcpus = Vec::new();
    for number in 0..count {
        let place = cpuid::Place {
            vcpu: number,
            of: count,
        };
        let cpuid = cpuid::of_vcpu(&supported, place, tsc_deadline).map_err(MachineError::Cpuid)?;
        let vcpu = vm.create_vcpu(number)?;
        vcpu.set_features(&cpuid, &msrs)?;
        if number == 0 {
            vcpu.set_start(&entry.registers(), |reset| entry.system_registers(reset))?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn add_legacy_devices(
    vm: &Vm,
    ports: &Bus,
    end: &EndReport,
    early_serial: bool,
    console: &ConsoleLog,
) -> Result<(), MachineError> {
    let report = end.clone();
    let reset = ResetPort::new(move || {
        report.tell(End::new(Cause::GuestReset, "the guest reset its machine"));
    });
    ports.map(reset::PORT, reset::PORTS, Arc::new(reset));
    if early_serial {
        let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|source| host("make an eventfd", source))?;
        vm.connect_line(serial::INTERRUPT, &interrupt)?;
        let port = SerialPort::new(interrupt, Box::new(console.clone()));
        ports.map(serial::PORT, serial::PORTS, Arc::new(port));
    }
    Ok(())
}

fn host(operation: &'static str, source: std::io::Error) -> MachineError {
    MachineError::Host { operation, source }
}
