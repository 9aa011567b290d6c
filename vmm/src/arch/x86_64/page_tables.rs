//! The page tables of the 64-bit boot protocol: the first 4 GiB, one to one, in pages of 2 MiB.

use vm_memory::{Bytes, GuestAddress};

use super::WriteError;
use crate::memory::GuestMemory;
use crate::memory::layout::BOOT_PAGE_TABLES;

const PAGE: u64 = 0x1000;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const DIRECTORIES: u64 = 4;

/// Writes the tables at [`BOOT_PAGE_TABLES`], which is what CR3 takes.
///
/// # Errors
/// There is no memory there.
pub fn write(memory: &GuestMemory) -> Result<(), WriteError> {
    let pointers = BOOT_PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    put(memory, BOOT_PAGE_TABLES, &[pointers | PRESENT_WRITABLE])?;
    let entries: Vec<u64> = (0..DIRECTORIES)
        .map(|index| (directories + index * PAGE) | PRESENT_WRITABLE)
        .collect();
    put(memory, pointers, &entries)?;
    let pages: Vec<u64> = (0..DIRECTORIES * 512)
        .map(|index| (index << 21) | PRESENT_WRITABLE | LARGE)
        .collect();
    put(memory, directories, &pages)
}

fn put(memory: &GuestMemory, address: u64, entries: &[u64]) -> Result<(), WriteError> {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    memory
        .write_slice(&bytes, GuestAddress(address))
        .map_err(|source| WriteError {
            what: "page tables",
            address,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_ends_at_the_address_it_began_with() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory).unwrap();
        let entry = |table: u64, index: u64| -> u64 {
            memory
                .read_obj(GuestAddress((table & !0xfff) + 8 * index))
                .unwrap()
        };
        for address in [0_u64, 0x10_0000, 0x8000_0000, 0xffff_ffff] {
            let pointers = entry(BOOT_PAGE_TABLES, address >> 39);
            let directory = entry(pointers, address >> 30 & 0x1ff);
            let page = entry(directory, address >> 21 & 0x1ff);
            assert_eq!(page & (LARGE | PRESENT_WRITABLE), LARGE | PRESENT_WRITABLE);
            assert_eq!((page & !0x1f_ffff) + (address & 0x1f_ffff), address);
        }
    }
}
