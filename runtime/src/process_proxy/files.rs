//! What is found by whoever joins the mount namespace of a container's process proxy: the container's files, as far as
//! the host has them, and its processes. `podman cp` joins it by the pid that it is told, and would change the host's
//! files otherwise. Before there are any of the container, hooks may join it, and what they mount below its root file system
//! is among them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{fchdir, pivot_root};

use super::ProxyError;
use super::processes::Processes;
use crate::sandbox::share::Share;
use crate::sys::attach_mount_tree;

/// Gives the calling thread a mount namespace of its own. What is mounted on the host later is mounted there, too, and what
/// is unmounted is unmounted, but nothing goes back.
///
/// # Errors
/// See [`ProxyError`]; the thread may have parted then.
pub(super) fn part() -> Result<(), ProxyError> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
        .map_err(step("make a mount namespace"))?;
    propagate(MsFlags::MS_SLAVE)
}

/// Makes `shares`, whose first is the root, all files of the calling thread, which has parted, and among them the processes
/// if they are to be shown. Without any it has an empty root.
///
/// # Errors
/// See [`ProxyError`].
pub(super) fn enter(
    shares: &[Share],
    shows_processes: bool,
) -> Result<Option<Processes>, ProxyError> {
    propagate(MsFlags::MS_PRIVATE)?;
    let (tree, volumes) = match shares {
        [root, volumes @ ..] => (mount_root(root)?, volumes),
        [] => (mount_nothing()?, &[][..]),
    };
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

fn mount_root(root: &Share) -> Result<OwnedFd, ProxyError> {
    let tree = root.clone_mount()?;
    File::open(&root.source)
        .and_then(|point| attach_mount_tree(tree.as_fd(), point.as_fd()))
        .map_err(ProxyError::host("mount the root file system"))?;
    Ok(tree)
}

/// At a place that every host has.
fn mount_nothing() -> Result<OwnedFd, ProxyError> {
    let (point, flags) = ("/proc", MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC);
    mount(Some("hull"), point, Some("tmpfs"), flags, None::<&str>)
        .map_err(step("mount an empty root"))?;
    let root = File::open(point).map_err(ProxyError::host("mount an empty root"))?;
    Ok(root.into())
}

fn propagate(how: MsFlags) -> Result<(), ProxyError> {
    let flags = MsFlags::MS_REC | how;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(step("part its mounts from the host's"))
}

fn step(operation: &'static str) -> impl FnOnce(Errno) -> ProxyError {
    move |errno| ProxyError::host(operation)(errno.into())
}
