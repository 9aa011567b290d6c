//! Device nodes: those that every Linux has mean the same in the guest; any other is a piece of the host.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::RootfsError;

/// Character devices that the guest's kernel has under the same numbers (Documentation/admin-guide/devices.txt).
fn is_universal(major: u64, minor: u64) -> bool {
    match major {
        // null, zero, full, random, urandom, kmsg; not mem, kmem, port.
        1 => matches!(minor, 3 | 5 | 7 | 8 | 9 | 11),
        // tty, console, ptmx.
        5 => minor <= 2,
        // fuse, net/tun.
        10 => matches!(minor, 229 | 200),
        _ => false,
    }
}

/// Checks a device that the configuration asks to be made.
pub(super) fn check(device: &LinuxDevice) -> Result<(), RootfsError> {
    let kind = match device.typ() {
        LinuxDeviceType::P => return Ok(()),
        LinuxDeviceType::B => "block",
        LinuxDeviceType::A | LinuxDeviceType::C | LinuxDeviceType::U => "char",
    };
    // Negative numbers are no device's.
    let major = u64::try_from(device.major()).unwrap_or(u64::MAX);
    let minor = u64::try_from(device.minor()).unwrap_or(u64::MAX);
    if kind == "char" && is_universal(major, minor) {
        return Ok(());
    }
    Err(RootfsError::Device {
        path: device.path().clone(),
        kind,
        major,
        minor,
    })
}

/// Checks the source of a bind mount; says whether it is a device that the guest has itself.
pub(super) fn is_guests_own(
    path: &Path,
    metadata: &std::fs::Metadata,
) -> Result<bool, RootfsError> {
    let kind = metadata.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Ok(false);
    }
    let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
    if kind.is_char_device() && is_universal(major, minor) {
        return Ok(true);
    }
    Err(RootfsError::Device {
        path: path.into(),
        kind: if kind.is_block_device() {
            "block"
        } else {
            "char"
        },
        major,
        minor,
    })
}
