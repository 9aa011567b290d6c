//! x86-64: what a vCPU is ([`cpuid`], [`msrs`]), the state it starts in ([`registers`], [`gdt`], [`page_tables`]),
//! and what a kernel is told at its entry ([`start_info`] for PVH, [`boot_params`] for the Linux boot protocol,
//! [`mp_table`] for its vCPUs). Everything here computes values or writes guest memory before the guest runs.

pub mod boot_params;
pub mod cpuid;
pub mod gdt;
pub mod mp_table;
pub mod msrs;
pub mod page_tables;
pub mod registers;
pub mod start_info;

/// A boot structure does not fit into guest memory.
#[derive(Debug, thiserror::Error)]
#[error("write {what} at {address:#x}")]
pub struct WriteError {
    /// The structure.
    pub what: &'static str,
    /// Its guest-physical address.
    pub address: u64,
    /// Why.
    #[source]
    pub source: vm_memory::GuestMemoryError,
}
