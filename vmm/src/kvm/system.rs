//! `/dev/kvm`: whether there is a KVM that can do what a machine needs, and what its CPUs can be.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::KvmError;
use super::vm::Vm;

const PATH: &str = "/dev/kvm";

/// What a machine needs of KVM.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "an interrupt controller (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "interrupts by eventfd (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "doorbells by eventfd (KVM_CAP_IOEVENTFD)"),
    (
        Cap::UserMemory,
        "memory of the process (KVM_CAP_USER_MEMORY)",
    ),
    (
        Cap::SetTssAddr,
        "a place for the task state segment (KVM_CAP_SET_TSS_ADDR)",
    ),
    (Cap::ExtCpuid, "CPUID of choice (KVM_CAP_EXT_CPUID)"),
];

/// Why there is no KVM to use.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// `/dev/kvm` is not there.
    #[error(
        "{PATH} does not exist: this kernel has no KVM, or its module (kvm_intel, kvm_amd) is not loaded"
    )]
    Missing,
    /// It may not be opened.
    #[error("{PATH} may not be opened: this process needs read and write permission for it")]
    Forbidden,
    /// It cannot be opened.
    #[error("open {PATH}")]
    Open(#[source] io::Error),
    /// It speaks another version.
    #[error("{PATH} speaks version {0} of the KVM interface, {KVM_API_VERSION} is needed")]
    Version(i32),
    /// It lacks something.
    #[error("this KVM has not got {0}")]
    Lacks(&'static str),
    /// It refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// An open `/dev/kvm`.
pub struct System {
    kvm: Kvm,
}

impl System {
    /// Opens `/dev/kvm` and checks that it has what a machine needs.
    ///
    /// # Errors
    /// See [`SystemError`].
    pub fn open() -> Result<Self, SystemError> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(PATH)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => SystemError::Missing,
                io::ErrorKind::PermissionDenied => SystemError::Forbidden,
                _ => SystemError::Open(error),
            })?;
        let fd = OwnedFd::from(file).into_raw_fd();
        // SAFETY: the descriptor is an open /dev/kvm, and nothing else owns it.
        #[allow(unsafe_code)]
        let kvm = unsafe { Kvm::from_raw_fd(fd) };
        let version = kvm.get_api_version();
        if i64::from(version) != i64::from(KVM_API_VERSION) {
            return Err(SystemError::Version(version));
        }
        match NEEDED
            .iter()
            .find(|(capability, _)| !kvm.check_extension(*capability))
        {
            Some((_, name)) => Err(SystemError::Lacks(name)),
            None => Ok(Self { kvm }),
        }
    }

    /// Makes a machine without memory and CPUs.
    ///
    /// # Errors
    /// KVM refused.
    pub fn create_vm(&self) -> Result<Vm, KvmError> {
        let fd = self
            .kvm
            .create_vm()
            .map_err(|error| KvmError::new("make a machine (KVM_CREATE_VM)", error))?;
        Vm::new(fd)
    }

    /// What KVM can show a guest in CPUID.
    ///
    /// # Errors
    /// KVM refused.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| KvmError::new("ask for CPUID (KVM_GET_SUPPORTED_CPUID)", error))
    }

    /// Whether local APICs have the TSC deadline timer.
    #[must_use]
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("System")
    }
}
