//! Segments as a vCPU starts with them, and the descriptor table in guest memory that agrees with them.

use kvm_bindings::kvm_segment;
use vm_memory::{Bytes, GuestAddress};

use super::WriteError;
use crate::memory::GuestMemory;
use crate::memory::layout::BOOT_GDT;

/// The selector of the code segment: `__BOOT_CS` of the Linux boot protocol.
pub const CODE_SELECTOR: u16 = 0x10;
/// The selector of the data segments: `__BOOT_DS` of the Linux boot protocol.
pub const DATA_SELECTOR: u16 = 0x18;
/// The selector of the task state segment.
pub const TASK_SELECTOR: u16 = 0x20;

const EXECUTE_READ_ACCESSED: u8 = 0xb;
const READ_WRITE_ACCESSED: u8 = 0x3;
const BUSY_32_BIT_TASK: u8 = 0xb;

/// A code segment over the whole address space, of 64 bits if `long`, else of 32.
#[must_use]
pub fn code(long: bool) -> kvm_segment {
    kvm_segment {
        l: u8::from(long),
        db: u8::from(!long),
        ..flat(CODE_SELECTOR, EXECUTE_READ_ACCESSED)
    }
}

/// A data segment over the whole address space.
#[must_use]
pub fn data() -> kvm_segment {
    kvm_segment {
        db: 1,
        ..flat(DATA_SELECTOR, READ_WRITE_ACCESSED)
    }
}

/// The task state segment that PVH asks for: 32 bits, base 0, limit 0x67.
#[must_use]
pub fn task() -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        s: 0,
        g: 0,
        ..flat(TASK_SELECTOR, BUSY_32_BIT_TASK)
    }
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

/// The descriptor of a segment whose base is 0 (Intel SDM volume 3, §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    (limit & 0xffff)
        | u64::from(segment.type_) << 40
        | u64::from(segment.s) << 44
        | u64::from(segment.present) << 47
        | (limit >> 16 & 0xf) << 48
        | u64::from(segment.l) << 53
        | u64::from(segment.db) << 54
        | u64::from(segment.g) << 55
}

/// The limit of the table that [`write`] makes.
pub const LIMIT: u16 = 5 * 8 - 1;

/// Writes the descriptor table at [`BOOT_GDT`].
///
/// # Errors
/// There is no memory there.
pub fn write(memory: &GuestMemory, long: bool) -> Result<(), WriteError> {
    let table = [
        0,
        0,
        descriptor(&code(long)),
        descriptor(&data()),
        descriptor(&task()),
    ];
    let bytes: Vec<u8> = table
        .iter()
        .flat_map(|entry: &u64| entry.to_le_bytes())
        .collect();
    memory
        .write_slice(&bytes, GuestAddress(BOOT_GDT))
        .map_err(|source| WriteError {
            what: "descriptor table",
            address: BOOT_GDT,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        assert_eq!(descriptor(&code(true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&code(false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task()), 0x0000_8b00_0000_0067);
    }
}
