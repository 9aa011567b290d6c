use super::super::configuration::{ConfigurationSpace, Identity};
use super::*;

const WINDOW: Range<u64> = 0xc000_0000..0xc010_0000;

struct Echo(ConfigurationSpace, Arc<Mutex<Vec<&'static str>>>);

impl Echo {
    fn boxed(size: u32) -> Box<Self> {
        Self::recording(size, &Arc::default())
    }

    fn recording(size: u32, calls: &Arc<Mutex<Vec<&'static str>>>) -> Box<Self> {
        let identity = Identity {
            vendor: 0x1234,
            device: 0x5678,
            class: 0,
            revision: 0,
            subsystem: (0, 0),
        };
        Box::new(Self(
            ConfigurationSpace::new(identity).with_bar(0, size),
            calls.clone(),
        ))
    }
}

impl PciFunction for Echo {
    fn configuration(&self) -> &ConfigurationSpace {
        &self.0
    }
    fn configuration_mut(&mut self) -> &mut ConfigurationSpace {
        &mut self.0
    }
    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset & 0xff).unwrap());
    }
    fn write_bar(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {
        self.1.lock().unwrap().push("write");
    }
    fn shut_down(&mut self) {
        self.1.lock().unwrap().push("shut down");
    }
}

fn select(root: &PciRoot, slot: u32, register: u32) {
    root.write(0, &(ENABLE | slot << 11 | register).to_le_bytes());
}

/// Selects a register of the first slot's function `function`.
fn select_function(root: &PciRoot, function: u32, register: u32) {
    root.write(0, &(ENABLE | function << 8 | register).to_le_bytes());
}

fn read32(root: &PciRoot, slot: u32, register: u32) -> u32 {
    select(root, slot, register);
    let mut data = [0xff; 4];
    root.read(4, &mut data);
    u32::from_le_bytes(data)
}

fn write32(root: &PciRoot, slot: u32, register: u32, value: u32) {
    select(root, slot, register);
    root.write(4, &value.to_le_bytes());
}

fn read_memory(bus: &Bus, address: u64) -> u8 {
    let mut data = [0];
    bus.read(address, &mut data);
    data[0]
}

