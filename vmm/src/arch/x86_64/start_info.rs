//! What a kernel is told at its PVH entry: `hvm_start_info`, the memory map, and the initramfs as a module.

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::WriteError;
use crate::memory::GuestMemory;
use crate::memory::layout::{COMMAND_LINE, Layout, PVH_MEMORY_MAP, PVH_START_INFO};

const MAGIC: u32 = 0x336e_c578;
const MODULE_LIST: u64 = PVH_START_INFO + 0x40;

/// Writes the structures. The initramfs is given by its guest-physical address and size.
///
/// # Errors
/// There is no memory for them.
pub fn write(
    memory: &GuestMemory,
    layout: &Layout,
    initramfs: (u64, u64),
) -> Result<(), WriteError> {
    let map = layout.memory_map();
    for (index, entry) in (0_u64..).zip(&map) {
        put(
            memory,
            "PVH memory map",
            PVH_MEMORY_MAP + index * size_of::<hvm_memmap_table_entry>() as u64,
            hvm_memmap_table_entry {
                addr: entry.start,
                size: entry.size,
                type_: entry.kind as u32,
                reserved: 0,
            },
        )?;
    }
    let (paddr, size) = initramfs;
    put(
        memory,
        "PVH module list",
        MODULE_LIST,
        hvm_modlist_entry {
            paddr,
            size,
            ..hvm_modlist_entry::default()
        },
    )?;
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: MODULE_LIST,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: PVH_MEMORY_MAP,
        // The map has six entries at most.
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    put(memory, "PVH start info", PVH_START_INFO, start_info)
}

fn put<T: ByteValued>(
    memory: &GuestMemory,
    what: &'static str,
    address: u64,
    value: T,
) -> Result<(), WriteError> {
    memory
        .write_obj(value, GuestAddress(address))
        .map_err(|source| WriteError {
            what,
            address,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_point_at_each_other() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let layout = Layout::new(4096);
        write(&memory, &layout, (0x700_0000, 1234)).unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!(info.magic, MAGIC);
        assert_eq!(info.memmap_entries as usize, layout.memory_map().len());
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x700_0000, 1234));
        let last = info.memmap_paddr + u64::from(info.memmap_entries - 1) * 24;
        let entry: hvm_memmap_table_entry = memory.read_obj(GuestAddress(last)).unwrap();
        assert_eq!((entry.addr, entry.size, entry.type_), (1 << 32, 1 << 30, 1));
    }
}
