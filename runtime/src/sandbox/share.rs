//! The shared directory of a sandbox: what lies in the VMM's own mount namespace below its jail's `/shared`, and so in
//! the guest. A mount of the host is cloned here and moved there; it shows nowhere on the host, and it is gone with
//! the VMM, however that ends.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hull_vmm_protocol::config::JAIL_SHARE;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::container::ContainerId;
use crate::mount_namespace;
use crate::process_identity::ProcessIdentity;
use crate::sys;

/// How sharing fails.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A mount of the host cannot be cloned, or has no such attributes.
    #[error("{operation} {}", path.display())]
    Source {
        /// What was tried: `clone the mount of`.
        operation: &'static str,
        /// The path on the host.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The mount namespace of the VMM, or of who sees the files, cannot be entered.
    #[error("enter the mount namespace of process {pid}")]
    Enter {
        /// Whose it is.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
    /// The clone cannot be mounted there.
    #[error("{operation} {} in the shared directory", path.display())]
    Target {
        /// What was tried.
        operation: &'static str,
        /// The path in the shared directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Whether what is mounted below the source later is to be seen too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// No.
    Private,
    /// Yes; and nothing goes back.
    Slave,
}

/// Something of the host that the guest is to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Where it is: absolute, without symbolic links.
    pub source: PathBuf,
    /// Where it goes, below the shared directory.
    pub target: PathBuf,
    /// Where the container has it.
    pub destination: PathBuf,
    /// Whether it is anything but a directory.
    pub is_file: bool,
    /// Whether what is mounted below it comes along.
    pub recursive: bool,
    /// Whether the guest is kept from writing, whatever it does to its own mounts.
    pub readonly: bool,
    /// Whether it is so where something else is mounted below it.
    pub readonly_below: bool,
    /// See [`Propagation`].
    pub propagation: Propagation,
}

impl Share {
    /// A container's root file system. It is never read-only here: mount points may have to be made in it before the
    /// guest makes it so.
    pub fn rootfs(id: &ContainerId, source: &Path) -> Self {
        Self {
            source: source.into(),
            target: Path::new(id.as_str()).join("rootfs"),
            destination: "/".into(),
            is_file: false,
            recursive: true,
            readonly: false,
            readonly_below: false,
            propagation: Propagation::Private,
        }
    }

    /// A container's volume number `index`: writable, private, and without what is mounted below it.
    pub fn volume(
        id: &ContainerId,
        index: usize,
        source: &Path,
        destination: &Path,
        is_file: bool,
    ) -> Self {
        Self {
            source: source.into(),
            target: Path::new(id.as_str())
                .join("mounts")
                .join(index.to_string()),
            destination: destination.into(),
            is_file,
            recursive: false,
            readonly: false,
            readonly_below: false,
            propagation: Propagation::Private,
        }
    }

    /// A mount of it that is attached nowhere yet.
    pub(crate) fn clone_mount(&self) -> Result<OwnedFd, ShareError> {
        let fail = |operation| {
            move |source| ShareError::Source {
                operation,
                path: self.source.clone(),
                source,
            }
        };
        let tree = sys::clone_mount_tree(&self.source, self.recursive)
            .map_err(fail("clone the mount of"))?;
        // Beforehand the clone is in the peer group of its source, and mounts would travel back to the host.
        let propagation = match self.propagation {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
        };
        sys::set_mount_attributes(tree.as_fd(), true, 0, propagation)
            .map_err(fail("set the propagation of"))?;
        if self.readonly {
            let attributes = libc::MOUNT_ATTR_RDONLY;
            sys::set_mount_attributes(tree.as_fd(), self.readonly_below, attributes, 0)
                .map_err(fail("make read-only the mount of"))?;
        }
        Ok(tree)
    }
}

/// Mounts `shares` for the guest of `vmm`, as `viewer` sees them.
///
/// # Errors
/// See [`ShareError`]; what was mounted before stays.
pub fn attach(
    vmm: &ProcessIdentity,
    viewer: &ProcessIdentity,
    shares: &[Share],
) -> Result<(), ShareError> {
    let trees = in_mount_namespace(viewer, || {
        let clones = shares.iter().map(|share| Ok((share, share.clone_mount()?)));
        clones.collect::<Result<Vec<_>, ShareError>>()
    })?;
    in_mount_namespace(vmm, || {
        for (share, tree) in &trees {
            let path = Path::new(JAIL_SHARE).join(&share.target);
            let fail = |operation| {
                let path = share.target.clone();
                move |source| ShareError::Target {
                    operation,
                    path,
                    source,
                }
            };
            let target = make_target(&path, share.is_file).map_err(fail("make"))?;
            sys::attach_mount_tree(tree.as_fd(), target.as_fd()).map_err(fail("mount"))?;
        }
        Ok(())
    })
}

/// Takes everything of the container `id` out of the shared directory; nothing happens if there is nothing.
///
/// # Errors
/// See [`ShareError`].
pub fn detach(vmm: &ProcessIdentity, id: &ContainerId) -> Result<(), ShareError> {
    in_mount_namespace(vmm, || {
        let directory = Path::new(JAIL_SHARE).join(id.as_str());
        let mut targets = vec![directory.join("rootfs")];
        if let Ok(entries) = std::fs::read_dir(directory.join("mounts")) {
            targets.extend(entries.flatten().map(|entry| entry.path()));
        }
        for target in &targets {
            let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
            match umount2(target, flags) {
                Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
                Err(errno) => {
                    return Err(ShareError::Target {
                        operation: "unmount",
                        path: target.clone(),
                        source: errno.into(),
                    });
                }
            }
        }
        // Everything mounted is gone from below it.
        match std::fs::remove_dir_all(&directory) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ShareError::Target {
                operation: "remove",
                path: directory,
                source,
            }),
            _ => Ok(()),
        }
    })
}