#[test]
fn a_scan_finds_what_is_attached() {
    let root = PciRoot::new(Arc::default(), WINDOW);
    assert_eq!(
        root.attach(Echo::boxed(0x1000)).unwrap().to_string(),
        "0000:00:00.0"
    );
    assert_eq!(
        root.attach(Echo::boxed(0x1000)).unwrap().to_string(),
        "0000:00:01.0"
    );
    let found: Vec<u32> = (0..32)
        .filter(|slot| read32(&root, *slot, 0) != u32::MAX)
        .collect();
    assert_eq!(found, [0, 1]);
    assert_eq!(read32(&root, 1, 0), 0x5678_1234);
    // Another bus, another function of the same slot, configuration access switched off.
    for address in [ENABLE | 1 << 16, ENABLE | 1 << 8, 0] {
        root.write(0, &address.to_le_bytes());
        let mut data = [0xff; 4];
        root.read(4, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}

#[test]
fn parts_of_a_register_are_reached_through_the_data_ports() {
    let root = PciRoot::new(Arc::default(), WINDOW);
    root.attach(Echo::boxed(0x1000)).unwrap();
    select(&root, 0, 0);
    let mut half = [0; 2];
    root.read(6, &mut half);
    assert_eq!(u16::from_le_bytes(half), 0x5678);
    let mut byte = [0];
    root.read(5, &mut byte);
    assert_eq!(byte, [0x12]);
}

#[test]
fn a_bar_answers_where_the_guest_puts_it() {
    let bus = Arc::new(Bus::default());
    let root = PciRoot::new(bus.clone(), WINDOW);
    root.attach(Echo::boxed(0x1000)).unwrap();
    assert_eq!(read32(&root, 0, 0x10), 0xc000_0000);
    assert_eq!(
        read_memory(&bus, 0xc000_0001),
        0xff,
        "decoded before it was switched on"
    );
    write32(&root, 0, 4, 2);
    assert_eq!(read_memory(&bus, 0xc000_0001), 1);
    write32(&root, 0, 0x10, 0x1000_0000);
    assert_eq!(read_memory(&bus, 0xc000_0001), 0xff);
    assert_eq!(read_memory(&bus, 0x1000_0022), 0x22);
    write32(&root, 0, 4, 0);
    assert_eq!(read_memory(&bus, 0x1000_0022), 0xff);
}

#[test]
fn bars_are_given_addresses_that_nobody_has() {
    let root = PciRoot::new(Arc::default(), WINDOW);
    root.attach(Echo::boxed(0x1000)).unwrap();
    root.attach(Echo::boxed(0x8000)).unwrap();
    assert_eq!(read32(&root, 1, 0x10), 0xc000_8000);
    // The guest moves the first into the way of the third.
    write32(&root, 0, 0x10, 0xc000_2000);
    root.attach(Echo::boxed(0x4000)).unwrap();
    assert_eq!(read32(&root, 2, 0x10), 0xc000_4000);
    let full = root.attach(Echo::boxed(0x10_0000));
    assert!(matches!(
        full,
        Err(AttachError::NoAddress { size: 0x10_0000 })
    ));
}

#[test]
fn slots_are_used_again_and_run_out() {
    let calls = Arc::default();
    let bus = Arc::new(Bus::default());
    let root = PciRoot::new(bus.clone(), WINDOW);
    let slots: Vec<Address> = (0..32)
        .map(|_| root.attach(Echo::recording(0x1000, &calls)).unwrap())
        .collect();
    assert!(matches!(
        root.attach(Echo::boxed(0x1000)),
        Err(AttachError::NoSlot)
    ));
    write32(&root, 7, 4, 2);
    let address = u64::from(read32(&root, 7, 0x10));
    assert_eq!(read_memory(&bus, address), 0);
    assert!(root.detach(slots[7]));
    assert_eq!(*calls.lock().unwrap(), ["shut down"]);
    assert_eq!(read_memory(&bus, address), 0xff);
    assert_eq!(read32(&root, 7, 0), u32::MAX);
    assert!(!root.detach(slots[7]));
    assert_eq!(root.attach(Echo::boxed(0x1000)).unwrap(), slots[7]);
}

#[test]
fn hostile_configuration_accesses_do_no_harm() {
    let root = PciRoot::new(Arc::default(), WINDOW);
    root.attach(Echo::boxed(0x1000)).unwrap();
    for register in (0..256).step_by(4) {
        for offset in 0..8 {
            for length in [0, 1, 2, 3, 4, 8, 4096] {
                select(&root, 0, register);
                root.write(offset, &vec![0xff; length]);
                select(&root, 0, register);
                root.read(offset, &mut vec![0; length]);
            }
        }
    }
}

#[test]
fn functions_share_slots_that_always_have_a_first_function() {
    let root = PciRoot::new(Arc::default(), 0xc000_0000..0xd000_0000);
    root.attach(Echo::boxed(0x1000)).unwrap();
    let share = || {
        root.attach_sharing(Echo::boxed(0x1000))
            .unwrap()
            .to_string()
    };
    let first: Vec<String> = (0..10).map(|_| share()).collect();
    assert_eq!(
        [&first[0], &first[7], &first[8], &first[9]],
        [
            "0000:00:01.0",
            "0000:00:01.7",
            "0000:00:02.0",
            "0000:00:02.1"
        ]
    );
    // One in the middle goes; its place is taken again.
    let at = |slot, function| Address { slot, function };
    assert!(root.detach(at(1, 3)));
    assert_eq!(share(), "0000:00:01.3");
    // The first goes: the others stay, and the next one is the first again, before any other place.
    assert!(root.detach(at(1, 5)));
    assert!(root.detach(at(1, 0)));
    assert_eq!(share(), "0000:00:01.0");
    assert_eq!(share(), "0000:00:01.5");
    // A function that shares no slot gets none of which another has a part.
    assert!(root.detach(at(2, 0)));
    assert_eq!(
        root.attach(Echo::boxed(0x1000)).unwrap().to_string(),
        "0000:00:03.0"
    );
    assert_eq!(share(), "0000:00:02.0");
}

#[test]
fn a_bus_takes_eight_functions_in_each_slot() {
    let root = PciRoot::new(Arc::default(), 0xc000_0000..0xd000_0000);
    for _ in 0..32 * 8 {
        root.attach_sharing(Echo::boxed(0x1000)).unwrap();
    }
    assert!(matches!(
        root.attach_sharing(Echo::boxed(0x1000)),
        Err(AttachError::NoSlot)
    ));
}

#[test]
fn each_function_of_a_slot_has_its_own_registers() {
    let bus = Arc::new(Bus::default());
    let root = PciRoot::new(bus.clone(), WINDOW);
    for _ in 0..3 {
        root.attach_sharing(Echo::boxed(0x1000)).unwrap();
    }
    let read = |function, register| {
        select_function(&root, function, register);
        let mut data = [0xff; 4];
        root.read(4, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(read(0, 0xc) >> 16 & 0x80, 0x80, "there may be more");
    assert_eq!(
        [read(0, 0x10), read(1, 0x10), read(2, 0x10)],
        [0xc000_0000, 0xc000_1000, 0xc000_2000]
    );
    assert_eq!(read(3, 0), u32::MAX);
    // Memory decoding is switched on for the second alone.
    select_function(&root, 1, 4);
    root.write(4, &2_u32.to_le_bytes());
    assert_eq!(
        [0xc000_0005, 0xc000_1005, 0xc000_2005].map(|address| read_memory(&bus, address)),
        [0xff, 5, 0xff]
    );
}
