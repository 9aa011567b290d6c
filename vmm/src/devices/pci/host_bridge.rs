//! The host bridge at 00:00.0: a kernel that probes for type 1 configuration access looks for one.

use super::configuration::{ConfigurationSpace, Identity};
use super::function::PciFunction;

/// A bridge with nothing but its identity.
pub struct HostBridge {
    configuration: ConfigurationSpace,
}

impl Default for HostBridge {
    fn default() -> Self {
        Self {
            configuration: ConfigurationSpace::new(Identity {
                vendor: 0x1b36,
                device: 0x0008,
                class: 0x06_0000,
                revision: 0,
                subsystem: (0, 0),
            }),
        }
    }
}

impl PciFunction for HostBridge {
    fn configuration(&self) -> &ConfigurationSpace {
        &self.configuration
    }

    fn configuration_mut(&mut self) -> &mut ConfigurationSpace {
        &mut self.configuration
    }

    fn read_bar(&mut self, _bar: usize, _offset: u64, _data: &mut [u8]) {}

    fn write_bar(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {}
}
