//! The model-specific registers that a vCPU starts with, where KVM's reset value is not what a kernel expects of
//! firmware.

use kvm_bindings::{Msrs, kvm_msr_entry};

const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// The registers to set.
///
/// # Panics
/// Never: the list is far shorter than KVM's limit.
#[must_use]
pub fn at_boot() -> Msrs {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    let entries = [
        entry(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ];
    Msrs::from_entries(&entries).expect("two entries fit")
}
