//! Guest memory: where it lies in the guest's physical address space, and what backs it.

/// Guest memory, mapped into this process.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
/// Guest memory as device workers hold it: each access takes the map of the moment, so memory can be added.
pub type SharedMemory = vm_memory::GuestMemoryAtomic<GuestMemory>;
