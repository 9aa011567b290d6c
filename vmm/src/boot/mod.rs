//! Puts a kernel, its initramfs and its command line into guest memory, and says where the first vCPU enters.
//!
//! Three kinds of kernel are taken: an ELF with a PVH note (entered by PVH), an ELF without one (entered in 64-bit
//! mode), and a bzImage (entered in 64-bit mode at its decompressor). Runs once, before the guest does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::registers::Entry;
use crate::arch::x86_64::{WriteError, boot_params, gdt, page_tables, start_info};
use crate::memory::GuestMemory;
use crate::memory::layout::{
    COMMAND_LINE, COMMAND_LINE_MAX, INITRAMFS_LIMIT, KERNEL_START, Layout,
};

pub mod command_line;

const PAGE: u64 = 0x1000;

/// Why a machine has nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("{operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The file is no x86-64 kernel.
    #[error("{path} is not a kernel: {reason}")]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// It is a kernel, and it cannot be loaded.
    #[error("load the kernel {path}")]
    Load {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// Kernel and initramfs do not fit.
    #[error(
        "{path} needs {needed} bytes of guest memory below {limit:#x}, which has not so many left"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// The end of the memory it may use.
        limit: u64,
    },
    /// The initramfs has no bytes.
    #[error("the initramfs {path} is empty")]
    EmptyInitramfs {
        /// The file.
        path: PathBuf,
    },
    /// The command line does not fit.
    #[error("the kernel command line has {length} bytes, {limit} are the limit")]
    CommandLineTooLong {
        /// Its bytes.
        length: usize,
        /// Bytes that fit.
        limit: usize,
    },
    /// A boot structure does not fit.
    #[error(transparent)]
    Structure(#[from] WriteError),
}

/// A file to boot, opened, with the path that it was opened by (for messages).
#[derive(Debug)]
pub struct BootFile {
    /// The file.
    pub file: File,
    /// Its path.
    pub path: PathBuf,
}

