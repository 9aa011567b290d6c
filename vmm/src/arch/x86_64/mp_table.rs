//! The MP table (Intel MultiProcessor Specification 1.4), by which a kernel without ACPI finds its CPUs.
//!
//! It lists no IOAPIC: all devices interrupt by message, and setting up its pins costs a kernel some 900 exits. (With
//! `noapic` instead, Linux would not use x2APIC either.)

use vm_memory::{Bytes, GuestAddress};

use super::WriteError;
use crate::memory::GuestMemory;
use crate::memory::layout::{LOCAL_APIC, MP_TABLE};

/// The most vCPUs of a machine.
pub const MAX_VCPUS: u8 = 32;

const SPECIFICATION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const ISA_BUS: u8 = 0;
const FLOATING_POINTER: usize = 16;
const HEADER: usize = 44;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const NON_MASKABLE: u8 = 1;
const EXTERNAL: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;
const NO_IOAPIC: u8 = 0xfe;

/// The tables for `vcpus` CPUs as they lie from `address` on: the floating pointer, then the configuration.
#[must_use]
pub fn build(vcpus: u8, address: u32) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = ENABLED | if id == 0 { BOOT_PROCESSOR } else { 0 };
        let mut processor = [0; 20];
        processor[..4].copy_from_slice(&[0, id, LOCAL_APIC_VERSION, flags]);
        add(&processor);
    }
    add(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    // Linux takes a table without I/O interrupts for a broken one: the interrupt of the two PICs together.
    add(&[3, EXTERNAL, 0, 0, ISA_BUS, 0, NO_IOAPIC, 0]);
    add(&[4, EXTERNAL, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[4, NON_MASKABLE, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let mut header = [0_u8; HEADER];
    header[..4].copy_from_slice(b"PCMP");
    // 32 CPUs make less than 1 KiB.
    let length = u16::try_from(HEADER + entries.len()).unwrap_or(0);
    header[4..6].copy_from_slice(&length.to_le_bytes());
    header[6] = SPECIFICATION;
    header[8..16].copy_from_slice(b"HULL    ");
    header[16..28].copy_from_slice(b"SANDBOX     ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    let mut configuration = header.to_vec();
    configuration.append(&mut entries);
    configuration[7] = checksum(&configuration);

    let mut tables = vec![0; FLOATING_POINTER];
    tables[..4].copy_from_slice(b"_MP_");
    tables[4..8].copy_from_slice(&(address + 16).to_le_bytes());
    tables[8] = 1;
    tables[9] = SPECIFICATION;
    tables[10] = checksum(&tables);
    tables.append(&mut configuration);
    tables
}

/// The byte that makes the sum of `bytes` zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// Writes the tables for `vcpus` CPUs at [`MP_TABLE`].
///
/// # Errors
/// There is no memory there.
pub fn write(memory: &GuestMemory, vcpus: u8) -> Result<(), WriteError> {
    // The address is below 1 MiB.
    let tables = build(vcpus, u32::try_from(MP_TABLE).unwrap_or(0));
    memory
        .write_slice(&tables, GuestAddress(MP_TABLE))
        .map_err(|source| WriteError {
            what: "MP table",
            address: MP_TABLE,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn checksums_lengths_and_counts_hold_for_every_number_of_vcpus() {
        for vcpus in 1..=MAX_VCPUS {
            let tables = build(vcpus, 0xf_0000);
            let (pointer, configuration) = tables.split_at(FLOATING_POINTER);
            assert_eq!(sum(pointer), 0);
            assert_eq!(sum(configuration), 0);
            assert_eq!(pointer[4..8], 0xf_0010_u32.to_le_bytes());
            let length = u16::from_le_bytes([configuration[4], configuration[5]]);
            assert_eq!(usize::from(length), configuration.len());

            let mut rest = &configuration[HEADER..];
            let (mut count, mut processors, mut boot) = (0, 0, 0);
            while let Some(kind) = rest.first() {
                if *kind == 0 {
                    assert_eq!(rest[1], processors);
                    processors += 1;
                    boot += u8::from(rest[3] & BOOT_PROCESSOR != 0);
                }
                rest = &rest[if *kind == 0 { 20 } else { 8 }..];
                count += 1;
            }
            assert_eq!((processors, boot), (vcpus, 1));
            assert_eq!(
                u16::from_le_bytes([configuration[34], configuration[35]]),
                count
            );
        }
    }
}
