//! The devices that a guest sees. They know guest memory, and neither KVM nor the machine that assembles them.

pub mod legacy;
pub mod pci;
pub mod virtio;
