//! The registers that the first vCPU starts with, for each way into a kernel.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_sregs};

use super::gdt;
use crate::memory::layout::{BOOT_GDT, BOOT_PAGE_TABLES, PVH_START_INFO, ZERO_PAGE};

const CR0_PROTECTION: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// The bit of RFLAGS that is always one.
const FLAGS_FIXED: u64 = 1 << 1;

/// Where and how the first vCPU enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, EBX pointing to the start info (Xen's PVH boot ABI).
    Pvh {
        /// Guest-physical address.
        address: u64,
    },
    /// 64-bit mode with the first 4 GiB mapped, RSI pointing to the zero page (`Documentation/arch/x86/boot.rst`,
    /// "64-bit boot protocol").
    Linux64 {
        /// Guest-physical address.
        address: u64,
    },
}

impl Entry {
    /// The general registers.
    #[must_use]
    pub fn registers(self) -> kvm_regs {
        match self {
            Self::Pvh { address } => kvm_regs {
                rip: address,
                rbx: PVH_START_INFO,
                rflags: FLAGS_FIXED,
                ..kvm_regs::default()
            },
            Self::Linux64 { address } => kvm_regs {
                rip: address,
                rsi: ZERO_PAGE,
                rflags: FLAGS_FIXED,
                ..kvm_regs::default()
            },
        }
    }

    /// The system registers, made from those that KVM gave the vCPU at reset.
    #[must_use]
    pub fn system_registers(self, reset: kvm_sregs) -> kvm_sregs {
        let long = self.is_long();
        let data = gdt::data();
        let registers = kvm_sregs {
            cs: gdt::code(long),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: gdt::task(),
            gdt: kvm_dtable {
                base: BOOT_GDT,
                limit: gdt::LIMIT,
                padding: [0; 3],
            },
            cr0: CR0_PROTECTION | CR0_EXTENSION_TYPE,
            cr4: 0,
            ..reset
        };
        if !long {
            return registers;
        }
        kvm_sregs {
            cr0: registers.cr0 | CR0_PAGING,
            cr3: BOOT_PAGE_TABLES,
            cr4: CR4_PHYSICAL_ADDRESS_EXTENSION,
            efer: registers.efer | EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE,
            ..registers
        }
    }

    /// Whether the kernel is entered in 64-bit mode.
    #[must_use]
    pub fn is_long(self) -> bool {
        matches!(self, Self::Linux64 { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pvh_enters_without_paging_and_linux64_with() {
        let pvh = Entry::Pvh {
            address: 0x100_0000,
        };
        let registers = pvh.system_registers(kvm_sregs::default());
        assert_eq!(
            registers.cr0 & (CR0_PROTECTION | CR0_PAGING),
            CR0_PROTECTION
        );
        assert_eq!((registers.cs.l, registers.cs.db), (0, 1));
        assert_eq!(pvh.registers().rbx, PVH_START_INFO);

        let linux = Entry::Linux64 {
            address: 0x100_0200,
        };
        let registers = linux.system_registers(kvm_sregs::default());
        assert_ne!(registers.cr0 & CR0_PAGING, 0);
        assert_eq!((registers.cs.l, registers.cs.db), (1, 0));
        assert_eq!(
            registers.efer,
            EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE
        );
        assert_eq!(linux.registers().rsi, ZERO_PAGE);
    }
}
