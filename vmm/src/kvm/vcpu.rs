//! A CPU of a machine, and the loop that runs it.
//!
//! Each vCPU has a thread. It leaves the loop when the guest ends the machine in a way that only a vCPU sees, when
//! KVM cannot go on, or when it is told to stop: [`StopSignal`] interrupts `KVM_RUN` by a signal.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvm_bindings::{CpuId, KVM_INTERNAL_ERROR_EMULATION, Msrs, kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::KvmError;
use super::statistics::Statistics;
use crate::bus::Bus;

/// Where a vCPU's accesses go, and what it has in common with the others.
#[derive(Clone)]
pub struct Environment {
    /// Port I/O.
    pub ports: Arc<Bus>,
    /// Memory that nothing backs.
    pub memory: Arc<Bus>,
    /// Exits to user space, over all vCPUs.
    pub exits: Arc<AtomicU64>,
    /// Set to make all vCPUs leave their loops.
    pub stop: StopSignal,
}

/// Tells vCPUs to stop.
#[derive(Clone, Debug, Default)]
pub struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    /// Sets the signal's handler, once for the process: it does nothing but interrupt `KVM_RUN`. Lets the signal
    /// through to this thread and all that it starts, whatever the process was started with.
    ///
    /// # Errors
    /// The host refused.
    pub fn install_handler() -> io::Result<()> {
        extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(Self::number(), interrupt)?;
        unblock_signal(Self::number()).map_err(|error| io::Error::other(error.to_string()))
    }

    /// The signal that interrupts a vCPU's thread. It may have to be sent again: a thread between looking at the
    /// flag and `KVM_RUN` misses it.
    #[must_use]
    pub fn number() -> libc::c_int {
        SIGRTMIN()
    }

    /// From now on every vCPU that looks leaves its loop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why a vCPU has left its loop.
#[derive(Debug, thiserror::Error)]
pub enum RunEnd {
    /// It was told to.
    #[error("stopped")]
    Stopped,
    /// A triple fault (`KVM_EXIT_SHUTDOWN`).
    #[error("triple fault")]
    TripleFault,
    /// KVM had to emulate an instruction and could not.
    #[error("KVM cannot emulate the instruction at {address:#x} (bytes {instruction})")]
    CannotEmulate {
        /// The bytes there, in hexadecimal, if KVM gave them.
        instruction: String,
        /// Where it is.
        address: u64,
    },
    /// Another internal error of KVM.
    #[error("internal error {suberror} of KVM")]
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
    },
    /// The CPU refused the vCPU's state.
    #[error("the CPU refuses to enter the guest (reason {reason:#x})")]
    EntryFailed {
        /// The hardware's reason.
        reason: u64,
    },
    /// An exit that KVM does not make for machines like ours.
    #[error("unexpected exit: {exit}")]
    Unexpected {
        /// The exit.
        exit: String,
    },
    /// `KVM_RUN` failed.
    #[error("run a CPU (KVM_RUN)")]
    Failed(#[source] io::Error),
}

/// A vCPU.
pub struct Vcpu {
    number: u8,
    fd: VcpuFd,
}

impl Vcpu {
    pub(super) fn new(number: u8, fd: VcpuFd) -> Self {
        Self { number, fd }
    }

    /// Its number, which is its APIC id.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// What KVM counts of it, if it counts.
    ///
    /// # Errors
    /// KVM refused.
    pub fn statistics(&self) -> Result<Option<Statistics>, KvmError> {
        Statistics::open(&self.fd).map_err(|source| KvmError {
            operation: "read what is counted (KVM_GET_STATS_FD)",
            source,
        })
    }

    /// Sets what it says of itself, and its model-specific registers.
    ///
    /// # Errors
    /// KVM refused.
    pub fn set_features(&self, cpuid: &CpuId, msrs: &Msrs) -> Result<(), KvmError> {
        self.fd
            .set_cpuid2(cpuid)
            .map_err(|error| KvmError::new("set CPUID (KVM_SET_CPUID2)", error))?;
        let set = self
            .fd
            .set_msrs(msrs)
            .map_err(|error| KvmError::new("set registers (KVM_SET_MSRS)", error))?;
        if set == msrs.as_slice().len() {
            Ok(())
        } else {
            Err(KvmError {
                operation: "set registers (KVM_SET_MSRS)",
                source: io::ErrorKind::Unsupported.into(),
            })
        }
    }

    /// Sets the state that it starts in; `system` makes the system registers from those at reset.
    ///
    /// # Errors
    /// KVM refused.
    pub fn set_start(
        &self,
        registers: &kvm_regs,
        system: impl FnOnce(kvm_sregs) -> kvm_sregs,
    ) -> Result<(), KvmError> {
        let reset = self
            .fd
            .get_sregs()
            .map_err(|error| KvmError::new("read registers (KVM_GET_SREGS)", error))?;
        self.fd
            .set_sregs(&system(reset))
            .map_err(|error| KvmError::new("set registers (KVM_SET_SREGS)", error))?;
        self.fd
            .set_regs(registers)
            .map_err(|error| KvmError::new("set registers (KVM_SET_REGS)", error))
    }

    /// Runs the guest until the end. Blocks in KVM while the vCPU halts or waits to be started.
    pub fn run(&mut self, environment: &Environment) -> RunEnd {
        loop {
            if environment.stop.is_set() {
                return RunEnd::Stopped;
            }
            let exit = self.fd.run();
            environment.exits.fetch_add(1, Ordering::Relaxed);
            match exit {
                Ok(VcpuExit::IoIn(port, data)) => environment.ports.read(port.into(), data),
                Ok(VcpuExit::IoOut(port, data)) => environment.ports.write(port.into(), data),
                Ok(VcpuExit::MmioRead(address, data)) => environment.memory.read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => environment.memory.write(address, data),
                Ok(VcpuExit::Intr | VcpuExit::Hlt) => {}
                Ok(VcpuExit::Shutdown) => return RunEnd::TripleFault,
                Ok(VcpuExit::InternalError) => return self.internal_error(),
                Ok(VcpuExit::FailEntry(reason, _)) => return RunEnd::EntryFailed { reason },
                Ok(other) => {
                    return RunEnd::Unexpected {
                        exit: format!("{other:?}"),
                    };
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return RunEnd::Failed(error.into()),
            }
        }
    }

    fn internal_error(&mut self) -> RunEnd {
        let address = self.fd.get_regs().map_or(0, |registers| registers.rip);
        // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, which fills these members; all are plain numbers, so any
        // bytes are a value of them.
        #[allow(unsafe_code)]
        let (suberror, words, data) = unsafe {
            let error = self.fd.get_kvm_run().__bindgen_anon_1.internal;
            (error.suberror, error.ndata, error.data)
        };
        if suberror != KVM_INTERNAL_ERROR_EMULATION {
            return RunEnd::InternalError { suberror };
        }
        // The first word has flags: bit 0 says that a byte count and the instruction's bytes follow, at most 15.
        let bytes: Vec<u8> = data[1..3]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let given = words >= 3 && data[0] & 1 != 0;
        let length = if given {
            usize::from(bytes[0]).min(15)
        } else {
            0
        };
        RunEnd::CannotEmulate {
            instruction: bytes[1..=length]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(" "),
            address,
        }
    }
}
