//! What is found by whoever joins the mount namespace of a container's process proxy: the container's files, as far as
//! the host has them, and its processes. `podman cp` joins it by the pid that it is told, and would change the host's
//! files otherwise.
//!
//! A process's mount namespace is, to others, that of its first thread. So that one gets a namespace of its own and does
//! nothing but wait; all other threads stay with the host's.

use std::fs::File;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{fchdir, pivot_root};

use super::ProxyError;
use super::processes::Processes;
use crate::sandbox::share::Share;
use crate::sys::attach_mount_tree;

/// Makes `shares`, whose first is the root, all files of the calling thread, and among them the processes if they are to be shown.
///
/// # Errors
/// See [`ProxyError`]; the thread may have another mount namespace then.
pub(super) fn enter(
    shares: &[Share],
    shows_processes: bool,
) -> Result<Option<Processes>, ProxyError> {
    let [root, volumes @ ..] = shares else {
        return Ok(None);
    };
    let step = |operation| move |errno: Errno| ProxyError::host(operation)(errno.into());
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
        .map_err(step("make a mount namespace"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(step("part its mounts from the host's"))?;
    let tree = root.clone_mount()?;
    File::open(&root.source)
        .and_then(|point| attach_mount_tree(tree.as_fd(), point.as_fd()))
        .map_err(ProxyError::host("mount the root file system"))?;
    for volume in volumes {
        // The container may have put links in the way, and what lies in one of its own file systems is not here.
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let point = match openat2(&tree, &volume.destination, how) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            point => point.map_err(step("find the place of a volume"))?,
        };
        let volume = volume.clone_mount()?;
        attach_mount_tree(volume.as_fd(), point.as_fd())
            .map_err(ProxyError::host("mount a volume"))?;
    }
    let processes = if shows_processes {
        Processes::mount(tree.as_fd())?
    } else {
        None
    };
    // The old root goes below the new one and is let go of at once (pivot_root(2), "pivot_root(".", ".")").
    fchdir(&tree)
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| umount2(".", MntFlags::MNT_DETACH))
        .map_err(step("take the container's root"))?;
    std::env::set_current_dir("/").map_err(ProxyError::host("enter its root"))?;
    Ok(processes)
}
