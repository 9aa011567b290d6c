//! The few devices of a PC that a kernel without ACPI meets at fixed ports: [`reset`] at the keyboard controller's,
//! [`serial`] for an early console on request.

pub mod reset;
pub mod serial;
