//! What the drivers of NICs are told by requests of ethtool: how many pairs of queues they use, and whether they hear of
//! each packet that was sent.

use std::ffi::{c_char, c_int};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// ETHTOOL_GCOALESCE and ETHTOOL_SCOALESCE of `linux/ethtool.h`.
const GET_COALESCE: u32 = 0x0e;
const SET_COALESCE: u32 = 0x0f;
/// ETHTOOL_GCHANNELS and ETHTOOL_SCHANNELS.
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

/// `struct ethtool_coalesce`, with names for what is used of it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Coalesce {
    command: u32,
    receive: [u32; 4],
    tx_usecs: u32,
    tx_max_frames: u32,
    rest: [u32; 16],
}

/// Has the driver of virtio-net take the packets that the NIC `name` has sent back when it sends the next, and not by an
/// interrupt for nearly each. Senders do not wait for their packets then, as on a veth. The interface must be down.
/// Nothing changes with a driver that has no such choice.
///
/// # Errors
/// When the driver refuses.
pub(super) fn send_without_interrupts(name: &str) -> io::Result<()> {
    let control = control()?;
    let mut coalesce = Coalesce {
        command: GET_COALESCE,
        ..Coalesce::default()
    };
    let changed = exchange(&control, name, &mut coalesce).and_then(|()| {
        coalesce.command = SET_COALESCE;
        // virtnet_set_coalesce() of drivers/net/virtio_net.c: no NAPI for what is sent.
        coalesce.tx_max_frames = 0;
        exchange(&control, name, &mut coalesce)
    });
    match changed {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        changed => changed,
    }
}

/// A socket whose ioctls reach network interfaces.
fn control() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(
        AddressFamily::Inet,
        SockType::Datagram,
        flags,
        None,
    )?)
}

/// Has each NIC among `interfaces`, a directory like `/sys/class/net`, use as many pairs of queues as there are CPUs, if
/// it has so many. Gives a sentence for each that does not. A driver takes as many as there are CPUs when it meets its NIC;
/// CPUs that come online later get theirs here.
///
/// # Errors
/// When the interfaces cannot be listed.
pub fn use_queue_pairs(interfaces: &Path, cpus: u32) -> io::Result<Vec<String>> {
    let control = control()?;
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

/// What the kernel reads and writes for a request: a `repr(C)` struct of `linux/ethtool.h`, whole, with its number first.
trait Request {}
impl Request for Channels {}
impl Request for Coalesce {}

/// SIOCETHTOOL: has the driver of interface `name` read and write `value`.
#[allow(unsafe_code)]
fn exchange<T: Request>(control: &OwnedFd, name: &str, value: &mut T) -> io::Result<()> {
    // SAFETY: an ifreq is numbers, arrays of them, and pointers; zero is valid for all.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(value).cast();
    // SAFETY: the kernel reads the request, and reads and writes the one struct behind its pointer, which is
    // whole by the trait and borrowed for the call.
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
    fn a_link_whose_driver_has_no_choice_stays_as_it_is() {
        assert_eq!(size_of::<Coalesce>(), 92);
        send_without_interrupts("lo").unwrap();
        send_without_interrupts("no-such-nic").unwrap_err();
    }

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
