//! What a kernel is told at its 64-bit entry: the "zero page" (`Documentation/arch/x86/zero-page.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::WriteError;
use crate::memory::GuestMemory;
use crate::memory::layout::{COMMAND_LINE, COMMAND_LINE_MAX, Layout, ZERO_PAGE};

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes the zero page. `header` is that of a bzImage, or none for an ELF; the initramfs is given by its
/// guest-physical address and size, both below 4 GiB.
///
/// # Errors
/// There is no memory for it.
pub fn write(
    memory: &GuestMemory,
    layout: &Layout,
    header: Option<setup_header>,
    initramfs: (u32, u32),
) -> Result<(), WriteError> {
    let mut params = boot_params {
        hdr: header.unwrap_or_default(),
        ..boot_params::default()
    };
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = initramfs;
    // Both constants are small.
    params.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE).unwrap_or(0);
    params.hdr.cmdline_size = u32::try_from(COMMAND_LINE_MAX).unwrap_or(0);
    let map = layout.memory_map();
    // The map has six entries at most.
    params.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.size,
            type_: entry.kind as u32,
        };
    }
    memory
        .write_obj(params, GuestAddress(ZERO_PAGE))
        .map_err(|source| WriteError {
            what: "zero page",
            address: ZERO_PAGE,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_a_bzimage_is_kept_and_completed() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let header = setup_header {
            version: 0x20f,
            ..setup_header::default()
        };
        write(&memory, &Layout::new(256), Some(header), (0x700_0000, 77)).unwrap();
        let params: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let (version, image, size) = (
            params.hdr.version,
            params.hdr.ramdisk_image,
            params.hdr.ramdisk_size,
        );
        assert_eq!((version, image, size), (0x20f, 0x700_0000, 77));
        assert_eq!(params.e820_entries, 5);
        let (start, bytes) = (params.e820_table[2].addr, params.e820_table[2].size);
        assert_eq!((start, bytes), (0x10_0000, 255 << 20));
    }
}
