//! PCI without ACPI: one bus behind type 1 configuration access ([`root`]), functions with memory BARs
//! ([`function`], [`configuration`]) and MSI-X ([`msix`]).
//!
//! Configuration and BARs are accessed in the threads of the vCPUs; functions are attached and detached by the main
//! thread at any time. What functions need of the machine is in [`host`].

pub mod configuration;
pub mod function;
pub mod host;
pub mod host_bridge;
pub mod msix;
pub mod pvpanic;
pub mod root;
