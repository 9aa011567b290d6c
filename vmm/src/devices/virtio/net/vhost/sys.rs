//! The ioctls of vhost and vhost-net (`linux/vhost.h`, `linux/vhost_types.h`). The kernel takes addresses of this
//! process in them, and reads and writes there until it is told to stop.

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The definitions of the ioctls, by their numbers in `linux/vhost.h`.
#[allow(unsafe_code, reason = "the macros make unsafe functions")]
mod ioctl {
    use super::{VringAddress, VringFile, VringState};

    const VHOST: u8 = 0xaf;
    /// `struct vhost_memory` without its regions, which have no size in C.
    const MEMORY_HEADER: usize = 8;

    nix::ioctl_read!(get_features, VHOST, 0x00, u64);
    nix::ioctl_write_ptr!(set_features, VHOST, 0x00, u64);
    nix::ioctl_none!(set_owner, VHOST, 0x01);
    nix::ioctl_write_ptr_bad!(
        set_memory_table,
        nix::request_code_write!(VHOST, 0x03, MEMORY_HEADER),
        u64
    );
    nix::ioctl_write_ptr!(set_vring_size, VHOST, 0x10, VringState);
    nix::ioctl_write_ptr!(set_vring_address, VHOST, 0x11, VringAddress);
    nix::ioctl_write_ptr!(set_vring_base, VHOST, 0x12, VringState);
    nix::ioctl_write_ptr!(set_vring_kick, VHOST, 0x20, VringFile);
    nix::ioctl_write_ptr!(set_vring_call, VHOST, 0x21, VringFile);
    nix::ioctl_write_ptr!(set_backend, VHOST, 0x30, VringFile);
}

/// `struct vhost_memory_region` without its flags, which are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryRegion {
    /// The first guest-physical address.
    pub(super) guest: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Where the region is mapped in this process.
    pub(super) host: u64,
}

/// `struct vhost_vring_addr`. The addresses are those of this process.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct VringAddress {
    pub(super) index: c_uint,
    pub(super) flags: c_uint,
    pub(super) descriptors: u64,
    pub(super) used: u64,
    pub(super) available: u64,
    pub(super) log: u64,
}

/// `struct vhost_vring_state`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct VringState {
    index: c_uint,
    number: c_uint,
}

/// `struct vhost_vring_file`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct VringFile {
    index: c_uint,
    fd: c_int,
}

impl VringFile {
    /// A descriptor for ring `index`, or the end of the one that it has.
    fn new(index: c_uint, fd: Option<&impl AsRawFd>) -> Self {
        Self {
            index,
            fd: fd.map_or(-1, AsRawFd::as_raw_fd),
        }
    }
}

/// VHOST_GET_FEATURES: what the host's kernel knows.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn features(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut features = 0;
    // SAFETY: the kernel writes one u64 to a reference to one.
    unsafe { ioctl::get_features(fd.as_raw_fd(), &raw mut features) }?;
    Ok(features)
}

/// VHOST_SET_FEATURES: what was agreed with the driver.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_features(fd: BorrowedFd<'_>, features: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one u64 from a reference to one.
    unsafe { ioctl::set_features(fd.as_raw_fd(), &raw const features) }?;
    Ok(())
}

/// VHOST_SET_OWNER: the addresses are those of this process, which has the work done in a thread of the kernel's.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_owner(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: there is no argument.
    unsafe { ioctl::set_owner(fd.as_raw_fd()) }?;
    Ok(())
}

/// VHOST_SET_MEM_TABLE: where guest memory is, for the addresses in descriptors.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_memory_table(fd: BorrowedFd<'_>, regions: &[MemoryRegion]) -> io::Result<()> {
    // struct vhost_memory { u32 nregions; u32 padding; struct vhost_memory_region regions[]; }, on a little-endian
    // machine.
    let count = u32::try_from(regions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut table = vec![u64::from(count)];
    for region in regions {
        table.extend([region.guest, region.size, region.host, 0]);
    }
    // SAFETY: the kernel reads the count, and four words for each region, which is what the table holds. That the
    // regions are mapped, and stay so while the queues are at work, is for the caller to see to: guest memory is
    // mapped until the process ends.
    unsafe { ioctl::set_memory_table(fd.as_raw_fd(), table.as_ptr()) }?;
    Ok(())
}

/// VHOST_SET_VRING_NUM: the number of descriptors.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_vring_size(fd: BorrowedFd<'_>, index: c_uint, size: u16) -> io::Result<()> {
    let state = VringState {
        index,
        number: size.into(),
    };
    // SAFETY: the kernel reads one structure from a reference to one.
    unsafe { ioctl::set_vring_size(fd.as_raw_fd(), &raw const state) }?;
    Ok(())
}

/// VHOST_SET_VRING_BASE: the first entry of the available ring to be looked at.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_vring_base(fd: BorrowedFd<'_>, index: c_uint, next: u16) -> io::Result<()> {
    let state = VringState {
        index,
        number: next.into(),
    };
    // SAFETY: the kernel reads one structure from a reference to one.
    unsafe { ioctl::set_vring_base(fd.as_raw_fd(), &raw const state) }?;
    Ok(())
}

/// VHOST_SET_VRING_ADDR: where the ring is.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_vring_address(fd: BorrowedFd<'_>, address: &VringAddress) -> io::Result<()> {
    // SAFETY: the kernel reads one structure from a reference to one. The addresses in it are those of a ring that
    // lies in guest memory as a whole, which the caller has checked; the kernel copes with any others.
    unsafe { ioctl::set_vring_address(fd.as_raw_fd(), address) }?;
    Ok(())
}

/// VHOST_SET_VRING_KICK: the eventfd that tells of what the driver has offered.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_vring_kick(fd: BorrowedFd<'_>, index: c_uint, event: &EventFd) -> io::Result<()> {
    let file = VringFile::new(index, Some(event));
    // SAFETY: the kernel reads one structure from a reference to one, and takes a reference to the file.
    unsafe { ioctl::set_vring_kick(fd.as_raw_fd(), &raw const file) }?;
    Ok(())
}

/// VHOST_SET_VRING_CALL: the eventfd that interrupts; none for a driver that wants no interrupts.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_vring_call(
    fd: BorrowedFd<'_>,
    index: c_uint,
    event: Option<&EventFd>,
) -> io::Result<()> {
    let file = VringFile::new(index, event);
    // SAFETY: the kernel reads one structure from a reference to one, and takes a reference to the file.
    unsafe { ioctl::set_vring_call(fd.as_raw_fd(), &raw const file) }?;
    Ok(())
}

/// VHOST_NET_SET_BACKEND: starts the work on a ring, with a tap; without one stops it, and waits for its end.
#[allow(unsafe_code, reason = "an ioctl")]
pub(super) fn set_backend(
    fd: BorrowedFd<'_>,
    index: c_uint,
    tap: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let file = VringFile::new(index, tap.as_ref());
    // SAFETY: the kernel reads one structure from a reference to one, and takes a reference to the file. From here on
    // it accesses the ring and guest memory, as shared memory that others write at any time.
    unsafe { ioctl::set_backend(fd.as_raw_fd(), &raw const file) }?;
    Ok(())
}
