//! The machine's parts on a real KVM, driven by a few instructions of real mode. Software-assisted KVMs run these as
//! well.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hull_vmm::arch::x86_64::{cpuid, msrs};
use hull_vmm::bus::BusDevice;
use hull_vmm::devices::legacy::reset::{self, ResetPort};
use hull_vmm::devices::pci::host::MsiMessage;
use hull_vmm::kvm::system::System;
use hull_vmm::kvm::vcpu::{Environment, RunEnd, StopSignal, Vcpu};
use hull_vmm::kvm::vm::Vm;
use hull_vmm::machine::end::EndReport;
use hull_vmm::machine::vcpus::VcpuThreads;
use hull_vmm::memory::GuestMemory;
use hull_vmm_protocol::outcome::Cause;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const CODE: u16 = 0x1000;
/// All memory there is: addresses of real mode beyond it have nothing behind them.
const MEMORY: usize = 0x1_0000;
const BEYOND: u64 = 0x2_0000;

struct Bench {
    vm: Vm,
    vcpu: Vcpu,
    memory: GuestMemory,
    environment: Environment,
}

/// A machine with one vCPU that starts with `code` at [`CODE`] and stops at a reset.
fn bench(code: &[u8]) -> Bench {
    let system = System::open().expect("these tests need /dev/kvm");
    let mut vm = system.create_vm().unwrap();
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    memory.write_slice(code, GuestAddress(CODE.into())).unwrap();
    vm.set_memory(&memory).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let place = cpuid::Place { vcpu: 0, of: 1 };
    let supported = system.supported_cpuid().unwrap();
    let cpuid = cpuid::of_vcpu(&supported, place, system.has_tsc_deadline()).unwrap();
    vcpu.set_features(&cpuid, &msrs::at_boot()).unwrap();
    let registers = kvm_bindings::kvm_regs {
        rip: CODE.into(),
        rflags: 2,
        rsp: 0x8000,
        ..Default::default()
    };
    vcpu.set_start(&registers, |mut system| {
        system.cs.base = 0;
        system.cs.selector = 0;
        system
    })
    .unwrap();
    let environment = Environment {
        ports: Arc::default(),
        memory: Arc::default(),
        exits: Arc::new(AtomicU64::new(0)),
        stop: StopSignal::default(),
    };
    let stop = environment.stop.clone();
    let reset = Arc::new(ResetPort::new(move || stop.set()));
    environment.ports.map(reset::PORT, reset::PORTS, reset);
    Bench {
        vm,
        vcpu,
        memory,
        environment,
    }
}

/// A device that sends on what is written to it, reads as its offset, and may do something at a write.
struct Probe {
    writes: Sender<(u64, Vec<u8>)>,
    at_write: Mutex<Box<dyn FnMut(u64) + Send>>,
}

impl Probe {
    fn new(at_write: impl FnMut(u64) + Send + 'static) -> (Arc<Self>, Receiver<(u64, Vec<u8>)>) {
        let (writes, received) = channel();
        let at_write: Mutex<Box<dyn FnMut(u64) + Send>> = Mutex::new(Box::new(at_write));
        (Arc::new(Self { writes, at_write }), received)
    }
}

impl BusDevice for Probe {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap());
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.writes.send((offset, data.to_vec())).unwrap();
        (self.at_write.lock().unwrap())(offset);
    }
}

#[test]
fn ports_are_read_and_written_and_a_reset_ends_it() {
    #[rustfmt::skip]
    let mut bench = bench(&[
        0xe4, 0x07,                   // in al, 7
        0xe6, 0x03,                   // out 3, al
        0xb8, 0x34, 0x12,             // mov ax, 0x1234
        0xe7, 0x02,                   // out 2, ax
        0xb0, 0xfe,                   // mov al, 0xfe
        0xe6, 0x64,                   // out 0x64, al
        0xeb, 0xfe,                   // jmp $
    ]);
    let (probe, received) = Probe::new(|_| {});
    bench.environment.ports.map(0, 0x10, probe);
    let statistics = bench.vcpu.statistics().unwrap();
    let end = bench.vcpu.run(&bench.environment);
    assert!(matches!(end, RunEnd::Stopped), "{end}");
    let writes: Vec<_> = received.try_iter().collect();
    assert_eq!(writes, [(3, vec![7]), (2, vec![0x34, 0x12])]);
    assert!(bench.environment.exits.load(Ordering::Relaxed) >= 4);
    if let Some(statistics) = statistics {
        let mut counters = statistics.read().unwrap();
        assert!(counters.any(|(name, count)| name == "exits" && count > 0));
    }
}

#[test]
fn memory_that_is_not_there_is_the_memory_bus() {
    #[rustfmt::skip]
    let mut bench = bench(&[
        0xb8, 0x00, 0x20,             // mov ax, 0x2000
        0x8e, 0xc0,                   // mov es, ax
        0x26, 0xa0, 0x09, 0x00,       // mov al, [es:9]
        0x26, 0xa2, 0x05, 0x00,       // mov [es:5], al
        0xb0, 0xfe,                   // mov al, 0xfe
        0xe6, 0x64,                   // out 0x64, al
        0xeb, 0xfe,                   // jmp $
    ]);
    let (probe, received) = Probe::new(|_| {});
    bench.environment.memory.map(BEYOND, 0x10, probe);
    let end = bench.vcpu.run(&bench.environment);
    assert!(matches!(end, RunEnd::Stopped), "{end}");
    assert_eq!(received.try_iter().collect::<Vec<_>>(), [(5, vec![9])]);
}

