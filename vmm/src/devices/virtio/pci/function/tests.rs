use super::*;
use crate::devices::pci::host::testing::RecordingHost;
use crate::devices::virtio::device::ActivateError;
use crate::memory::GuestMemory;
use std::sync::Mutex;
use vm_memory::GuestAddress;

#[derive(Default)]
struct Calls {
    log: Vec<&'static str>,
    activation: Option<Activation>,
    fail: bool,
}

struct Device(Arc<Mutex<Calls>>);

impl VirtioDevice for Device {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 16]
    }
    fn config(&self) -> Vec<u8> {
        vec![0x77]
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut calls = self.0.lock().unwrap();
        calls.log.push("activate");
        calls.activation = Some(activation);
        if calls.fail {
            Err(ActivateError::NoBackend)
        } else {
            Ok(())
        }
    }
    fn reset(&mut self) {
        let mut calls = self.0.lock().unwrap();
        calls.log.push("reset");
        calls.activation = None;
    }
}

struct Bench {
    function: VirtioPciFunction,
    host: Arc<RecordingHost>,
    calls: Arc<Mutex<Calls>>,
}

fn bench() -> Bench {
    let host = Arc::new(RecordingHost::default());
    let calls = Arc::new(Mutex::new(Calls::default()));
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    let function = VirtioPciFunction::new(
        Box::new(Device(calls.clone())),
        SharedMemory::new(memory),
        host.clone(),
        3,
    )
    .unwrap();
    Bench {
        function,
        host,
        calls,
    }
}

impl Bench {
    fn set_bar(&mut self, address: u32) {
        self.function
            .write_configuration(0x10, &address.to_le_bytes());
    }
    fn decode(&mut self, on: bool) {
        self.function
            .write_configuration(4, &[if on { 6 } else { 0 }, 0]);
    }
    fn common(&mut self, offset: u64, data: &[u8]) {
        self.function.write_bar(0, offset, data);
    }
    fn status(&mut self) -> u8 {
        let mut data = [0];
        self.function.read_bar(0, 0x14, &mut data);
        data[0]
    }
    /// Drives the device up to DRIVER_OK with its first queue at `descriptors`.
    fn start(&mut self, descriptors: u64) {
        self.common(0x14, &[1]);
        self.common(0x14, &[3]);
        self.common(0x08, &1_u32.to_le_bytes());
        self.common(0x0c, &1_u32.to_le_bytes());
        self.common(0x14, &[0xb]);
        self.common(0x20, &descriptors.to_le_bytes());
        self.common(0x28, &0x2000_u64.to_le_bytes());
        self.common(0x30, &0x3000_u64.to_le_bytes());
        self.common(0x1c, &1_u16.to_le_bytes());
        self.common(0x14, &[0xf]);
    }
    fn doorbells(&self) -> Vec<u64> {
        self.host.doorbells.lock().unwrap().clone()
    }
    fn log(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().log.clone()
    }
}

#[test]
fn doorbells_follow_the_bar_while_the_device_is_active() {
    let mut bench = bench();
    bench.set_bar(0xc000_0000);
    bench.decode(true);
    assert!(bench.doorbells().is_empty());
    bench.start(0x1000);
    assert_eq!(bench.status(), 0xf);
    assert_eq!(
        bench.doorbells(),
        [0xc000_3000],
        "only the enabled queue has one"
    );
    bench.set_bar(0x1000_0000);
    assert_eq!(bench.doorbells(), [0x1000_3000]);
    bench.decode(false);
    assert!(bench.doorbells().is_empty());
    bench.decode(true);
    assert_eq!(bench.doorbells(), [0x1000_3000]);
    bench.common(0x14, &[0]);
    assert!(bench.doorbells().is_empty());
    assert_eq!(bench.log(), ["activate", "reset"]);
    assert_eq!(bench.status(), 0);
    bench.start(0x1000);
    assert_eq!(bench.log(), ["activate", "reset", "activate"]);
}

#[test]
fn a_doorbell_that_is_taken_leaves_the_write_to_the_bar() {
    let mut bench = bench();
    bench.host.doorbells.lock().unwrap().push(0xc000_3000);
    bench.set_bar(0xc000_0000);
    bench.decode(true);
    bench.start(0x1000);
    bench.function.write_bar(0, 0x3000, &[0, 0]);
    let calls = bench.calls.lock().unwrap();
    let activation = calls.activation.as_ref().unwrap();
    assert_eq!(activation.queues[0].kick.read().unwrap(), 1);
    drop(calls);
    bench.function.shut_down();
    assert_eq!(
        bench.doorbells(),
        [0xc000_3000],
        "the other's doorbell stays"
    );
}

#[test]
fn a_queue_outside_memory_or_a_failing_device_needs_a_reset() {
    for (descriptors, fail) in [(0x1_0000, false), (!0xf, false), (0x1000, true)] {
        let mut bench = bench();
        bench.calls.lock().unwrap().fail = fail;
        bench.set_bar(0xc000_0000);
        bench.decode(true);
        bench.start(descriptors);
        assert_eq!(bench.status() & 0x40, 0x40);
        assert!(bench.doorbells().is_empty());
        bench.common(0x14, &[0]);
        assert_eq!(bench.status(), 0);
    }
}

