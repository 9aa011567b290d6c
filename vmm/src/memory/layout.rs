//! The guest-physical address space.
//!
//! ```text
//! 0                     boot structures, then free memory up to 639 KiB
//! 0xf_0000              MP table, where a kernel looks for a BIOS's
//! 0x10_0000             kernel, memory
//! LOW_MEMORY_LIMIT      PCI: 32-bit BARs (reserved in the memory map from the end of memory up to here, so that
//!                       the guest puts BARs nowhere else)
//! PCI_WINDOW.end        IOAPIC, local APICs, pages that KVM needs on Intel
//! HIGH_MEMORY_START     memory beyond the first 3 GiB
//!                       memory that the machine can grow by, at a multiple of GROWTH_ALIGNMENT
//! ```
//! All BARs are 32-bit, so nothing above 4 GiB is ever taken for one.

use std::ops::Range;

/// Where memory below 4 GiB ends at the latest.
pub const LOW_MEMORY_LIMIT: u64 = 0xc000_0000;
/// Where BARs are.
pub const PCI_WINDOW: Range<u64> = LOW_MEMORY_LIMIT..0xfec0_0000;
/// Where memory goes on above the hole.
pub const HIGH_MEMORY_START: u64 = 1 << 32;

/// Linux takes memory that comes later in whole blocks of up to so many bytes (arch/x86/mm/init_64.c); of a region that
/// starts or ends between two it does not take the rest.
pub const GROWTH_ALIGNMENT: u64 = 2 << 30;

/// The local APICs, inside KVM.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM needs for real mode on Intel (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs for real mode on Intel (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: usize = 0xfffb_d000;

/// The global descriptor table that a vCPU starts with.
pub const BOOT_GDT: u64 = 0x500;
/// PVH's `hvm_start_info`, followed by its list of modules.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH's memory map.
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// `boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x8000;
/// Page tables that map the first 4 GiB one to one: a PML4, a page directory pointer table, four page directories.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes of command line that an x86 kernel takes, with the final zero.
pub const COMMAND_LINE_MAX: usize = 2048;
/// Where conventional memory ends.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// The MP floating pointer structure and configuration table.
pub const MP_TABLE: u64 = 0xf_0000;
/// Where kernels may be loaded.
pub const KERNEL_START: u64 = 0x10_0000;
/// An initramfs must end below.
pub const INITRAMFS_LIMIT: u64 = 0x8000_0000;

/// What a range of the memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// Memory, free to use.
    Ram = 1,
    /// Not for the guest to put anything in.
    Reserved = 2,
}

/// A range of the memory map (e820).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The layout of a machine with some amount of memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    low: u64,
    high: u64,
    growth: u64,
}

impl Layout {
    /// The layout for `memory_mib` MiB of memory.
    #[must_use]
    pub fn new(memory_mib: u32) -> Self {
        let total = u64::from(memory_mib) << 20;
        let low = total.min(LOW_MEMORY_LIMIT);
        Self {
            low,
            high: total - low,
            growth: 0,
        }
    }

    /// The same for a machine that can grow to `max_memory_mib` MiB.
    #[must_use]
    pub fn growing_to(self, max_memory_mib: u32) -> Self {
        let max = u64::from(max_memory_mib) << 20;
        Self {
            growth: max
                .saturating_sub(self.low + self.high)
                .next_multiple_of(GROWTH_ALIGNMENT),
            ..self
        }
    }

    /// Where memory goes that the machine grows by, with room to spare; none if it cannot grow.
    #[must_use]
    pub fn growth(&self) -> Option<Range<u64>> {
        let start = (HIGH_MEMORY_START + self.high).next_multiple_of(GROWTH_ALIGNMENT);
        (self.growth > 0).then(|| start..start + self.growth)
    }

    /// Where memory below 4 GiB ends.
    #[must_use]
    pub fn low_memory_end(&self) -> u64 {
        self.low
    }

    /// The ranges that are backed by memory: first address and bytes.
    #[must_use]
    pub fn backed(&self) -> Vec<(u64, u64)> {
        let mut ranges = vec![(0, self.low)];
        if self.high > 0 {
            ranges.push((HIGH_MEMORY_START, self.high));
        }
        ranges.extend(self.growth().map(|range| (range.start, self.growth)));
        ranges
    }

