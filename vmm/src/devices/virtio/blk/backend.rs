//! The disk behind the device.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use vm_memory::VolatileSlice;

use super::{SECTOR, sys};

/// Why a descriptor is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is neither a block device nor a regular file.
    #[error("the descriptor is neither of a block device nor of a regular file")]
    Kind,
    /// It cannot be read, or not be written though the disk is not read-only.
    #[error("the descriptor is not open for what the disk is for")]
    Access,
    /// It has not one sector.
    #[error("a disk of {0} bytes has no sector of 512")]
    Empty(u64),
    /// The host does not tell.
    #[error("{operation}")]
    Host {
        /// What was asked.
        operation: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

/// A block device or a file of the host's. What is written is on it for good once it was flushed.
#[derive(Debug)]
pub struct Disk {
    file: File,
    bytes: u64,
    logical_block: u32,
    readonly: bool,
}

impl Disk {
    /// The disk that `descriptor` is open on. Its size is what it has now.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn new(descriptor: OwnedFd, readonly: bool) -> Result<Self, DiskError> {
        let host = |operation| move |source| DiskError::Host { operation, source };
        let flags = fcntl(&descriptor, FcntlArg::F_GETFL)
            .map_err(|errno| host("look how the disk is open")(errno.into()))?;
        let file = File::from(descriptor);
        let metadata = file.metadata().map_err(host("look at the disk"))?;
        let kind = metadata.file_type();
        let (bytes, logical_block) = if kind.is_block_device() {
            let bytes = sys::size_of_device(file.as_fd()).map_err(host("ask the disk's size"))?;
            let block = sys::logical_block(file.as_fd()).map_err(host("ask the disk's block"))?;
            (bytes, block)
        } else if kind.is_file() {
            (metadata.len(), 512)
        } else {
            return Err(DiskError::Kind);
        };
        let access = OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE;
        if access != OFlag::O_RDWR && !(readonly && access == OFlag::O_RDONLY) {
            return Err(DiskError::Access);
        }
        if bytes < SECTOR {
            return Err(DiskError::Empty(bytes));
        }
        Ok(Self {
            file,
            bytes,
            logical_block,
            readonly,
        })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.bytes / SECTOR
    }

    /// In bytes.
    pub(super) fn logical_block(&self) -> u32 {
        self.logical_block
    }

    pub(super) fn is_readonly(&self) -> bool {
        self.readonly
    }

    /// Fills `pieces` with what is at the byte `offset`.
    pub(super) fn read(&self, pieces: Vec<VolatileSlice<'_>>, offset: u64) -> io::Result<()> {
        whole(pieces, offset, |pieces, offset| {
            sys::read_at(self.file.as_fd(), pieces, offset)
        })
    }

    /// Puts `pieces` at the byte `offset`.
    pub(super) fn write(&self, pieces: Vec<VolatileSlice<'_>>, offset: u64) -> io::Result<()> {
        whole(pieces, offset, |pieces, offset| {
            sys::write_at(self.file.as_fd(), pieces, offset)
        })
    }

    /// What was written is there for good when this returns.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives `length` bytes at `offset` back to the host; they read as zeroes then.
    pub(super) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, length)
    }

    /// Makes `length` bytes at `offset` zeroes, which keep their place.
    pub(super) fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, length)
    }

    fn allocate(&self, flag: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        let flags = flag | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let number = |value: u64| {
            i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
        };
        fallocate(&self.file, flags, number(offset)?, number(length)?).map_err(|errno| {
            match errno {
                // The libc crate has one name for both numbers.
                Errno::EOPNOTSUPP | Errno::ENOSYS => io::ErrorKind::Unsupported.into(),
                errno => errno.into(),
            }
        })
    }
}

/// Calls `transfer` until all of `pieces` has passed: a call may move only a part.
fn whole(
    mut pieces: Vec<VolatileSlice<'_>>,
    mut offset: u64,
    transfer: impl Fn(&[VolatileSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut first = 0;
    while first < pieces.len() {
        let mut moved = match transfer(&pieces[first..], offset) {
            // The file is shorter than it was.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        offset += u64::try_from(moved).map_err(io::Error::other)?;
        while let Some(piece) = pieces.get(first)
            && moved >= piece.len()
        {
            moved -= piece.len();
            first += 1;
        }
        if moved > 0 {
            pieces[first] = pieces[first].offset(moved).map_err(io::Error::other)?;
        }
    }
    Ok(())
}
