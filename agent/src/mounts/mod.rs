//! Mounts in the guest outside all containers: the shared directory, file systems of block devices, tmpfs, binds.
//!
//! The functions block while the kernel mounts (a virtio-fs mount asks the host), so they run on a thread of their own.

mod disk;
mod options;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use disk::Disk;
use options::MountOptions;

/// The directory of all PCI devices.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// How long the device of a mount may take to show up.
const DEVICE_WAIT: Duration = Duration::from_secs(5);

/// Why a mount could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Where to mount.
    #[error("the mount's target {0:?} is not an absolute path without \"..\"")]
    Target(PathBuf),
    /// The file system's type is missing.
    #[error("the mount on {0:?} has no type of file system")]
    NoType(PathBuf),
    /// The mount point, or a bind's source.
    #[error("{action} {path:?}")]
    File {
        /// What was done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// mount(2).
    #[error("mount {what:?} ({kind}) on {target:?}")]
    Mount {
        /// The source.
        what: String,
        /// The file system's type.
        kind: String,
        /// The mount point.
        target: PathBuf,
        /// The cause.
        #[source]
        source: nix::Error,
    },
    /// umount2(2).
    #[error("unmount {target:?}")]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// The cause.
        #[source]
        source: nix::Error,
    },
}

/// A mount to make.
#[derive(Clone, Debug)]
pub struct Storage {
    /// The file system's type; "bind" for a bind mount.
    pub kind: String,
    /// A device, or a disk's PCI address; a virtio-fs tag; a directory or file to bind; or a name.
    pub source: String,
    /// Where; made if it is not there.
    pub target: PathBuf,
    /// As in fstab.
    pub options: Vec<String>,
}

impl Storage {
    /// Makes the mount. `rescan` has the kernel look for new devices, for a source that is not there yet.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn mount(&self, rescan: impl Fn() -> io::Result<()>) -> Result<(), MountError> {
        check_target(&self.target)?;
        if self.kind.is_empty() {
            return Err(MountError::NoType(self.target.clone()));
        }
        let options = MountOptions::parse(&self.options);
        let bind = self.kind == "bind" || options.flags.contains(MsFlags::MS_BIND);
        if bind {
            self.make_bind_target()?;
            return self.bind(&options);
        }
        make_directory(&self.target)?;
        let data = options.data.join(",");
        let mut waited = None;
        loop {
            let result = self.device().and_then(|device| {
                mount(
                    Some(&device),
                    &self.target,
                    Some(self.kind.as_str()),
                    options.flags,
                    Some(data.as_str()).filter(|data| !data.is_empty()),
                )
            });
            match result {
                Ok(()) => break,
                Err(errno)
                    if self.may_come(errno)
                        && *waited.get_or_insert_with(Instant::now) + DEVICE_WAIT
                            > Instant::now() =>
                {
                    rescan().map_err(|source| MountError::File {
                        action: "look for new devices through",
                        path: "/sys/bus/pci/rescan".into(),
                        source,
                    })?;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(source) => return Err(self.failed(source)),
            }
        }
        self.propagate(&options)
    }

    /// What mount(2) takes as the source.
    fn device(&self) -> nix::Result<PathBuf> {
        if !disk::is_address(&self.source) {
            return Ok(self.source.clone().into());
        }
        disk::device(Path::new(PCI_DEVICES), &self.source).ok_or(Errno::ENOENT)
    }

    /// Whether the error is that of a device that the kernel has not seen yet. A virtio-fs tag that is not there is
    /// EINVAL.
    fn may_come(&self, errno: Errno) -> bool {
        match self.kind.as_str() {
            "virtiofs" => errno == Errno::EINVAL,
            _ => {
                let is_device = self.source.starts_with("/dev/") || disk::is_address(&self.source);
                errno == Errno::ENOENT && is_device
            }
        }
    }

    fn bind(&self, options: &MountOptions) -> Result<(), MountError> {
        let recursive = options.flags & MsFlags::MS_REC;
        self.change(MsFlags::MS_BIND | recursive)?;
        // A bind takes its other flags only when it is remounted.
        let flags = options.flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
        if !flags.is_empty() {
            self.change(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags)?;
        }
        self.propagate(options)
    }

    fn propagate(&self, options: &MountOptions) -> Result<(), MountError> {
        for propagation in &options.propagation {
            self.change(*propagation)?;
        }
        Ok(())
    }

    fn change(&self, flags: MsFlags) -> Result<(), MountError> {
        mount(
            Some(self.source.as_str()),
            &self.target,
            None::<&str>,
            flags,
            None::<&str>,
        )
        .map_err(|source| self.failed(source))
    }

    fn failed(&self, source: nix::Error) -> MountError {
        MountError::Mount {
            what: self.source.clone(),
            kind: self.kind.clone(),
            target: self.target.clone(),
            source,
        }
    }

    /// A bind's target is of its source's kind.
    fn make_bind_target(&self) -> Result<(), MountError> {
        let kind = fs::metadata(&self.source).map_err(|source| MountError::File {
            action: "find the source",
            path: self.source.clone().into(),
            source,
        })?;
        if kind.is_dir() {
            return make_directory(&self.target);
        }
        if let Some(parent) = self.target.parent() {
            make_directory(parent)?;
        }
        fs::File::options()
            .append(true)
            .create(true)
            .open(&self.target)
            .map(drop)
            .map_err(|source| MountError::File {
                action: "make the mount point",
                path: self.target.clone(),
                source,
            })
    }
}

/// Undoes a mount; nothing happens where there is none. With something still open below it, it goes when that is closed;
/// but a disk's goes now, with all that was written, and the kernel lets go of the disk, so that the VMM can take it away.
///
/// # Errors
/// See [`MountError`].
pub fn unmount(target: &Path) -> Result<(), MountError> {
    check_target(target)?;
    let file = |action| {
        move |source| MountError::File {
            action,
            path: target.to_owned(),
            source,
        }
    };
    let disk = match Disk::mounted_at(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        disk => disk.map_err(file("look at"))?,
    };
    if disk.is_some() {
        disk::write_out(target).map_err(file("write out"))?;
    }
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // It is no mount.
        Err(Errno::EINVAL) => return Ok(()),
        result => result.map_err(|source| MountError::Unmount {
            target: target.to_owned(),
            source,
        })?,
    }
    match disk {
        Some(disk) => disk.let_go().map_err(file("let go of the disk of")),
        None => Ok(()),
    }
}

fn check_target(target: &Path) -> Result<(), MountError> {
    use std::path::Component;
    let plain = target.components().all(|part| part != Component::ParentDir);
    if !target.is_absolute() || !plain {
        return Err(MountError::Target(target.to_owned()));
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<(), MountError> {
    fs::create_dir_all(path).map_err(|source| MountError::File {
        action: "make the mount point",
        path: path.to_owned(),
        source,
    })
}
