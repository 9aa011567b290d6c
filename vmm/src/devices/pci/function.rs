//! A PCI function, as the root sees it.

use super::configuration::{BARS, ConfigurationSpace};

/// A function behind the root. All calls come one at a time.
pub trait PciFunction: Send {
    /// Its configuration space as it is now.
    fn configuration(&self) -> &ConfigurationSpace;

    /// Its configuration space, for the root to place its BARs.
    fn configuration_mut(&mut self) -> &mut ConfigurationSpace;

    /// The guest reads `data.len()` bytes of configuration space at `offset`; both lie within it.
    fn read_configuration(&mut self, offset: usize, data: &mut [u8]) {
        self.configuration().read(offset, data);
    }

    /// The guest writes configuration space at `offset`; both lie within it. The root asks for the BARs afterwards.
    fn write_configuration(&mut self, offset: usize, data: &[u8]) {
        self.configuration_mut().write(offset, data);
    }

    /// The guest reads at `offset` of BAR number `bar`.
    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// The guest writes at `offset` of BAR number `bar`.
    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]);

    /// The function leaves the bus, or the machine ends: stop working. When this returns, nothing touches guest
    /// memory for it.
    fn shut_down(&mut self) {}

    /// Where its BARs are decoded now.
    fn decoded_bars(&self) -> [Option<u64>; BARS] {
        std::array::from_fn(|bar| self.configuration().decoded_bar(bar))
    }
}
