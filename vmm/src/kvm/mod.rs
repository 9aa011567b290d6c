//! KVM, one file for each kind of file descriptor: [`system`] is `/dev/kvm`, [`vm`] a machine, [`vcpu`] a CPU of it
//! (`Documentation/virt/kvm/api.rst`), [`statistics`] what is counted of that. [`msi`] are interrupts by message: routes
//! and irqfds.
//!
//! Nothing here knows a device.

pub mod msi;
pub mod statistics;
pub mod system;
pub mod vcpu;
pub mod vm;

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub struct KvmError {
    /// The ioctl, and what it was for.
    pub operation: &'static str,
    /// KVM's answer.
    #[source]
    pub source: std::io::Error,
}

impl KvmError {
    fn new(operation: &'static str, error: vmm_sys_util::errno::Error) -> Self {
        Self {
            operation,
            source: error.into(),
        }
    }
}
