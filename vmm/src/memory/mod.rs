//! Guest memory: where it lies in the guest's physical address space ([`layout`]), and what backs it.

use std::io;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

pub mod layout;

use layout::Layout;

/// Guest memory, mapped into this process.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
/// Guest memory as device workers hold it: each access takes the map of the moment, so memory can be added.
pub type SharedMemory = vm_memory::GuestMemoryAtomic<GuestMemory>;

/// The size of a huge page. A guest page is mapped by a huge page only where the guest's and the host's address
/// agree below this size.
const HUGE_PAGE: usize = 2 << 20;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has no address space left, or a limit forbids it.
    #[error("map {size} bytes of guest memory")]
    Map {
        /// Bytes asked for.
        size: u64,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The ranges of a layout overlap or overflow.
    #[error("range of guest memory at {start:#x}")]
    Range {
        /// The range's first guest-physical address.
        start: u64,
    },
}

/// Maps the guest memory of `layout`: anonymous, not reserved, zero on first touch, in huge pages where the host
/// has them. It stays mapped until the process ends.
///
/// # Errors
/// See [`MemoryError`].
pub fn map(layout: &Layout) -> Result<GuestMemory, MemoryError> {
    let mut regions = Vec::new();
    for (start, size) in layout.ram() {
        let bytes = usize::try_from(size).map_err(|_| MemoryError::Range { start })?;
        let region = map_aligned(bytes).map_err(|source| MemoryError::Map { size, source })?;
        regions.push(
            GuestRegionMmap::new(region, GuestAddress(start))
                .ok_or(MemoryError::Range { start })?,
        );
    }
    GuestMemoryMmap::from_regions(regions).map_err(|_| MemoryError::Range { start: 0 })
}

/// Maps `size` bytes at a multiple of [`HUGE_PAGE`].
#[allow(unsafe_code)]
fn map_aligned(size: usize) -> io::Result<vm_memory::MmapRegion> {
    let whole = size
        .checked_add(HUGE_PAGE)
        .ok_or(io::ErrorKind::OutOfMemory)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), whole, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let pad = base.addr().next_multiple_of(HUGE_PAGE) - base.addr();
    let start = base.cast::<u8>().wrapping_add(pad);
    // SAFETY: `start..start + size` lies inside the mapping that was just made. Without huge pages the guest is
    // slower, not wrong, so the answer does not matter.
    unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) };
    // A core dump of the VMM must not hold the guest's memory.
    // SAFETY: as above.
    unsafe { libc::madvise(start.cast(), size, libc::MADV_DONTDUMP) };
    // SAFETY: the range is mapped with this protection and these flags, and nothing ever unmaps it.
    let region = unsafe {
        MmapRegionBuilder::new(size)
            .with_raw_mmap_pointer(start)
            .with_mmap_prot(protection)
            .with_mmap_flags(flags)
            .build()
    };
    region.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemory as _, GuestMemoryRegion};

    #[test]
    fn every_region_is_zero_writable_and_aligned_to_huge_pages() {
        let memory = map(&Layout::new(4096)).unwrap();
        for region in memory.iter() {
            let first = region.start_addr();
            let host = memory.get_host_address(first).unwrap();
            assert_eq!(host.addr() % HUGE_PAGE, 0);
            let last = GuestAddress(region.last_addr().0 - 7);
            assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0);
            memory.write_obj(42_u64, last).unwrap();
            assert_eq!(memory.read_obj::<u64>(last).unwrap(), 42);
        }
    }
}
