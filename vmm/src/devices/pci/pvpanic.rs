//! pvpanic, by which a guest's kernel tells that it panics (QEMU `docs/specs/pvpanic.rst`): one byte in a BAR.

use super::configuration::{ConfigurationSpace, Identity};
use super::function::PciFunction;

const BAR_SIZE: u32 = 0x1000;
const PANICKED: u8 = 1;

/// The function.
pub struct PvPanic {
    configuration: ConfigurationSpace,
    on_panic: Box<dyn Fn() + Send>,
}

impl PvPanic {
    /// Calls `on_panic`, in the thread of the vCPU, each time the guest tells of a panic.
    pub fn new(on_panic: impl Fn() + Send + 'static) -> Self {
        let configuration = ConfigurationSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0011,
            class: 0x08_8000,
            revision: 1,
            subsystem: (0x1af4, 0x1100),
        })
        .with_bar(0, BAR_SIZE);
        Self {
            configuration,
            on_panic: Box::new(on_panic),
        }
    }
}

impl PciFunction for PvPanic {
    fn configuration(&self) -> &ConfigurationSpace {
        &self.configuration
    }

    fn configuration_mut(&mut self) -> &mut ConfigurationSpace {
        &mut self.configuration
    }

    /// The events that the guest may tell of.
    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = PANICKED;
        }
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        if offset == 0 && data.first().is_some_and(|byte| byte & PANICKED != 0) {
            (self.on_panic)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_panic_is_told_and_nothing_else_is() {
        let count = Arc::new(AtomicU32::new(0));
        let counter = count.clone();
        let mut device = PvPanic::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let mut events = [0xff; 4];
        device.read_bar(0, 0, &mut events);
        assert_eq!(events, [1, 0, 0, 0]);
        for (offset, data, panics) in [(0, &[2][..], 0), (1, &[1], 0), (0, &[], 0), (0, &[1], 1)] {
            device.write_bar(0, offset, data);
            assert_eq!(count.load(Ordering::Relaxed), panics);
        }
    }
}
