//! Guest memory: where it lies in the guest's physical address space ([`layout`]), and what backs it.

use std::io;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestRegionMmap};

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
    for (start, size) in layout.backed() {
        let bytes = usize::try_from(size).map_err(|_| MemoryError::Range { start })?;
        let region = map_aligned(bytes).map_err(|source| MemoryError::Map { size, source })?;
        regions.push(
            GuestRegionMmap::new(region, GuestAddress(start))
                .ok_or(MemoryError::Range { start })?,
        );
    }
    GuestMemoryMmap::from_regions(regions).map_err(|_| MemoryError::Range { start: 0 })
}

/// Gives what lies in `bytes` bytes from `start` on back to the host; they read as zeros from then on.
///
/// # Errors
/// The range is not in one region of memory, or the host refused.
#[allow(unsafe_code)]
pub fn discard(memory: &GuestMemory, start: u64, bytes: u64) -> io::Result<()> {
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let slice = memory
        .get_slice(GuestAddress(start), length)
        .map_err(io::Error::other)?;
    let host = slice.ptr_guard_mut();
    // SAFETY: the slice is a checked part of guest memory, a private anonymous mapping that lives as long as this
    // process. The guest writes it at any time, so nobody in this process relies on what it holds.
    let result = unsafe { libc::madvise(host.as_ptr().cast(), length, libc::MADV_DONTNEED) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
    use vm_memory::{Bytes, GuestMemoryRegion};

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