#[test]
fn code_that_is_not_there_cannot_be_emulated() {
    let mut bench = bench(&[0xea, 0x00, 0x00, 0x00, 0x20]); // jmp 0x2000:0
    let end = bench.vcpu.run(&bench.environment);
    let told = hull_vmm::machine::end::End::of_vcpu(&end).unwrap();
    assert_eq!(told.cause, Cause::KvmCannotRun, "{end}");
}

#[test]
fn a_doorbell_rings_without_an_exit_and_falls_silent() {
    #[rustfmt::skip]
    let code = [
        0xb8, 0x00, 0x20,             // mov ax, 0x2000
        0x8e, 0xc0,                   // mov es, ax
        0x26, 0xa3, 0x04, 0x00,       // mov [es:4], ax
        0xb0, 0xfe,                   // mov al, 0xfe
        0xe6, 0x64,                   // out 0x64, al
        0xeb, 0xfe,                   // jmp $
    ];
    for rings in [true, false] {
        let mut bench = bench(&code);
        let (probe, received) = Probe::new(|_| {});
        bench.environment.memory.map(BEYOND, 0x10, probe);
        let host = bench.vm.pci_host();
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        host.add_doorbell(BEYOND + 4, &event).unwrap();
        assert!(
            host.add_doorbell(BEYOND + 4, &event).is_err(),
            "it is taken"
        );
        if !rings {
            host.remove_doorbell(BEYOND + 4, &event).unwrap();
            assert!(
                host.remove_doorbell(BEYOND + 4, &event).is_err(),
                "it is gone"
            );
        }
        bench.vcpu.run(&bench.environment);
        assert_eq!(event.read().is_ok(), rings);
        assert_eq!(received.try_iter().count(), usize::from(!rings));
    }
}

/// Switches x2APIC on, tells so at port 0x80, and halts; vector 0x20 tells at port 0x81 and resets.
#[rustfmt::skip]
const WAIT_FOR_INTERRUPT: &[u8] = &[
    0x66, 0xb9, 0x1b, 0x00, 0x00, 0x00, // mov ecx, IA32_APIC_BASE
    0x0f, 0x32,                         // rdmsr
    0x66, 0x0d, 0x00, 0x0c, 0x00, 0x00, // or eax, 0xc00
    0x0f, 0x30,                         // wrmsr
    0x66, 0xb9, 0x0f, 0x08, 0x00, 0x00, // mov ecx, x2APIC SIVR
    0x66, 0xb8, 0xff, 0x01, 0x00, 0x00, // mov eax, 0x1ff
    0x66, 0x31, 0xd2,                   // xor edx, edx
    0x0f, 0x30,                         // wrmsr
    0xe6, 0x80,                         // out 0x80, al
    0xfb,                               // sti
    0xf4,                               // hlt
    0xeb, 0xfd,                         // jmp to the hlt
];
const HANDLER: u16 = 0x1800;
#[rustfmt::skip]
const TELL_AND_RESET: &[u8] = &[
    0xe6, 0x81, // out 0x81, al
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xeb, 0xfe, // jmp $
];

#[test]
fn an_interrupt_by_message_arrives_also_when_it_was_signalled_before() {
    for signalled_before in [false, true] {
        let mut bench = bench(WAIT_FOR_INTERRUPT);
        bench
            .memory
            .write_slice(TELL_AND_RESET, GuestAddress(HANDLER.into()))
            .unwrap();
        bench
            .memory
            .write_obj(u32::from(HANDLER), GuestAddress(4 * 0x20))
            .unwrap();
        let vector = bench.vm.pci_host().interrupt().unwrap();
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: 0x20,
        };
        let (probe, received) = Probe::new(move |offset| {
            if offset != 0 {
                return;
            }
            if signalled_before {
                vector.eventfd().write(1).unwrap();
            }
            vector.connect(message).unwrap();
            if !signalled_before {
                vector.eventfd().write(1).unwrap();
            }
        });
        bench.environment.ports.map(0x80, 2, probe);
        let end = bench.vcpu.run(&bench.environment);
        assert!(matches!(end, RunEnd::Stopped), "{end}");
        let offsets: Vec<u64> = received.try_iter().map(|(offset, _)| offset).collect();
        assert_eq!(offsets, [0, 1]);
    }
}

#[test]
fn numbers_of_interrupts_are_used_again() {
    let bench = bench(&[0xf4]);
    let host = bench.vm.pci_host();
    let message = MsiMessage {
        address: 0xfee0_0000,
        data: 0x21,
    };
    for _ in 0..3 {
        let vectors: Vec<_> = (0..1500).map(|_| host.interrupt().unwrap()).collect();
        for vector in vectors.iter().step_by(100) {
            vector.connect(message).unwrap();
            vector.connect(message).unwrap_err();
            vector.disconnect().unwrap();
        }
    }
}

#[test]
fn vcpus_that_loop_halt_or_wait_are_stopped() {
    StopSignal::install_handler().unwrap();
    for code in [&[0xeb, 0xfe][..], &[0xfa, 0xf4, 0xeb, 0xfd]] {
        let bench = bench(code);
        let waiting = bench.vm.create_vcpu(1).unwrap();
        let report = EndReport::new().unwrap();
        let mut threads = VcpuThreads::default();
        for vcpu in [bench.vcpu, waiting] {
            threads
                .spawn(vcpu, bench.environment.clone(), report.clone())
                .unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
        bench.environment.stop.set();
        let begin = Instant::now();
        threads.join();
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(report.at(Instant::now()).is_err(), "stopping is no end");
    }
}