impl BootFile {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or is no file.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let error = |source| BootError::File {
            operation: "open",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(error)?;
        if !file.metadata().map_err(error)?.is_file() {
            return Err(error(io::ErrorKind::InvalidInput.into()));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    fn read_error(&self, source: io::Error) -> BootError {
        BootError::File {
            operation: "read",
            path: self.path.clone(),
            source,
        }
    }

    fn not_a_kernel(&self, reason: &'static str) -> BootError {
        BootError::NotAKernel {
            path: self.path.clone(),
            reason,
        }
    }

    fn too_large(&self, needed: u64, limit: u64) -> BootError {
        BootError::TooLarge {
            path: self.path.clone(),
            needed,
            limit,
        }
    }
}

/// A kernel in guest memory.
struct Loaded {
    entry: Entry,
    /// Where the memory that the kernel uses before it reads its memory map ends.
    end: u64,
    header: Option<setup_header>,
}

/// Loads everything and writes the boot structures.
///
/// # Errors
/// See [`BootError`].
pub fn load(
    memory: &GuestMemory,
    layout: &Layout,
    kernel: &mut BootFile,
    initramfs: &mut BootFile,
    command_line: &str,
) -> Result<Entry, BootError> {
    let loaded = load_kernel(memory, layout, kernel)?;
    let (address, size) = load_initramfs(memory, layout, initramfs, &loaded)?;
    write_command_line(memory, command_line)?;
    gdt::write(memory, loaded.entry.is_long())?;
    match loaded.entry {
        Entry::Pvh { .. } => {
            start_info::write(memory, layout, (address.into(), size.into()))?;
        }
        Entry::Linux64 { .. } => {
            page_tables::write(memory)?;
            boot_params::write(memory, layout, loaded.header, (address, size))?;
        }
    }
    Ok(loaded.entry)
}

fn load_kernel(
    memory: &GuestMemory,
    layout: &Layout,
    kernel: &mut BootFile,
) -> Result<Loaded, BootError> {
    let mut start = [0; 0x210];
    let length = kernel
        .file
        .read_at(&mut start, 0)
        .map_err(|source| kernel.read_error(source))?;
    if length < start.len() {
        return Err(kernel.not_a_kernel("it is too short"));
    }
    let loaded = if start.starts_with(b"\x7fELF") {
        load_elf(memory, kernel, &start)?
    } else if start[0x202..0x206] == *b"HdrS" {
        load_bzimage(memory, layout, kernel)?
    } else {
        return Err(kernel.not_a_kernel("it is neither an ELF nor a bzImage"));
    };
    if loaded.end > layout.low_memory_end() {
        return Err(kernel.too_large(loaded.end - KERNEL_START, layout.low_memory_end()));
    }
    Ok(loaded)
}

fn load_elf(
    memory: &GuestMemory,
    kernel: &mut BootFile,
    start: &[u8],
) -> Result<Loaded, BootError> {
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u16 = 62;
    let machine = u16::from_le_bytes([start[18], start[19]]);
    if start[4] != CLASS_64 || machine != MACHINE_X86_64 {
        return Err(kernel.not_a_kernel("it is an ELF, but not one of x86-64"));
    }
    let address = u64::from_le_bytes(start[24..32].try_into().unwrap_or_default());
    if address < KERNEL_START {
        return Err(kernel.not_a_kernel("it is an ELF program: its entry is below 1 MiB"));
    }
    let loaded = Elf::load(
        memory,
        None,
        &mut kernel.file,
        Some(GuestAddress(KERNEL_START)),
    )
    .map_err(|source| BootError::Load {
        path: kernel.path.clone(),
        source,
    })?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => Entry::Pvh { address: address.0 },
        _ => Entry::Linux64 { address },
    };
    Ok(Loaded {
        entry,
        end: loaded.kernel_end,
        header: None,
    })
}

fn load_bzimage(
    memory: &GuestMemory,
    layout: &Layout,
    kernel: &mut BootFile,
) -> Result<Loaded, BootError> {
    /// `xloadflags`: there is a 64-bit entry.
    const KERNEL_64: u16 = 1;
    const ENTRY_64_OFFSET: u64 = 0x200;
    // The first pass reads the header only for what it says about the load address.
    let header = read_setup_header(kernel)?;
    let (version, xloadflags) = (header.version, header.xloadflags);
    if version < 0x20c || xloadflags & KERNEL_64 == 0 {
        return Err(kernel.not_a_kernel("the bzImage has no 64-bit entry"));
    }
    let (preferred, init_size) = (header.pref_address, u64::from(header.init_size));
    let load_at = preferred.max(KERNEL_START);
    let limit = layout.low_memory_end();
    if load_at.checked_add(init_size).is_none_or(|end| end > limit) {
        return Err(kernel.too_large(init_size, limit));
    }
    let loaded = BzImage::load(memory, Some(GuestAddress(load_at)), &mut kernel.file, None)
        .map_err(|source| BootError::Load {
            path: kernel.path.clone(),
            source,
        })?;
    Ok(Loaded {
        entry: Entry::Linux64 {
            address: load_at + ENTRY_64_OFFSET,
        },
        end: loaded.kernel_end.max(load_at + init_size),
        header: loaded.setup_header,
    })
}

fn read_setup_header(kernel: &BootFile) -> Result<setup_header, BootError> {
    use vm_memory::ByteValued;
    const HEADER_OFFSET: u64 = 0x1f1;
    let mut header = setup_header::default();
    kernel
        .file
        .read_exact_at(header.as_mut_slice(), HEADER_OFFSET)
        .map_err(|source| kernel.read_error(source))?;
    Ok(header)
}

/// Puts the initramfs at the top of the memory that every kernel takes one in; gives its address and size.
fn load_initramfs(
    memory: &GuestMemory,
    layout: &Layout,
    initramfs: &mut BootFile,
    kernel: &Loaded,
) -> Result<(u32, u32), BootError> {
    let size = initramfs
        .file
        .metadata()
        .map_err(|source| initramfs.read_error(source))?
        .len();
    if size == 0 {
        return Err(BootError::EmptyInitramfs {
            path: initramfs.path.clone(),
        });
    }
    let mut limit = layout.low_memory_end().min(INITRAMFS_LIMIT);
    if let Some(header) = kernel.header {
        limit = limit.min(u64::from(header.initrd_addr_max) + 1);
    }
    let address = limit
        .checked_sub(size)
        .map(|address| address & !(PAGE - 1))
        .filter(|address| *address >= kernel.end)
        .ok_or_else(|| initramfs.too_large(size, limit))?;
    let (Ok(address32), Ok(size32), Ok(bytes)) = (
        u32::try_from(address),
        u32::try_from(size),
        usize::try_from(size),
    ) else {
        return Err(initramfs.too_large(size, limit));
    };
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut initramfs.file, bytes)
        .map_err(|source| initramfs.read_error(io::Error::other(source)))?;
    Ok((address32, size32))
}

fn write_command_line(memory: &GuestMemory, command_line: &str) -> Result<(), BootError> {
    if command_line.len() >= COMMAND_LINE_MAX {
        return Err(BootError::CommandLineTooLong {
            length: command_line.len(),
            limit: COMMAND_LINE_MAX - 1,
        });
    }
    let mut bytes = command_line.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(COMMAND_LINE))
        .map_err(|source| WriteError {
            what: "command line",
            address: COMMAND_LINE,
            source,
        })?;
    Ok(())
}

#[cfg(test)]
mod tests;
