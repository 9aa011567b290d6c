//! Taps: the ends of virtual cables that the VMM holds.

use std::ffi::{c_char, c_int, c_short};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::error::Error;

const TUN_DEVICE: &str = "/dev/net/tun";

/// Bytes of the header before each frame: `struct virtio_net_hdr_v1` (virtio 1.2 §5.1.6).
const VNET_HEADER_BYTES: c_int = 12;

/// The largest MTU of a tap: 65535 bytes with the Ethernet header.
pub(super) const MAX_MTU: u32 = 65_521;

mod ioctl {
    // TUNSETIFF and TUNSETVNETHDRSZ of <linux/if_tun.h>, which are declared to take an int.
    nix::ioctl_write_ptr_bad!(
        tun_set_iff,
        nix::request_code_write!(b'T', 202, size_of::<std::ffi::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_ptr!(tun_set_vnet_hdr_size, b'T', 216, std::ffi::c_int);
}

/// Makes a tap in the calling thread's network namespace, with a descriptor for each queue pair. It is not
/// persistent: it goes when the last descriptor is closed.
///
/// # Errors
/// See [`Error::Tap`]; a tap of that name may be there already.
pub(super) fn create(name: &str, queue_pairs: u16) -> Result<Vec<OwnedFd>, Error> {
    let mut queues: Vec<OwnedFd> = Vec::new();
    for _ in 0..queue_pairs.max(1) {
        let queue = open_queue(name, queue_pairs > 1, queues.is_empty()).map_err(
            |(operation, source)| Error::Tap {
                name: name.into(),
                operation,
                source,
            },
        )?;
        queues.push(queue.into());
    }
    Ok(queues)
}

fn open_queue(
    name: &str,
    multi_queue: bool,
    first: bool,
) -> Result<File, (&'static str, io::Error)> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_DEVICE)
        .map_err(|error| ("open /dev/net/tun", error))?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if first {
        // Never join a tap that someone else has made.
        flags |= libc::IFF_TUN_EXCL;
    }
    let request = interface_request(name, flags).map_err(|error| ("name", error))?;
    // SAFETY: `request` is a whole `struct ifreq`, which the kernel reads and writes back within the call.
    #[allow(unsafe_code)]
    unsafe { ioctl::tun_set_iff(tun.as_raw_fd(), &request) }
        .map_err(|errno| ("TUNSETIFF", errno.into()))?;
    // SAFETY: the kernel reads one int.
    #[allow(unsafe_code)]
    unsafe { ioctl::tun_set_vnet_hdr_size(tun.as_raw_fd(), &VNET_HEADER_BYTES) }
        .map_err(|errno| ("TUNSETVNETHDRSZ", errno.into()))?;
    Ok(tun)
}

fn interface_request(name: &str, flags: c_int) -> io::Result<libc::ifreq> {
    let mut ifr_name: [c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    if name.len() >= ifr_name.len() || !name.is_ascii() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    // The flags fill all 16 bits of a field that is declared signed.
    #[allow(clippy::cast_possible_truncation)]
    let ifru_flags = flags as c_short;
    Ok(libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags },
    })
}
