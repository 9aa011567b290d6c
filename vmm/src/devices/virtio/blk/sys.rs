//! System calls on a disk that need `unsafe`: vectored input and output on guest memory, and a block device's ioctls
//! (`linux/fs.h`).

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_void, iovec, off_t};
use vm_memory::VolatileSlice;

/// The definitions of the ioctls, by their numbers in `linux/fs.h`.
#[allow(unsafe_code, reason = "the macros make unsafe functions")]
mod ioctl {
    use std::ffi::c_int;

    nix::ioctl_read_bad!(blksszget, libc::BLKSSZGET, c_int);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
}

/// Reads from `offset` into `pieces`; gives how many bytes there were.
#[allow(unsafe_code, reason = "preadv into guest memory")]
pub(super) fn read_at(
    fd: BorrowedFd<'_>,
    pieces: &[VolatileSlice<'_>],
    offset: u64,
) -> io::Result<usize> {
    let vectors: Vec<iovec> = pieces
        .iter()
        .map(|piece| iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast::<c_void>(),
            iov_len: piece.len(),
        })
        .collect();
    let (count, offset) = numbers(&vectors, offset)?;
    // SAFETY: each vector is a VolatileSlice, which is mapped and writable for its lifetime, outlives the call, and which
    // others may write at any time.
    let count = unsafe { libc::preadv(fd.as_raw_fd(), vectors.as_ptr(), count, offset) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes `pieces` to `offset`; gives how many bytes were written.
#[allow(unsafe_code, reason = "pwritev from guest memory")]
pub(super) fn write_at(
    fd: BorrowedFd<'_>,
    pieces: &[VolatileSlice<'_>],
    offset: u64,
) -> io::Result<usize> {
    let vectors: Vec<iovec> = pieces
        .iter()
        .map(|piece| iovec {
            iov_base: piece.ptr_guard().as_ptr().cast_mut().cast::<c_void>(),
            iov_len: piece.len(),
        })
        .collect();
    let (count, offset) = numbers(&vectors, offset)?;
    // SAFETY: each vector is a VolatileSlice, which is mapped for its lifetime and outlives the call; the kernel only
    // reads from it, and copes with others writing to it meanwhile.
    let count = unsafe { libc::pwritev(fd.as_raw_fd(), vectors.as_ptr(), count, offset) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn numbers(vectors: &[iovec], offset: u64) -> io::Result<(c_int, off_t)> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let count = c_int::try_from(vectors.len()).map_err(invalid)?;
    Ok((count, off_t::try_from(offset).map_err(invalid)?))
}

/// BLKGETSIZE64: how many bytes a block device has.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn size_of_device(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the kernel writes one u64 to a reference to one.
    unsafe { ioctl::blkgetsize64(fd.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

/// BLKSSZGET: the bytes of a block device's logical block.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn logical_block(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes one int to a reference to one.
    unsafe { ioctl::blksszget(fd.as_raw_fd(), &raw mut bytes) }?;
    u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}
