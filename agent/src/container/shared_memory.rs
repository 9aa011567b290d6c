//! Shared memory that containers have in common, as an engine gives it to those of a pod: each a tmpfs of the guest, bound
//! into every container that names it, and gone with the last of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Error, check_id};

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMemory {
    /// Its name in its directory.
    pub name: String,
    /// Bytes; 0 for the kernel's default.
    pub size: u64,
}

impl SharedMemory {
    /// Mounts it below `directory`, unless `is_used`: then another container has it already.
    pub(super) fn mount(&self, directory: &Path, is_used: bool) -> Result<(), Error> {
        check_id(&self.name)?;
        let path = directory.join(&self.name);
        if is_used {
            return Ok(());
        }
        fs::create_dir_all(&path).map_err(fail("make the directory", &path))?;
        let mut options = String::from("mode=1777");
        if self.size > 0 {
            options.push_str(&format!(",size={}", self.size));
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("shm"),
            &path,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
        .map_err(|errno| fail("mount shared memory at", &path)(errno.into()))
    }

    /// Undoes [`SharedMemory::mount`]; a container that still runs keeps what it has.
    pub(super) fn unmount(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(&self.name);
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // It was never mounted.
            Err(Errno::ENOENT | Errno::EINVAL) => return Ok(()),
            Err(errno) => return Err(fail("unmount", &path)(errno.into())),
        }
        fs::remove_dir(&path).map_err(fail("remove", &path))
    }
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = PathBuf::from(path);
    move |source| Error::File {
        action,
        path,
        source,
    }
}
