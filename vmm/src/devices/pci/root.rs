//! The root of the only bus: type 1 configuration access (PCI 3.0 §3.2.2.3.2), the slots, and the BARs' way onto the
//! memory bus.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::configuration::{BARS, SIZE};
use super::function::PciFunction;
use crate::bus::{Bus, BusDevice};

/// The first port of configuration access: the address register, then the data register.
pub const PORT: u64 = 0xcf8;
/// Ports.
pub const PORTS: u64 = 8;

const SLOTS: u8 = 32;
const FUNCTIONS: u8 = 8;
const ENABLE: u32 = 1 << 31;

/// Where a function is on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    slot: u8,
    function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.{}", self.slot, self.function)
    }
}

/// Why a function cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The bus is full.
    #[error("all functions of all {SLOTS} PCI slots are taken")]
    NoSlot,
    /// There is no room for a BAR.
    #[error("no room for a BAR of {size} bytes is left below 4 GiB")]
    NoAddress {
        /// The BAR's size.
        size: u32,
    },
}

/// The root.
pub struct PciRoot {
    memory_bus: Arc<Bus>,
    window: Range<u64>,
    /// The address register.
    address: Mutex<u32>,
    functions: Mutex<BTreeMap<Address, Arc<Attached>>>,
}

/// A function on the bus.
struct Attached {
    /// Whether its slot may have others.
    shares_slot: bool,
    function: Arc<Mutex<Box<dyn PciFunction>>>,
    mapped: Mutex<Mapped>,
}

#[derive(Default)]
struct Mapped {
    /// The function has left the bus: nothing is mapped any more.
    gone: bool,
    bars: [Option<(u64, Arc<dyn BusDevice>)>; BARS],
}

impl PciRoot {
    /// A root without functions, whose BARs go to `window` of the memory bus until the guest moves them.
    #[must_use]
    pub fn new(memory_bus: Arc<Bus>, window: Range<u64>) -> Self {
        Self {
            memory_bus,
            window,
            address: Mutex::new(0),
            functions: Mutex::default(),
        }
    }

