//! The hypervisor of hull: one KVM virtual machine per process. `ARCHITECTURE.md` walks through it.

pub mod devices;
pub mod memory;