/// Makes a mount point and the directories above it; gives an `O_PATH` descriptor of it.
fn make_target(path: &Path, is_file: bool) -> io::Result<OwnedFd> {
    let directory = if is_file {
        path.parent().unwrap_or(path)
    } else {
        path
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)?;
    if is_file {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
    }
    let target = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    Ok(target.into())
}

fn in_mount_namespace<T: Send>(
    process: &ProcessIdentity,
    work: impl FnOnce() -> Result<T, ShareError> + Send,
) -> Result<T, ShareError> {
    let pid = process.pid;
    mount_namespace::run_in(process, work).map_err(|source| ShareError::Enter { pid, source })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};
    use std::thread;

    /// A process in a mount namespace with a root of its own that holds `/shared`, as hull-vmm makes it.
    fn jail() -> (Child, ProcessIdentity, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let script = format!(
            "mount -t tmpfs jail {root} && mkdir {root}/shared {root}/old && cp /bin/busybox {root}/busybox && \
             cd {root} && pivot_root . old && /busybox umount -l /old && /busybox touch /shared/ready && \
             exec /busybox sleep 100",
            root = root.display()
        );
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .spawn()
            .unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        for _ in 0..1000 {
            if is_there(&identity, "ready") {
                return (child, identity, directory);
            }
            thread::sleep(std::time::Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("the jail is not ready");
    }

    fn is_there(vmm: &ProcessIdentity, name: &str) -> bool {
        Path::new(&format!("/proc/{}/root/shared/{name}", vmm.pid)).exists()
    }

    #[test]
    fn shares_are_seen_in_the_jail_and_nowhere_else() {
        let (mut child, vmm, _directory) = jail();
        let source = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(source.path().join("rootfs/etc")).unwrap();
        std::fs::write(source.path().join("hosts"), "127.0.0.1 x").unwrap();
        let id: ContainerId = "c1".parse().unwrap();
        let own = ProcessIdentity::own().unwrap();
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let shares = [
            Share::rootfs(&id, &source.path().join("rootfs")),
            Share {
                readonly: true,
                ..Share::volume(
                    &id,
                    0,
                    &source.path().join("hosts"),
                    Path::new("/etc/hosts"),
                    true,
                )
            },
        ];
        attach(&vmm, &own, &shares).unwrap();
        assert!(is_there(&vmm, "c1/rootfs/etc"));
        let jail = format!("/proc/{}/root/shared", vmm.pid);
        let hosts = Path::new(&jail).join("c1/mounts/0");
        assert_eq!(std::fs::read_to_string(&hosts).unwrap(), "127.0.0.1 x");
        let refused = OpenOptions::new().append(true).open(&hosts).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        OpenOptions::new()
            .append(true)
            .open(source.path().join("hosts"))
            .unwrap();
        assert_eq!(
            std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
            before
        );
        detach(&vmm, &id).unwrap();
        assert!(!is_there(&vmm, "c1"));
        assert!(source.path().join("rootfs/etc").exists());
        detach(&vmm, &id).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let error = attach(&vmm, &own, &shares).unwrap_err();
        assert!(matches!(error, ShareError::Enter { .. }), "{error}");
    }
}