    /// Puts a function into the lowest free slot, which it has for itself, and gives its BARs addresses that no other
    /// function has.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(&self, function: Box<dyn PciFunction>) -> Result<Address, AttachError> {
        self.attach_at(function, false)
    }

    /// The same at the lowest free address of a slot that others of its kind may share. A kernel looks beyond function
    /// 0 only if that is there and says that there may be more; so it does from the start, and no function is put into
    /// a slot without it. One that goes leaves the others where they are.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach_sharing(&self, function: Box<dyn PciFunction>) -> Result<Address, AttachError> {
        self.attach_at(function, true)
    }

    fn attach_at(
        &self,
        mut function: Box<dyn PciFunction>,
        shares_slot: bool,
    ) -> Result<Address, AttachError> {
        let mut functions = lock(&self.functions);
        let address = free_function(&functions, shares_slot).ok_or(AttachError::NoSlot)?;
        if shares_slot {
            function.configuration_mut().set_multi_function();
        }
        let mut taken: Vec<Range<u64>> = Vec::new();
        for attached in functions.values() {
            taken.extend(bar_ranges(lock(&attached.function).as_ref()));
        }
        for bar in 0..BARS {
            let size = function.configuration().bar_size(bar);
            if size == 0 {
                continue;
            }
            let start = self
                .free_address(&taken, size)
                .ok_or(AttachError::NoAddress { size })?;
            taken.push(u64::from(start)..u64::from(start) + u64::from(size));
            function.configuration_mut().set_bar_address(bar, start);
        }
        functions.insert(
            address,
            Arc::new(Attached {
                shares_slot,
                function: Arc::new(Mutex::new(function)),
                mapped: Mutex::default(),
            }),
        );
        Ok(address)
    }

    /// Takes a function from the bus and shuts it down. False if there is none.
    pub fn detach(&self, address: Address) -> bool {
        let Some(attached) = lock(&self.functions).remove(&address) else {
            return false;
        };
        {
            let mut mapped = lock(&attached.mapped);
            mapped.gone = true;
            for (address, window) in mapped.bars.iter_mut().filter_map(Option::take) {
                self.memory_bus.unmap(address, &window);
            }
        }
        lock(&attached.function).shut_down();
        true
    }

    /// Shuts all functions down, for the end of the machine.
    pub fn shut_down(&self) {
        let addresses: Vec<Address> = lock(&self.functions).keys().copied().collect();
        for address in addresses {
            self.detach(address);
        }
    }

    /// The lowest address for a BAR of `size` bytes.
    fn free_address(&self, taken: &[Range<u64>], size: u32) -> Option<u32> {
        let size = u64::from(size);
        let mut address = self.window.start.next_multiple_of(size);
        while address + size <= self.window.end {
            match taken
                .iter()
                .find(|range| range.start < address + size && address < range.end)
            {
                None => return u32::try_from(address).ok(),
                Some(range) => address = range.end.next_multiple_of(size),
            }
        }
        None
    }

    /// The function, and the offset in its configuration space, that the address register and a data port select.
    fn select(&self, port: u64) -> Option<(Arc<Attached>, usize)> {
        let selected = *lock(&self.address);
        let [register, place, bus, _] = selected.to_le_bytes();
        if selected & ENABLE == 0 || bus != 0 {
            return None;
        }
        let address = Address {
            slot: place >> 3,
            function: place & 7,
        };
        let attached = lock(&self.functions).get(&address)?.clone();
        let offset = usize::from(register & 0xfc) + usize::try_from(port & 0x3).ok()?;
        Some((attached, offset))
    }

    fn read_data(&self, port: u64, data: &mut [u8]) {
        if let Some((attached, offset)) = self.select(port)
            && offset + data.len() <= SIZE
        {
            lock(&attached.function).read_configuration(offset, data);
        }
    }

    fn write_data(&self, port: u64, data: &[u8]) {
        let Some((attached, offset)) = self.select(port) else {
            return;
        };
        if offset + data.len() > SIZE {
            return;
        }
        let mut mapped = lock(&attached.mapped);
        if mapped.gone {
            return;
        }
        let wanted = {
            let mut function = lock(&attached.function);
            function.write_configuration(offset, data);
            function.decoded_bars()
        };
        for (bar, wanted) in wanted.into_iter().enumerate() {
            self.remap(&attached, bar, wanted, &mut mapped.bars[bar]);
        }
    }

    /// Makes the memory bus agree with where a BAR is decoded.
    fn remap(
        &self,
        attached: &Attached,
        bar: usize,
        wanted: Option<u64>,
        current: &mut Option<(u64, Arc<dyn BusDevice>)>,
    ) {
        if wanted == current.as_ref().map(|(address, _)| *address) {
            return;
        }
        if let Some((address, window)) = current.take() {
            self.memory_bus.unmap(address, &window);
        }
        if let Some(address) = wanted {
            let size = lock(&attached.function).configuration().bar_size(bar);
            let window: Arc<dyn BusDevice> = Arc::new(BarWindow {
                function: attached.function.clone(),
                bar,
            });
            self.memory_bus.map(address, size.into(), window.clone());
            *current = Some((address, window));
        }
    }
}

impl BusDevice for PciRoot {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&lock(&self.address).to_le_bytes()),
            (4..8, 1 | 2 | 4) => self.read_data(offset, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => *lock(&self.address) = u32::from_le_bytes([a, b, c, d]),
            (4..8, data) if matches!(data.len(), 1 | 2 | 4) => self.write_data(offset, data),
            _ => {}
        }
    }
}

/// A BAR on the memory bus.
struct BarWindow {
    function: Arc<Mutex<Box<dyn PciFunction>>>,
    bar: usize,
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.function).read_bar(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(&self.function).write_bar(self.bar, offset, data);
    }
}

/// The lowest address for a function that shares its slot, or does not.
fn free_function(
    functions: &BTreeMap<Address, Arc<Attached>>,
    shares_slot: bool,
) -> Option<Address> {
    (0..SLOTS).find_map(|slot| {
        let at = |function| Address { slot, function };
        let first = at(0);
        match functions.get(&first) {
            Some(attached) if attached.shares_slot && shares_slot => (1..FUNCTIONS)
                .map(at)
                .find(|address| !functions.contains_key(address)),
            Some(_) => None,
            // What is left of a shared slot is for those that share.
            None => (shares_slot || functions.range(first..=at(FUNCTIONS - 1)).next().is_none())
                .then_some(first),
        }
    })
}

fn bar_ranges(function: &dyn PciFunction) -> impl Iterator<Item = Range<u64>> {
    (0..BARS).filter_map(|bar| {
        let configuration = function.configuration();
        let size = u64::from(configuration.bar_size(bar));
        let start = u64::from(configuration.bar_address(bar));
        (size > 0 && start > 0).then(|| start..start + size)
    })
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
