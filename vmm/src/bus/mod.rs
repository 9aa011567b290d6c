//! Where accesses of vCPUs to ports and to memory without backing go: one [`Bus`] for each of the two address
//! spaces. Called in the threads of the vCPUs; devices are attached and moved while vCPUs run.

use std::sync::{Arc, PoisonError, RwLock};

/// A range of a bus. Offsets are relative to the start of the range.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset`. `data` holds ones, which is what a bus without an answer reads as.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Range {
    start: u64,
    size: u64,
    device: Arc<dyn BusDevice>,
}

/// An address space. Of ranges that overlap (a guest can make BARs do so) the one mapped first answers.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<Vec<Range>>,
}

impl Bus {
    /// Maps `device` at `start..start + size`.
    pub fn map(&self, start: u64, size: u64, device: Arc<dyn BusDevice>) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.push(Range {
            start,
            size,
            device,
        });
    }

    /// Takes away what was mapped for `device` at `start`.
    pub fn unmap(&self, start: u64, device: &Arc<dyn BusDevice>) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.retain(|range| range.start != start || !Arc::ptr_eq(&range.device, device));
    }

    /// Reads; addresses that nothing answers at read as ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address) {
            device.read(offset, data);
        }
    }

    /// Writes; addresses that nothing answers at take everything.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(Arc<dyn BusDevice>, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().find_map(|range| {
            let offset = address.checked_sub(range.start)?;
            (offset < range.size).then(|| (range.device.clone(), offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Register(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Register {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = u8::try_from(offset).unwrap();
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_finds_its_device_and_its_offset() {
        let bus = Bus::default();
        let register = Arc::new(Register::default());
        let device: Arc<dyn BusDevice> = register.clone();
        bus.map(0x3f8, 8, device.clone());
        let mut data = [0; 2];
        for (address, expected) in [(0x3f7, 0xff), (0x3f8, 0), (0x3ff, 7), (0x400, 0xff)] {
            bus.read(address, &mut data);
            assert_eq!(data, [expected, 0xff]);
        }
        bus.write(0x3f9, &[1, 2]);
        assert_eq!(*register.0.lock().unwrap(), [(1, vec![1, 2])]);
        bus.unmap(0x3f8, &device);
        bus.read(0x3f8, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn a_range_at_the_end_of_the_address_space_does_not_overflow() {
        let bus = Bus::default();
        bus.map(u64::MAX - 1, u64::MAX, Arc::new(Register::default()));
        let mut data = [0];
        bus.read(u64::MAX, &mut data);
        assert_eq!(data, [1]);
        bus.read(0, &mut data);
        assert_eq!(data, [0xff]);
    }

    #[test]
    fn the_first_of_overlapping_ranges_answers() {
        let bus = Bus::default();
        bus.map(0x1000, 0x1000, Arc::new(Register::default()));
        bus.map(0x1010, 0x10, Arc::new(Register::default()));
        let mut data = [0];
        bus.read(0x1011, &mut data);
        assert_eq!(data, [0x11]);
    }
}
