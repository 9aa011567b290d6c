//! The hypervisor of hull: one KVM virtual machine per process. `ARCHITECTURE.md` walks through it.

pub mod arch;
pub mod boot;
pub mod bus;
pub mod config;
pub mod control;
pub mod devices;
pub mod jail;
pub mod kvm;
pub mod machine;
pub mod memory;
