//! virtio over PCI (virtio 1.2 §4.1), modern devices only: [`function`] is the PCI function around a device,
//! [`common_configuration`] its status machine and queue setup, [`interrupt`] its MSI-X vectors.
//!
//! Registers are accessed in the threads of the vCPUs. A device's worker touches only its queues, guest memory, and
//! the interrupt, so stopping it from a register write cannot lock up.

pub mod common_configuration;
pub mod function;
pub mod interrupt;
