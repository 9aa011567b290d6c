//! Descriptors of vhost-net, the host kernel's own mover of packets between a VM's queues and a tap.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

const DEVICE: &str = "/dev/vhost-net";

/// Opens vhost-net once for each of `queue_pairs`; nothing if this host has none that may be opened here.
///
/// # Errors
/// The host has it, and no descriptor or no memory left.
pub fn open_vhost(queue_pairs: usize) -> io::Result<Option<Vec<OwnedFd>>> {
    let opened: io::Result<Vec<OwnedFd>> = (0..queue_pairs)
        .map(|_| {
            let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
            Ok(device.into())
        })
        .collect();
    match opened {
        Ok(descriptors) => Ok(Some(descriptors)),
        // ENODEV and ENXIO: a device node whose module cannot be loaded.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EACCES | libc::EPERM)
            ) =>
        {
            tracing::debug!(%error, "no {DEVICE}: the VMM moves packets itself");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
