//! The pairs of queues that NICs use. A driver takes as many as there are CPUs when it meets its NIC, at most those
//! that the NIC has. CPUs that come online later get theirs here.

use std::ffi::{c_char, c_int};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// ETHTOOL_GCHANNELS and ETHTOOL_SCHANNELS of `linux/ethtool.h`.
const GET_CHANNELS: u32 = 0x3c;
const SET_CHANNELS: u32 = 0x3d;

/// `struct ethtool_channels`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// Has each NIC among `interfaces`, a directory like `/sys/class/net`, use as many pairs of queues as there are CPUs, if
/// it has so many. Gives a sentence for each that does not.
///
/// # Errors
/// When the interfaces cannot be listed.
pub fn use_queue_pairs(interfaces: &Path, cpus: u32) -> io::Result<Vec<String>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let control = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    let mut failures = Vec::new();
    for entry in fs::read_dir(interfaces)? {
        let entry = entry?;
        // Interfaces that the kernel makes up have no device.
        if !entry.path().join("device").exists() {
            continue;
        }
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if let Err(error) = set_pairs(&control, &name, cpus) {
            failures.push(format!("queues of {name}: {error}"));
        }
    }
    Ok(failures)
}

fn set_pairs(control: &OwnedFd, name: &str, cpus: u32) -> io::Result<()> {
    let mut channels = Channels {
        command: GET_CHANNELS,
        ..Channels::default()
    };
    exchange(control, name, &mut channels)?;
    let wanted = cpus.clamp(1, channels.max_combined.max(1));
    if channels.combined == wanted {
        return Ok(());
    }
    channels.command = SET_CHANNELS;
    channels.combined = wanted;
    exchange(control, name, &mut channels)
}

/// SIOCETHTOOL: has the driver of interface `name` read and write `channels`.
#[allow(unsafe_code)]
fn exchange(control: &OwnedFd, name: &str, channels: &mut Channels) -> io::Result<()> {
    // SAFETY: an ifreq is numbers, arrays of them, and pointers; zero is valid for all.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(channels).cast();
    // SAFETY: the kernel reads the request, and reads and writes one `ethtool_channels` behind its pointer, which is
    // borrowed for the call.
    let result: c_int =
        unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCETHTOOL, &raw const request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_nic_is_left_alone_and_what_fails_is_told() {
        let interfaces = tempfile::tempdir().unwrap();
        fs::create_dir(interfaces.path().join("lo")).unwrap();
        let none = use_queue_pairs(interfaces.path(), 2).unwrap();
        assert_eq!(none, Vec::<String>::new());
        fs::create_dir_all(interfaces.path().join("no-such-nic/device")).unwrap();
        fs::create_dir_all(interfaces.path().join("a-name-that-is-too-long/device")).unwrap();
        let mut failures = use_queue_pairs(interfaces.path(), 2).unwrap();
        failures.sort();
        assert!(failures[0].starts_with("queues of a-name-that-is-too-long:"));
        assert!(failures[1].starts_with("queues of no-such-nic:"));
    }
}
