//! NICs as PCI devices: found by a rescan of the bus, and let go of before the VMM takes them away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the guest's devices are in sysfs. Tests look elsewhere: the machine that they run on keeps its own.
#[derive(Clone, Debug)]
pub struct Sysfs {
    /// The file that has the kernel look for new PCI devices.
    pub rescan: PathBuf,
    /// The directory of all network interfaces.
    pub interfaces: PathBuf,
}

impl Sysfs {
    /// The guest's.
    pub fn guest() -> Self {
        Self {
            rescan: "/sys/bus/pci/rescan".into(),
            interfaces: "/sys/class/net".into(),
        }
    }
}

/// Has the kernel look for new PCI devices; returns when their drivers have them.
///
/// # Errors
/// When the file cannot be written.
pub fn rescan(file: &Path) -> io::Result<()> {
    fs::write(file, "1")
}

/// Has the kernel let go of the PCI device behind an interface; returns when its driver has. An interface without one
/// stays, and so does one whose device is gone already: its driver would wait for it for ever.
///
/// # Errors
/// When the device's files cannot be read or written.
pub(super) fn let_go(interfaces: &Path, name: &str) -> io::Result<()> {
    let Some(device) = device(&interfaces.join(name))? else {
        return Ok(());
    };
    // The vendor's number, read from the device itself, and not as the kernel remembers it.
    if fs::read(device.join("config"))?.get(..2) == Some(&[0xff, 0xff]) {
        return Ok(());
    }
    fs::write(device.join("remove"), "1")
}

/// The directory of the PCI device: the parent of the virtio device that the interface is.
fn device(interface: &Path) -> io::Result<Option<PathBuf>> {
    let virtio = match fs::canonicalize(interface.join("device")) {
        Ok(virtio) => virtio,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let parent = virtio.parent().map(Path::to_owned);
    Ok(parent.filter(|parent| parent.join("remove").exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interface as sysfs has it, whose device's configuration space begins with `vendor`.
    fn interface(vendor: [u8; 2]) -> (tempfile::TempDir, PathBuf) {
        let sysfs = tempfile::tempdir().unwrap();
        let device = sysfs.path().join("0000:00:05.0");
        fs::create_dir_all(device.join("virtio3")).unwrap();
        fs::write(device.join("config"), vendor).unwrap();
        fs::write(device.join("remove"), "").unwrap();
        fs::create_dir_all(sysfs.path().join("net/eth0")).unwrap();
        fs::create_dir_all(sysfs.path().join("net/veth")).unwrap();
        let link = sysfs.path().join("net/eth0/device");
        std::os::unix::fs::symlink(device.join("virtio3"), link).unwrap();
        (sysfs, device.join("remove"))
    }

    #[test]
    fn a_device_that_is_there_is_let_go_of() {
        let (sysfs, remove) = interface([0xf4, 0x1a]);
        let_go(&sysfs.path().join("net"), "veth").unwrap();
        let_go(&sysfs.path().join("net"), "none").unwrap();
        assert_eq!(fs::read_to_string(&remove).unwrap(), "");
        let_go(&sysfs.path().join("net"), "eth0").unwrap();
        assert_eq!(fs::read_to_string(&remove).unwrap(), "1");
    }

    #[test]
    fn a_device_that_is_gone_is_left_alone() {
        let (sysfs, remove) = interface([0xff, 0xff]);
        let_go(&sysfs.path().join("net"), "eth0").unwrap();
        assert_eq!(fs::read_to_string(&remove).unwrap(), "");
    }
}