#[test]
fn interrupts_go_to_the_vectors_that_the_driver_chose() {
    let mut bench = bench();
    let control = (bench.function.msix_capability + 2, 0x8000_u16.to_le_bytes());
    bench.function.write_configuration(control.0, &control.1);
    bench.common(0x10, &0_u16.to_le_bytes());
    bench.common(0x1a, &2_u16.to_le_bytes());
    bench.start(0x1000);
    let count = |bench: &Bench, index: usize| bench.host.vectors.lock().unwrap()[index].count();
    let interrupt = bench
        .calls
        .lock()
        .unwrap()
        .activation
        .as_ref()
        .unwrap()
        .interrupt
        .clone();
    interrupt.signal_queue(0);
    interrupt.signal_config();
    assert_eq!(
        [count(&bench, 0), count(&bench, 1), count(&bench, 2)],
        [1, 0, 1]
    );
    let mut generation = [0];
    bench.function.read_bar(0, 0x15, &mut generation);
    assert_eq!(generation, [1]);
    // The second queue has no vector: the ISR status tells of it, once.
    interrupt.signal_queue(1);
    interrupt.signal_queue(9);
    let mut isr = [0];
    bench.function.read_bar(0, 0x1000, &mut isr);
    assert_eq!(isr, [1]);
    bench.function.read_bar(0, 0x1000, &mut isr);
    assert_eq!(isr, [0]);
    assert!(interrupt.queue_eventfd(0).is_some() && interrupt.queue_eventfd(1).is_none());
}

#[test]
fn the_bar_is_reached_through_configuration_space() {
    let mut bench = bench();
    let window = bench.function.access_capability;
    bench
        .function
        .write_configuration(window + 8, &0x2000_u32.to_le_bytes());
    bench
        .function
        .write_configuration(window + 12, &1_u32.to_le_bytes());
    let mut data = [0; 4];
    bench.function.read_configuration(window + 16, &mut data);
    assert_eq!(data, [0x77, 0, 0, 0]);
    bench
        .function
        .write_configuration(window + 8, &0x14_u32.to_le_bytes());
    bench
        .function
        .write_configuration(window + 16, &[1, 0, 0, 0]);
    assert_eq!(bench.status(), 1);
    // Another BAR, a length that is none: nothing happens.
    bench.function.write_configuration(window + 4, &[1]);
    bench
        .function
        .write_configuration(window + 16, &[0, 0, 0, 0]);
    bench.function.write_configuration(window + 4, &[0]);
    bench
        .function
        .write_configuration(window + 12, &3_u32.to_le_bytes());
    bench
        .function
        .write_configuration(window + 16, &[0, 0, 0, 0]);
    assert_eq!(bench.status(), 1);
}

#[test]
fn the_capabilities_name_structures_inside_the_bar() {
    let bench = bench();
    let mut kinds = Vec::new();
    let mut at = {
        let mut pointer = [0];
        bench.function.configuration.read(0x34, &mut pointer);
        usize::from(pointer[0])
    };
    while at != 0 {
        let mut bytes = [0; 16];
        bench.function.configuration.read(at, &mut bytes);
        if bytes[0] == VENDOR_CAPABILITY {
            kinds.push(bytes[3]);
            let offset = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
            assert!(offset + length <= BAR_SIZE);
        } else {
            assert_eq!(bytes[0], msix::CAPABILITY_ID);
        }
        at = bytes[1].into();
    }
    assert_eq!(kinds, [1, 3, 4, 2, 5]);
}

#[test]
fn hostile_accesses_to_the_bar_do_no_harm() {
    let mut bench = bench();
    bench.decode(true);
    for offset in (0..0x8000_u64)
        .step_by(13)
        .chain([0x7fff, 0x8000, u64::MAX])
    {
        for length in [1, 2, 4, 8] {
            bench.function.write_bar(0, offset, &vec![0xff; length]);
            bench.function.read_bar(0, offset, &mut vec![0; length]);
        }
    }
}

/// Numbers without order, the same in each run (xorshift64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[test]
fn a_guest_that_writes_anything_anywhere_does_no_harm() {
    let mut bench = bench();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    // Registers that mean something, so that the noise gets beyond the first check.
    let starts = [
        0, 0x14, 0x16, 0x1c, 0x20, 0x28, 0x30, 0x3000, 0x4000, 0x400c,
    ];
    for round in 0..20_000 {
        let length = [1, 2, 4, 8][usize::try_from(noise.below(4)).unwrap()];
        let data = noise.next().to_le_bytes();
        let start = starts[usize::try_from(noise.below(10)).unwrap()];
        match noise.below(4) {
            0 => bench.function.write_bar(0, start, &data[..length]),
            1 => bench
                .function
                .write_bar(0, noise.below(0x8000), &data[..length]),
            2 => {
                let offset = usize::try_from(noise.below(252)).unwrap();
                bench
                    .function
                    .write_configuration(offset, &data[..length.min(4)]);
            }
            _ => {
                let mut read = [0; 8];
                bench
                    .function
                    .read_bar(0, noise.below(0x8000), &mut read[..length]);
            }
        }
        if round % 100 == 0 {
            bench.decode(true);
            bench.common(0x14, &[0]);
            bench.start(0x1000);
            assert_eq!(bench.status(), 0xf, "a driver can start the device again");
        }
    }
    bench.function.shut_down();
    assert!(bench.doorbells().is_empty());
}
