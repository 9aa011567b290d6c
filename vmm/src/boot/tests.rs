use super::*;
use std::io::Write;
use vm_memory::ByteValued;

fn file(content: &[u8]) -> BootFile {
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(content).unwrap();
    BootFile::open(named.path()).unwrap()
}

fn machine(mib: u32) -> (Layout, GuestMemory) {
    let layout = Layout::new(mib);
    let memory = crate::memory::map(&layout).unwrap();
    (layout, memory)
}

/// An ELF with one load segment at 16 MiB and, if asked for, a PVH note.
fn elf(pvh: bool) -> Vec<u8> {
    let mut image = vec![0_u8; 0x1000];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    image[16..20].copy_from_slice(&[2, 0, 0x3e, 0]);
    image[24..32].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    image[32..40].copy_from_slice(&64_u64.to_le_bytes());
    image[54..56].copy_from_slice(&56_u16.to_le_bytes());
    image[56..58].copy_from_slice(&(1 + u16::from(pvh)).to_le_bytes());
    let mut header =
        |index: usize, kind: u32, offset: u64, address: u64, file: u64, memory: u64| {
            let at = 64 + 56 * index;
            image[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            image[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
            image[at + 24..at + 32].copy_from_slice(&address.to_le_bytes());
            image[at + 32..at + 40].copy_from_slice(&file.to_le_bytes());
            image[at + 40..at + 48].copy_from_slice(&memory.to_le_bytes());
        };
    header(0, 1, 0x800, 0x100_0000, 0x800, 0x2000);
    if pvh {
        header(1, 4, 0x400, 0, 20, 20);
        image[0x400..0x404].copy_from_slice(&4_u32.to_le_bytes());
        image[0x404..0x408].copy_from_slice(&4_u32.to_le_bytes());
        image[0x408..0x40c].copy_from_slice(&18_u32.to_le_bytes());
        image[0x40c..0x410].copy_from_slice(b"Xen\0");
        image[0x410..0x414].copy_from_slice(&0x100_0040_u32.to_le_bytes());
    }
    image[0x800..0x804].copy_from_slice(b"CODE");
    image
}

fn bzimage() -> Vec<u8> {
    let mut image = vec![0_u8; 0x2000];
    let mut header = setup_header {
        setup_sects: 4,
        header: 0x5372_6448,
        version: 0x20f,
        loadflags: 1,
        xloadflags: 1,
        initrd_addr_max: 0x7fff_ffff,
        pref_address: 0x100_0000,
        init_size: 0x10_0000,
        ..setup_header::default()
    };
    image[0x1f1..0x1f1 + size_of::<setup_header>()].copy_from_slice(header.as_mut_slice());
    image[5 * 512..5 * 512 + 4].copy_from_slice(b"CODE");
    image
}

#[test]
fn an_elf_with_a_note_is_entered_by_pvh() {
    let (layout, memory) = machine(64);
    let entry = load(
        &memory,
        &layout,
        &mut file(&elf(true)),
        &mut file(b"initramfs"),
        "quiet",
    )
    .unwrap();
    assert_eq!(
        entry,
        Entry::Pvh {
            address: 0x100_0040
        }
    );
    let code: [u8; 4] = memory.read_obj(GuestAddress(0x100_0000)).unwrap();
    assert_eq!(&code, b"CODE");
    let line: [u8; 6] = memory.read_obj(GuestAddress(COMMAND_LINE)).unwrap();
    assert_eq!(&line, b"quiet\0");
    let initramfs: [u8; 9] = memory.read_obj(GuestAddress((64 << 20) - 0x1000)).unwrap();
    assert_eq!(&initramfs, b"initramfs");
}

#[test]
fn an_elf_without_a_note_is_entered_in_64_bit_mode() {
    let (layout, memory) = machine(64);
    let entry = load(
        &memory,
        &layout,
        &mut file(&elf(false)),
        &mut file(b"i"),
        "",
    )
    .unwrap();
    assert_eq!(
        entry,
        Entry::Linux64 {
            address: 0x100_0000
        }
    );
}

#[test]
fn a_bzimage_is_loaded_where_it_prefers() {
    let (layout, memory) = machine(64);
    let entry = load(&memory, &layout, &mut file(&bzimage()), &mut file(b"i"), "").unwrap();
    assert_eq!(
        entry,
        Entry::Linux64 {
            address: 0x100_0200
        }
    );
    let code: [u8; 4] = memory.read_obj(GuestAddress(0x100_0000)).unwrap();
    assert_eq!(&code, b"CODE");
}

#[test]
fn what_is_not_a_kernel_is_refused() {
    let mut foreign = elf(true);
    foreign[18] = 0xb7;
    let mut program = elf(false);
    program[24..32].copy_from_slice(&0x6ab0_u64.to_le_bytes());
    let mut old = bzimage();
    old[0x206..0x208].copy_from_slice(&0x20b_u16.to_le_bytes());
    for content in [
        &[][..],
        b"#!/bin/sh\n",
        &[0; 4096],
        &foreign,
        &program,
        &old,
    ] {
        let (layout, memory) = machine(64);
        let error = load(&memory, &layout, &mut file(content), &mut file(b"i"), "").unwrap_err();
        assert!(matches!(error, BootError::NotAKernel { .. }), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (layout, memory) = machine(64);
    let mut large = elf(true);
    large[64 + 40..64 + 48].copy_from_slice(&(1_u64 << 30).to_le_bytes());
    let error = load(&memory, &layout, &mut file(&large), &mut file(b"i"), "").unwrap_err();
    assert!(matches!(error, BootError::TooLarge { .. }), "{error}");

    let mut outside = elf(true);
    outside[64 + 24..64 + 32].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    let error = load(&memory, &layout, &mut file(&outside), &mut file(b"i"), "").unwrap_err();
    assert!(matches!(error, BootError::Load { .. }), "{error}");

    let sparse = tempfile::NamedTempFile::new().unwrap();
    sparse.as_file().set_len(60 << 20).unwrap();
    let mut initramfs = BootFile::open(sparse.path()).unwrap();
    let error = load(&memory, &layout, &mut file(&elf(true)), &mut initramfs, "").unwrap_err();
    assert!(matches!(error, BootError::TooLarge { .. }), "{error}");

    let error = load(&memory, &layout, &mut file(&elf(true)), &mut file(b""), "").unwrap_err();
    assert!(matches!(error, BootError::EmptyInitramfs { .. }), "{error}");

    let line = "x".repeat(COMMAND_LINE_MAX);
    let error = load(
        &memory,
        &layout,
        &mut file(&elf(true)),
        &mut file(b"i"),
        &line,
    )
    .unwrap_err();
    assert!(
        matches!(error, BootError::CommandLineTooLong { .. }),
        "{error}"
    );
}