    /// The memory map that the guest is given, in order of address.
    #[must_use]
    pub fn memory_map(&self) -> Vec<MapEntry> {
        use RangeKind::{Ram, Reserved};
        let high_end = HIGH_MEMORY_START + self.high;
        [
            (0..CONVENTIONAL_END, Ram),
            (CONVENTIONAL_END..KERNEL_START, Reserved),
            (KERNEL_START..self.low, Ram),
            (self.low..LOW_MEMORY_LIMIT, Reserved),
            (PCI_WINDOW.end..HIGH_MEMORY_START, Reserved),
            (HIGH_MEMORY_START..high_end, Ram),
        ]
        .into_iter()
        .filter(|(range, _)| !range.is_empty())
        .map(|(range, kind)| MapEntry {
            start: range.start,
            size: range.end - range.start,
            kind,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_is_split_at_the_pci_hole() {
        for (mib, expected) in [
            (64, vec![(0, 64 * MIB)]),
            (3071, vec![(0, 3071 * MIB)]),
            (3072, vec![(0, 3072 * MIB)]),
            (3073, vec![(0, 3072 * MIB), (1 << 32, MIB)]),
            (6144, vec![(0, 3072 * MIB), (1 << 32, 3072 * MIB)]),
            (
                u32::MAX,
                vec![
                    (0, 3072 * MIB),
                    (1 << 32, (u64::from(u32::MAX) - 3072) * MIB),
                ],
            ),
        ] {
            assert_eq!(Layout::new(mib).backed(), expected, "{mib} MiB");
        }
    }

    #[test]
    fn a_machine_grows_above_all_that_it_starts_with() {
        for (mib, max, expected) in [
            (512, 0, None),
            (512, 512, None),
            (512, 513, Some((4 << 30, 2 << 30))),
            (512, 2048, Some((4 << 30, 2 << 30))),
            (6144, 8192, Some((8 << 30, 2 << 30))),
            (5120, 8192, Some((6 << 30, 4 << 30))),
            (64, u32::MAX, Some((4 << 30, 1 << 52))),
        ] {
            let layout = Layout::new(mib).growing_to(max);
            let growth = layout
                .growth()
                .map(|range| (range.start, range.end - range.start));
            assert_eq!(growth, expected, "{mib} to {max} MiB");
            assert_eq!(
                layout.backed().last().copied().filter(|_| growth.is_some()),
                expected
            );
            assert_eq!(layout.memory_map(), Layout::new(mib).memory_map());
        }
    }

    #[test]
    fn the_map_is_in_order_holds_all_memory_and_leaves_only_the_pci_window_open() {
        for mib in [64, 128, 2048, 3071, 3072, 3073, 6144] {
            let map = Layout::new(mib).memory_map();
            let mut end = 0;
            let mut gaps = Vec::new();
            for entry in &map {
                assert!(entry.start >= end, "{mib} MiB: {entry:x?}");
                if entry.start > end {
                    gaps.push(end..entry.start);
                }
                end = entry.start + entry.size;
            }
            assert_eq!(gaps, [PCI_WINDOW], "{mib} MiB");
            let ram: u64 = map
                .iter()
                .filter(|entry| entry.kind == RangeKind::Ram)
                .map(|entry| entry.size)
                .sum();
            let hidden = KERNEL_START - CONVENTIONAL_END;
            assert_eq!(ram + hidden, u64::from(mib) * MIB);
        }
    }

    #[test]
    fn boot_structures_do_not_overlap() {
        let ranges = [
            (BOOT_GDT, 64),
            (PVH_START_INFO, 0x1000),
            (PVH_MEMORY_MAP, 0x1000),
            (ZERO_PAGE, 0x1000),
            (BOOT_PAGE_TABLES, 6 * 0x1000),
            (COMMAND_LINE, COMMAND_LINE_MAX as u64),
        ];
        for pair in ranges.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        assert!(ranges[5].0 + ranges[5].1 <= CONVENTIONAL_END);
    }
}
