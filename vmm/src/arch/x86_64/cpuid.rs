//! What a vCPU says of itself (CPUID): what KVM supports, less what a container's guest has no use for, plus what
//! KVM leaves to the VMM: the APIC id, the topology, the TSC deadline timer.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vmm_sys_util::fam;

const FEATURES: u32 = 0x1;
const CACHES_INTEL: u32 = 0x4;
const PERFORMANCE_MONITORING: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const FEATURES_EXTENDED: u32 = 0x8000_0001;
const SIZES_AMD: u32 = 0x8000_0008;
const VIRTUALISATION_AMD: u32 = 0x8000_000a;
const CACHES_AMD: u32 = 0x8000_001d;
const TOPOLOGY_AMD: u32 = 0x8000_001e;
const PERFORMANCE_MONITORING_AMD: u32 = 0x8000_0022;
const TOPOLOGY_AMD_V2: u32 = 0x8000_0026;

/// Leaf 1, ECX.
mod features_ecx {
    pub(super) const VMX: u32 = 1 << 5;
    pub(super) const PDCM: u32 = 1 << 15;
    pub(super) const X2APIC: u32 = 1 << 21;
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const HYPERVISOR: u32 = 1 << 31;
}
/// Leaf 1, EDX: several logical processors, so that EBX counts them.
const FEATURES_EDX_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: SVM, and the performance counters of core and north bridge.
const EXTENDED_ECX_REMOVED: u32 = 1 << 2 | 1 << 23 | 1 << 24 | 1 << 28;

/// A vCPU's place: one thread for each core, all cores in one package, the APIC id is the vCPU's number.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The vCPU's number.
    pub vcpu: u8,
    /// How many vCPUs the machine has at most.
    pub of: u8,
}

/// CPUID of the vCPU at `place`, from what KVM supports (`KVM_GET_SUPPORTED_CPUID`).
///
/// # Errors
/// It would have more entries than KVM takes.
pub fn of_vcpu(supported: &CpuId, place: Place, tsc_deadline: bool) -> Result<CpuId, fam::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| {
            !matches!(
                entry.function,
                PERFORMANCE_MONITORING
                    | TOPOLOGY
                    | TOPOLOGY_V2
                    | VIRTUALISATION_AMD
                    | PERFORMANCE_MONITORING_AMD
                    | TOPOLOGY_AMD_V2
            )
        })
        .copied()
        .collect();
    for entry in &mut entries {
        adjust(entry, place, tsc_deadline);
    }
    let highest = supported
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    if highest >= TOPOLOGY {
        entries.extend(topology(place));
    }
    CpuId::from_entries(&entries)
}

fn adjust(entry: &mut kvm_cpuid_entry2, place: Place, tsc_deadline: bool) {
    let cores_less_one = u32::from(place.of) - 1;
    let id = u32::from(place.vcpu);
    match entry.function {
        FEATURES => {
            entry.ecx |= features_ecx::X2APIC | features_ecx::HYPERVISOR;
            entry.ecx &= !(features_ecx::VMX | features_ecx::PDCM);
            if tsc_deadline {
                entry.ecx |= features_ecx::TSC_DEADLINE;
            }
            entry.ebx = entry.ebx & 0xffff | u32::from(place.of) << 16 | id << 24;
            if place.of > 1 {
                entry.edx |= FEATURES_EDX_HTT;
            }
        }
        // EAX: cache type in bits 0 to 4, level in 5 to 7, threads that share it less one in 14 to 25, and on
        // Intel the package's cores less one in 26 to 31.
        CACHES_INTEL | CACHES_AMD if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { cores_less_one } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
            if entry.function == CACHES_INTEL {
                entry.eax |= cores_less_one << 26;
            }
        }
        FEATURES_EXTENDED => entry.ecx &= !EXTENDED_ECX_REMOVED,
        // ECX: cores less one, and the bits of the APIC id that tell cores apart.
        SIZES_AMD => entry.ecx = cores_less_one | core_bits(place.of) << 12,
        TOPOLOGY_AMD => {
            entry.eax = id;
            entry.ebx = id;
            entry.ecx = 0;
            entry.edx = 0;
        }
        _ => {}
    }
}

/// Leaf 0xb: one thread for each core, then all cores of the package.
fn topology(place: Place) -> [kvm_cpuid_entry2; 3] {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: place.vcpu.into(),
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, 0, 1, THREAD),
        level(1, core_bits(place.of), place.of.into(), CORE),
        level(2, 0, 0, 0),
    ]
}

/// Bits of the APIC id that number `cores` cores.
fn core_bits(cores: u8) -> u32 {
    u32::from(cores).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let entry = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        };
        CpuId::from_entries(&[
            entry(0, 0, 0x1f, 0, 0, 0),
            entry(1, 0, 0, 0x1234, features_ecx::VMX, 0),
            entry(4, 0, 0x7f << 14 | 1 << 5 | 1, 0, 0, 0),
            entry(4, 3, 0x7f << 14 | 3 << 5 | 3, 0, 0, 0),
            entry(0xa, 0, 0x0730_0404, 0, 0, 0),
            entry(0xb, 0, 9, 9, 9, 9),
            entry(0x8000_0001, 0, 0, 0, 1 << 2 | 1, 0),
            entry(0x8000_0008, 0, 0x3030, 0, 0x7f, 0),
            entry(0x4000_0001, 0, 0x0100_7efb, 0, 0, 0),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    #[test]
    fn a_vcpu_knows_its_place() {
        for (vcpu, of, bits) in [(0, 1, 0), (1, 2, 1), (2, 3, 2), (31, 32, 5)] {
            let cpuid = of_vcpu(&supported(), Place { vcpu, of }, true).unwrap();
            let features = find(&cpuid, 1, 0);
            assert_eq!(
                features.ebx,
                0x1234 | u32::from(of) << 16 | u32::from(vcpu) << 24
            );
            assert_eq!(features.edx & FEATURES_EDX_HTT != 0, of > 1);
            let core = find(&cpuid, 0xb, 1);
            assert_eq!(
                (core.eax, core.ebx, core.edx),
                (bits, of.into(), vcpu.into())
            );
            assert_eq!(find(&cpuid, 4, 0).eax >> 14 & 0xfff, 0);
            assert_eq!(find(&cpuid, 4, 3).eax >> 14 & 0xfff, u32::from(of) - 1);
            assert_eq!(
                find(&cpuid, 0x8000_0008, 0).ecx,
                (u32::from(of) - 1) | bits << 12
            );
        }
    }

    #[test]
    fn nested_virtualisation_and_counters_go_and_kvm_stays() {
        let cpuid = of_vcpu(&supported(), Place { vcpu: 0, of: 1 }, false).unwrap();
        let features = find(&cpuid, 1, 0);
        assert_eq!(
            features.ecx,
            features_ecx::X2APIC | features_ecx::HYPERVISOR
        );
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx, 1);
        assert!(!cpuid.as_slice().iter().any(|entry| entry.function == 0xa));
        assert_eq!(find(&cpuid, 0x4000_0001, 0).eax, 0x0100_7efb);
    }
}
