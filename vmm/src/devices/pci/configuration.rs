//! The configuration space of a function (PCI 3.0 §6.1 and §6.2): 256 bytes, of which some bits can be written.

/// Bytes of configuration space.
pub const SIZE: usize = 256;
/// BARs of a function.
pub const BARS: usize = 6;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BAR_0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTERRUPT_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const HEADER_MULTI_FUNCTION: u8 = 1 << 7;

/// Who a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface, as in the upper 24 bits of the register at 8.
    pub class: u32,
    /// Revision id.
    pub revision: u8,
    /// Subsystem vendor id and subsystem id.
    pub subsystem: (u16, u16),
}

/// A configuration space.
#[derive(Clone, Debug)]
pub struct ConfigurationSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bar_sizes: [u32; BARS],
    /// Where the next capability goes.
    end: usize,
    /// Where the pointer to it goes.
    link: usize,
}

impl ConfigurationSpace {
    /// A type 0 header without BARs and capabilities.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bar_sizes: [0; BARS],
            end: FIRST_CAPABILITY,
            link: CAPABILITIES_POINTER,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(
            0x08,
            &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes(),
        );
        space.put(0x2c, &identity.subsystem.0.to_le_bytes());
        space.put(0x2e, &identity.subsystem.1.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTERRUPT_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a 32-bit memory BAR, not prefetchable, of `size` bytes: a power of two, 4 KiB or more.
    #[must_use]
    pub fn with_bar(mut self, bar: usize, size: u32) -> Self {
        debug_assert!(size.is_power_of_two() && size >= 0x1000);
        self.bar_sizes[bar] = size;
        self.allow(BAR_0 + 4 * bar, &(!(size - 1)).to_le_bytes());
        self
    }

    /// Adds a capability: its id, its body after the pointer to the next one, and which bits of the body can be
    /// written. Gives its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let offset = self.end;
        self.put(STATUS, &[STATUS_CAPABILITIES]);
        // Offsets are below 256.
        self.put(self.link, &[u8::try_from(offset).unwrap_or(0)]);
        self.put(offset, &[id, 0]);
        self.put(offset + 2, body);
        self.allow(offset + 2, writable);
        self.link = offset + 1;
        self.end = (offset + 2 + body.len()).next_multiple_of(4);
        offset
    }

    /// Says that its slot may have further functions.
    pub fn set_multi_function(&mut self) {
        self.put(HEADER_TYPE, &[HEADER_MULTI_FUNCTION]);
    }

    /// Reads at `offset`; what lies beyond the end is left as it is.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, value) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *byte = *value;
        }
    }

    /// Writes the bits that can be written; what lies beyond the end is ignored.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), value) in bytes.zip(data) {
            *byte = *byte & !writable | value & writable;
        }
    }

    /// The size of a BAR, 0 if there is none.
    #[must_use]
    pub fn bar_size(&self, bar: usize) -> u32 {
        self.bar_sizes[bar]
    }

    /// The address in a BAR's register, whether it is decoded or not.
    #[must_use]
    pub fn bar_address(&self, bar: usize) -> u32 {
        let mut register = [0; 4];
        self.read(BAR_0 + 4 * bar, &mut register);
        u32::from_le_bytes(register)
    }

    /// Puts a BAR at `address`, as firmware does.
    pub fn set_bar_address(&mut self, bar: usize, address: u32) {
        self.write(BAR_0 + 4 * bar, &address.to_le_bytes());
    }

    /// The guest-physical address at which a BAR is decoded: none while there is no such BAR, it has no address, or
    /// the guest has switched memory decoding off.
    #[must_use]
    pub fn decoded_bar(&self, bar: usize) -> Option<u64> {
        let command = u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]]);
        let address = self.bar_address(bar);
        let decoded = self.bar_sizes[bar] != 0 && command & COMMAND_MEMORY != 0 && address != 0;
        decoded.then(|| u64::from(address))
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, bits: &[u8]) {
        self.writable[offset..offset + bits.len()].copy_from_slice(bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigurationSpace {
        ConfigurationSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            class: 0x02_0000,
            revision: 1,
            subsystem: (0x1af4, 1),
        })
        .with_bar(0, 0x8000)
    }

    fn read32(space: &ConfigurationSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_driver_sizes_and_moves_a_bar() {
        let mut space = space();
        assert_eq!(read32(&space, 0), 0x1041_1af4);
        assert_eq!(read32(&space, 8), 0x0200_0001);
        space.write(BAR_0, &[0xff; 4]);
        assert_eq!(read32(&space, BAR_0), 0xffff_8000);
        assert_eq!(space.decoded_bar(0), None);
        space.write(BAR_0, &0xc001_2345_u32.to_le_bytes());
        space.write(COMMAND, &[0xff, 0xff]);
        assert_eq!(read32(&space, COMMAND) & 0xffff, 0x0406);
        assert_eq!(space.decoded_bar(0), Some(0xc001_0000));
        space.write(COMMAND, &[0, 0]);
        assert_eq!(space.decoded_bar(0), None);
    }

    #[test]
    fn a_bar_that_is_not_there_stays_zero() {
        let mut space = space();
        space.write(COMMAND, &[2]);
        for bar in 1..BARS {
            space.write(BAR_0 + 4 * bar, &[0xff; 4]);
            assert_eq!(space.bar_address(bar), 0);
            assert_eq!(space.decoded_bar(bar), None);
        }
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[]);
        let second = space.add_capability(0x11, &[4, 5], &[0, 0xc0]);
        let mut found = Vec::new();
        let mut at = read32(&space, CAPABILITIES_POINTER) & 0xff;
        while at != 0 {
            found.push(at as usize);
            at = read32(&space, at as usize) >> 8 & 0xff;
        }
        assert_eq!(found, [first, second]);
        space.write(second + 2, &[0xff, 0xff]);
        assert_eq!(read32(&space, second) >> 16, 0xc504 & 0xc0ff | 0x0500);
    }

    #[test]
    fn accesses_at_the_end_and_beyond_do_no_harm() {
        let mut space = space();
        for offset in [253, 255, 256, 4096] {
            let mut data = [7; 4];
            space.write(offset, &[0xff; 4]);
            space.read(offset, &mut data);
        }
        assert_eq!(read32(&space, 252), 0);
    }
}
