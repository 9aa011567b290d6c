//! The jail: a mount namespace whose root is an empty tmpfs, and no privilege that a device does not need.
//!
//! Entered by the main thread before it starts any other, after everything of the host has been opened. The
//! runtime puts what the guest shall see below [`JAIL_SHARE`] from outside.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use hull_vmm_protocol::config::JAIL_SHARE;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, pivot_root};

use crate::devices::virtio::fs::credentials::keep_capabilities;

/// Where the directory of the vsock device's Unix sockets is in the jail.
pub const JAIL_VSOCK: &str = "/vsock";

/// The root's size: it holds directories to mount on, and what a guest writes to the shared directory itself.
const ROOT_OPTIONS: &str = "mode=0755,size=16m,nr_inodes=65536";

/// What virtio-fs needs to act for all users of a guest on the files that it shares. Each holds only for what is
/// mounted in the jail.
const KEPT: [Capability; 9] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
];

/// Why the jail cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The host refused a step.
    #[error("jail: {operation} {path}")]
    Step {
        /// The step.
        operation: &'static str,
        /// What it was about.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// Capabilities cannot be dropped.
    #[error("jail: drop capabilities")]
    Capabilities(#[source] caps::errors::CapsError),
}

/// Makes the new root and goes there. `mount_point` is any directory: the root is mounted on it for a moment, in the
/// new namespace. `vsock` is the directory of the vsock device's Unix sockets.
///
/// # Errors
/// See [`JailError`].
pub fn enter(mount_point: &Path, vsock: &Path) -> Result<(), JailError> {
    let root = Path::new("/");
    step(
        "make a mount namespace for",
        root,
        unshare(CloneFlags::CLONE_NEWNS),
    )?;
    // Only what was opened in this namespace can be bound in it.
    let vsock = open_directory(vsock)?;
    let descriptors = open_directory(Path::new("/proc/self/fd"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let none = None::<&str>;
    step("make private", root, mount(none, root, none, private, none))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let made = mount(
        Some("jail"),
        mount_point,
        Some("tmpfs"),
        flags,
        Some(ROOT_OPTIONS),
    );
    step("mount a tmpfs on", mount_point, made)?;
    step("go to", mount_point, chdir(mount_point))?;

    make_directory(Path::new(JAIL_SHARE))?;
    // Where the guest's connections to the host go.
    bind(&vsock, Path::new(JAIL_VSOCK))?;
    // The one part of procfs that virtio-fs needs: to open anew, with other flags, what it has open.
    bind(&descriptors, Path::new("/proc/self/fd"))?;
    // It opens this one as well, and does not use what it says.
    let mount_info = Path::new("/proc/self/mountinfo");
    fs::write(relative(mount_info), "").map_err(|source| JailError::Step {
        operation: "make",
        path: mount_info.to_owned(),
        source,
    })?;

    // The old root goes below the new one and is let go of at once (pivot_root(2), "pivot_root(".", ".")").
    step("make the root", mount_point, pivot_root(".", "."))?;
    step(
        "let go of the old",
        root,
        umount2(".", MntFlags::MNT_DETACH),
    )?;
    step("go to", root, chdir(root))
}

/// Gives up every capability but those that virtio-fs needs, for this thread and all that it starts.
///
/// # Errors
/// See [`JailError`].
pub fn drop_privileges() -> Result<(), JailError> {
    let no_new_privileges = nix::sys::prctl::set_no_new_privs();
    step(
        "set no_new_privs for",
        Path::new("/proc/self"),
        no_new_privileges,
    )?;
    let held = caps::read(None, CapSet::Permitted).map_err(JailError::Capabilities)?;
    let kept: CapsHashSet = KEPT
        .into_iter()
        .filter(|kept| held.contains(kept))
        .collect();
    if held.contains(&Capability::CAP_SETPCAP) {
        keep_capabilities().map_err(|source| JailError::Step {
            operation: "set the secure bits of",
            path: PathBuf::from("/proc/self"),
            source,
        })?;
        let bounding = caps::read(None, CapSet::Bounding).map_err(JailError::Capabilities)?;
        for capability in bounding.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(JailError::Capabilities)?;
        }
    }
    caps::clear(None, CapSet::Inheritable).map_err(JailError::Capabilities)?;
    caps::set(None, CapSet::Effective, &kept).map_err(JailError::Capabilities)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(JailError::Capabilities)
}

fn open_directory(path: &Path) -> Result<OwnedFd, JailError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    step("open", path, open(path, flags, Mode::empty()))
}

/// Binds `directory` to `path` of the new root, which is the current directory.
fn bind(directory: &OwnedFd, path: &Path) -> Result<(), JailError> {
    make_directory(path)?;
    let source = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let none = None::<&str>;
    let bound = mount(
        Some(source.as_str()),
        &relative(path),
        none,
        MsFlags::MS_BIND,
        none,
    );
    step("bind", path, bound)
}

fn make_directory(path: &Path) -> Result<(), JailError> {
    fs::create_dir_all(relative(path)).map_err(|source| JailError::Step {
        operation: "make",
        path: path.to_owned(),
        source,
    })
}

fn relative(path: &Path) -> PathBuf {
    path.components()
        .filter(|component| matches!(component, std::path::Component::Normal(_)))
        .collect()
}

fn step<T>(operation: &'static str, path: &Path, result: nix::Result<T>) -> Result<T, JailError> {
    result.map_err(|errno| JailError::Step {
        operation,
        path: path.to_owned(),
        source: errno.into(),
    })
}
