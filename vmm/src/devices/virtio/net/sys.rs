//! System calls on a tap that need `unsafe`: vectored input and output on guest memory, and the tap's ioctls
//! (Documentation/networking/tuntap, `linux/if_tun.h`).

use std::ffi::{c_int, c_short, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_void, iovec};
use vm_memory::VolatileSlice;

/// The definitions of the ioctls, by their numbers in `linux/if_tun.h`.
#[allow(unsafe_code, reason = "the macros make unsafe functions")]
mod ioctl {
    use std::ffi::c_int;

    nix::ioctl_write_int!(tunsetoffload, b'T', 208);
    nix::ioctl_write_ptr!(tunsetsndbuf, b'T', 212, c_int);
    nix::ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, c_int);
    // These two carry a struct ifreq, whatever their numbers say.
    nix::ioctl_read_bad!(
        tungetiff,
        nix::request_code_read!(b'T', 210, size_of::<c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_ptr_bad!(
        tunsetqueue,
        nix::request_code_write!(b'T', 217, size_of::<c_int>()),
        libc::ifreq
    );
}

/// What a tap's descriptor says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// The interface's name, with zeroes after it.
    pub(super) name: [u8; libc::IFNAMSIZ],
    /// The flags that it was made with (IFF_TAP and so on).
    pub(super) flags: c_short,
}

/// Reads one frame into `pieces`, and into `spill` what is left of it.
#[allow(unsafe_code, reason = "readv into guest memory")]
pub(super) fn read_frame(
    fd: BorrowedFd<'_>,
    pieces: &[VolatileSlice<'_>],
    spill: &mut [u8],
) -> io::Result<usize> {
    let mut vectors = Vec::with_capacity(pieces.len() + 1);
    vectors.extend(pieces.iter().map(|piece| iovec {
        iov_base: piece.ptr_guard_mut().as_ptr().cast::<c_void>(),
        iov_len: piece.len(),
    }));
    vectors.push(iovec {
        iov_base: spill.as_mut_ptr().cast::<c_void>(),
        iov_len: spill.len(),
    });
    // SAFETY: each vector is a VolatileSlice, which is mapped and writable for its lifetime and which others may
    // write at any time, or `spill`, which is borrowed mutably. All outlive the call.
    let count = unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), vector_count(&vectors)?) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes one frame.
#[allow(unsafe_code, reason = "writev from guest memory")]
pub(super) fn write_frame(fd: BorrowedFd<'_>, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let vectors: Vec<iovec> = pieces
        .iter()
        .map(|piece| iovec {
            iov_base: piece.ptr_guard().as_ptr().cast_mut().cast::<c_void>(),
            iov_len: piece.len(),
        })
        .collect();
    // SAFETY: each vector is a VolatileSlice, which is mapped for its lifetime and outlives the call; the kernel only
    // reads from it, and copes with others writing to it meanwhile.
    let count = unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), vector_count(&vectors)?) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn vector_count(vectors: &[iovec]) -> io::Result<c_int> {
    c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// TUNSETOFFLOAD: what the tap's reader finishes itself (TUN_F_*).
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_offload(fd: BorrowedFd<'_>, flags: c_uint) -> io::Result<()> {
    // SAFETY: the argument is a number.
    unsafe { ioctl::tunsetoffload(fd.as_raw_fd(), c_ulong::from(flags)) }?;
    Ok(())
}

/// TUNSETSNDBUF: how many bytes of frames may be on their way into the host's network.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_send_buffer(fd: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int from a reference to one.
    unsafe { ioctl::tunsetsndbuf(fd.as_raw_fd(), &raw const bytes) }?;
    Ok(())
}

/// TUNSETVNETHDRSZ: the size of the `virtio_net_hdr` in front of frames.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_header_size(fd: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int from a reference to one.
    unsafe { ioctl::tunsetvnethdrsz(fd.as_raw_fd(), &raw const bytes) }?;
    Ok(())
}

/// TUNGETIFF: the interface behind the descriptor.
#[allow(unsafe_code, reason = "an ioctl on a union")]
pub(super) fn interface(fd: BorrowedFd<'_>) -> io::Result<Interface> {
    let mut request = empty_request();
    // SAFETY: the kernel writes one ifreq to a reference to one.
    unsafe { ioctl::tungetiff(fd.as_raw_fd(), &raw mut request) }?;
    Ok(Interface {
        name: request.ifr_name.map(|byte| byte.to_ne_bytes()[0]),
        // SAFETY: TUNGETIFF sets the flags, and the union was zeroed before.
        flags: unsafe { request.ifr_ifru.ifru_flags },
    })
}

/// TUNSETQUEUE: has the interface use this descriptor as one of its queues, or not.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_queue(fd: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let mut request = empty_request();
    let flags = if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the kernel reads one ifreq from a reference to one.
    unsafe { ioctl::tunsetqueue(fd.as_raw_fd(), &raw const request) }?;
    Ok(())
}

#[allow(unsafe_code, reason = "a C structure with a union")]
fn empty_request() -> libc::ifreq {
    // SAFETY: an ifreq is numbers, arrays of them, and pointers; zero is valid for all.
    unsafe { std::mem::zeroed() }
}
