//! Leaves the kernel's rootfs.
//!
//! The initramfs is unpacked into rootfs, which is no mount that pivot_root(2) can leave ("The current root is on the
//! rootfs mount": EINVAL), and every container has to. So a tmpfs is moved over it, as switch_root(8) does.

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::{InitError, make_directory};

const NEW_ROOT: &str = "/newroot";

/// Makes an empty tmpfs the root of this process, and of all that it will start.
pub(super) fn leave_rootfs() -> Result<(), InitError> {
    make_directory(NEW_ROOT.as_ref())?;
    mount(
        Some("tmpfs"),
        NEW_ROOT,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )
    .map_err(|source| InitError::Mount {
        kind: "tmpfs",
        target: NEW_ROOT.into(),
        source,
    })?;
    chdir(NEW_ROOT).map_err(|source| InitError::Call("enter the new root", source))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|source| InitError::Call("move the new root over the old one", source))?;
    chroot(".").map_err(|source| InitError::Call("change to the new root", source))?;
    chdir("/").map_err(|source| InitError::Call("enter the root", source))
}
