//! Disks: block devices of the guest, named by the address of their PCI device, as the VMM tells it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::syncfs;

/// How long the kernel may take to let go of a file system that was unmounted: the namespace of a container that has
/// ended goes a little later.
const GOING: Duration = Duration::from_secs(10);

/// Whether a text is the address of a PCI device: `0000:00:05.0`.
pub(super) fn is_address(text: &str) -> bool {
    let digits =
        |part: &str, count| part.len() == count && part.bytes().all(|c| c.is_ascii_hexdigit());
    let mut parts = text.split([':', '.']);
    [4, 2, 2, 1]
        .into_iter()
        .all(|count| parts.next().is_some_and(|part| digits(part, count)))
        && parts.next().is_none()
}

/// The block device behind a PCI device, by the directory of all of those; none if the kernel has not seen it yet.
pub(super) fn device(devices: &Path, address: &str) -> Option<PathBuf> {
    let names = |directory: &Path| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    let function = devices.join(address);
    let mut drivers = names(&function).into_iter();
    let driver = drivers.find(|name| name.starts_with("virtio"))?;
    let name = names(&function.join(driver).join("block")).pop()?;
    Some(Path::new("/dev").join(name))
}

/// A disk with a mounted file system.
#[derive(Debug)]
pub(super) struct Disk {
    device: PathBuf,
    /// The directory of its PCI device.
    function: PathBuf,
}

impl Disk {
    /// The disk whose file system is mounted at `target`; none if what is there is of no PCI device's.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(super) fn mounted_at(target: &Path) -> io::Result<Option<Self>> {
        let number = fs::metadata(target)?.dev();
        let (major, minor) = (libc::major(number), libc::minor(number));
        let block = match fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) {
            Ok(block) => block,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // …/0000:00:05.0/virtio3/block/vda
        let Some(name) = block.file_name() else {
            return Ok(None);
        };
        let device = Path::new("/dev").join(name);
        let function = block.ancestors().nth(3).map(Path::to_owned);
        let function = function.filter(|function| function.join("remove").exists());
        Ok(function.map(|function| Self { device, function }))
    }

    /// Has the kernel let go of it, once nothing has it mounted any more.
    ///
    /// # Errors
    /// It is in use for too long, or the kernel's files cannot be written.
    pub(super) fn let_go(&self) -> io::Result<()> {
        let end = Instant::now() + GOING;
        loop {
            // A block device is opened exclusively only by a file system, or by who wants to know of one.
            let opened = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_EXCL)
                .open(&self.device);
            match opened {
                Ok(_) => break,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        }
        fs::write(self.function.join("remove"), "1")
    }
}

/// Writes out everything of the file system at `target`.
///
/// # Errors
/// The disk has failed.
pub(super) fn write_out(target: &Path) -> io::Result<()> {
    match syncfs(File::open(target)?) {
        // It is read-only.
        Ok(()) | Err(Errno::EROFS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_from_other_sources() {
        assert!(is_address("0000:00:1f.7"));
        for text in [
            "",
            "hull",
            "/dev/vda",
            "0000:00:05",
            "0000:00:05.0.",
            "0000:00:05.0:1",
            "../0:00:05.0",
            "0000:00:5.00",
        ] {
            assert!(!is_address(text), "{text:?}");
        }
    }

    #[test]
    fn a_disk_is_found_once_its_driver_has_it() {
        let devices = tempfile::tempdir().unwrap();
        let address = "0000:00:05.0";
        assert_eq!(device(devices.path(), address), None);
        let driver = devices.path().join(address).join("virtio3");
        fs::create_dir_all(&driver).unwrap();
        assert_eq!(device(devices.path(), address), None);
        fs::create_dir_all(driver.join("block/vda")).unwrap();
        assert_eq!(device(devices.path(), address), Some("/dev/vda".into()));
    }

    #[test]
    fn what_is_on_no_disk_has_none() {
        assert!(Disk::mounted_at(Path::new("/proc")).unwrap().is_none());
        write_out(Path::new("/proc")).unwrap();
    }
}
