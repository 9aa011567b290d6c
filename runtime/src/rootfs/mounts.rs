//! The mounts of a configuration. A file system of the kernel (proc, sysfs, tmpfs, mqueue, devpts, cgroup) is mounted in
//! the guest as it stands. A bind mount of the host's files goes by way of the shared directory, with all its options
//! kept for the mount in the guest.

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use hull_agent_protocol::SHARED_MEMORY;
use nix::sys::statfs::{self, statfs};
use oci_spec::runtime::Mount;

use super::notify::EngineMount;
use super::{GUEST_SHARE, RootfsError, devices};
use crate::bundle::Bundle;
use crate::container::ContainerId;
use crate::sandbox::share::{Propagation, Share};

/// Where programs have shared memory (shm_overview(7)).
const SHARED_MEMORY_PATH: &str = "/dev/shm";
/// Types that the guest mounts itself.
const GUEST_TYPES: [&str; 10] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "mqueue",
    "devpts",
    "cgroup",
    "cgroup2",
    "securityfs",
    "overlay",
];

/// Memory that an engine has its containers share, as the guest has it in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMemory {
    /// The same for the same memory of the host.
    pub name: String,
    /// Bytes; 0 for the kernel's default.
    pub size: u64,
}

/// Gives the guest's mounts, and adds to `shares` and `shared_memory` what they need. What is mounted by `notify` is
/// the guest's, and so is `pod_memory`, which takes the place of shared memory of the container's own.
pub(super) fn translate(
    id: &ContainerId,
    bundle: &Bundle,
    notify: Option<&EngineMount>,
    pod_memory: Option<&SharedMemory>,
    shares: &mut Vec<Share>,
    memories: &mut Vec<SharedMemory>,
) -> Result<Vec<Mount>, RootfsError> {
    let mut mounts = Vec::new();
    for mount in bundle.spec.mounts().iter().flatten() {
        let of_notify = notify.filter(|notify| notify.destination == *mount.destination());
        mounts.push(match of_notify {
            Some(notify) => {
                let mut mount = mount.clone();
                mount.set_source(Some(notify.source.clone()));
                mount
            }
            None if is_bind(mount) => bind(id, &bundle.directory, mount, shares, memories)?,
            None => match pod_memory.filter(|_| is_own_memory(mount)) {
                Some(memory) => of_pod(mount, memory, memories),
                None => kernel(mount)?,
            },
        });
    }
    Ok(mounts)
}

/// Whether a mount is a bind mount: by its type, or by its options, whatever its type says.
pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || options(mount).any(|option| matches!(option, "bind" | "rbind"))
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

fn kernel(mount: &Mount) -> Result<Mount, RootfsError> {
    let problem = |problem| RootfsError::Mount {
        destination: mount.destination().clone(),
        problem,
    };
    match mount.typ().as_deref() {
        None => Err(problem("it has no type")),
        // Its layers are paths of the host.
        Some("overlay") => Err(problem(
            "an overlay of the host's directories is not supported",
        )),
        Some(kind) if GUEST_TYPES.contains(&kind) => Ok(mount.clone()),
        Some(_) => Err(problem(
            "a file system of this type cannot be mounted in the guest",
        )),
    }
}

fn is_own_memory(mount: &Mount) -> bool {
    mount.destination() == Path::new(SHARED_MEMORY_PATH) && mount.typ().as_deref() == Some("tmpfs")
}

/// The mount of a pod's shared memory in the place of `mount`. The mode and the size are the memory's own.
fn of_pod(mount: &Mount, memory: &SharedMemory, memories: &mut Vec<SharedMemory>) -> Mount {
    let is_of_mount = |option: &&str| !option.contains('=');
    let options = options(mount).filter(is_of_mount).chain(["bind"]);
    let mut bound = mount.clone();
    bound
        .set_typ(Some("bind".into()))
        .set_options(Some(options.map(str::to_owned).collect()))
        .set_source(Some(Path::new(SHARED_MEMORY).join(&memory.name)));
    memories.push(memory.clone());
    bound
}

fn bind(
    id: &ContainerId,
    bundle: &Path,
    mount: &Mount,
    shares: &mut Vec<Share>,
    memories: &mut Vec<SharedMemory>,
) -> Result<Mount, RootfsError> {
    let destination = mount.destination();
    let Some(source) = mount.source() else {
        return Err(RootfsError::Mount {
            destination: destination.clone(),
            problem: "a bind mount needs a source",
        });
    };
    let path = bundle.join(source);
    let fail = |source: std::io::Error| RootfsError::Source {
        destination: destination.clone(),
        path: path.clone(),
        source,
    };
    let source = std::fs::canonicalize(&path).map_err(fail)?;
    let metadata = std::fs::metadata(&source).map_err(fail)?;
    let mut mount = mount.clone();
    if destination == Path::new(SHARED_MEMORY_PATH) && is_tmpfs(&source) {
        let memory = shared_memory(&source, &metadata).map_err(fail)?;
        mount.set_source(Some(Path::new(SHARED_MEMORY).join(&memory.name)));
        memories.push(memory);
        return Ok(mount);
    }
    if devices::is_guests_own(&source, &metadata)? || is_kernels(&source).map_err(fail)? {
        mount.set_source(Some(source));
        return Ok(mount);
    }
    let kind = metadata.file_type();
    if kind.is_socket() || kind.is_fifo() {
        tracing::warn!(
            path = %source.display(),
            "a socket or FIFO of the host is seen in the VM, but connects nobody"
        );
    }
    let share = Share {
        recursive: options(&mount).any(|option| option == "rbind"),
        readonly: options(&mount).any(|option| matches!(option, "ro" | "rro")),
        readonly_below: options(&mount).any(|option| option == "rro"),
        propagation: propagation(&mount),
        ..Share::volume(
            id,
            shares.len() - 1,
            &source,
            destination,
            !metadata.is_dir(),
        )
    };
    mount.set_source(Some(Path::new(GUEST_SHARE).join(&share.target)));
    // In the guest a share is one mount, whatever the host has mounted below it. What stays writable there is told apart
    // from the rest by the host alone.
    let is_partly_readonly = share.recursive && share.readonly && !share.readonly_below;
    if is_partly_readonly && has_mounts_below(&source).map_err(fail)? {
        let others = options(&mount).filter(|option| *option != "ro");
        let others = others.map(str::to_owned).collect();
        mount.set_options(Some(others));
    }
    shares.push(share);
    Ok(mount)
}

/// Whether the host has something mounted below `path`, which is absolute (proc_pid_mountinfo(5)).
fn has_mounts_below(path: &Path) -> std::io::Result<bool> {
    let mut prefix = Vec::new();
    for &byte in path.join("").as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => prefix.extend(format!("\\{byte:03o}").into_bytes()),
            byte => prefix.push(byte),
        }
    }
    let mounts = std::fs::read("/proc/self/mountinfo")?;
    let mut points = mounts
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points.any(|point| point.len() > prefix.len() && point.starts_with(&prefix)))
}

/// What is mounted below a source later on the host is to be seen in the guest if the mount is to receive it at all.
fn propagation(mount: &Mount) -> Propagation {
    let receives = |option| matches!(option, "shared" | "rshared" | "slave" | "rslave");
    if options(mount).any(receives) {
        Propagation::Slave
    } else {
        Propagation::Private
    }
}

/// Engines mount a tmpfs of their own for shared memory, the same for containers that share it. Memory is not shared
/// between the host and a VM, so the guest has a tmpfs of the same size.
fn shared_memory(source: &Path, metadata: &Metadata) -> std::io::Result<SharedMemory> {
    let status = statfs(source)?;
    let block = u64::try_from(status.block_size()).unwrap_or(4096);
    Ok(SharedMemory {
        name: format!("{}-{}", metadata.dev(), metadata.ino()),
        size: status.blocks().saturating_mul(block),
    })
}

fn is_tmpfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type() == statfs::TMPFS_MAGIC)
}

/// Whether a path is in a file system that shows the kernel's own state: then the guest's is meant, at the same path.
fn is_kernels(path: &Path) -> std::io::Result<bool> {
    let kind = statfs(path)?.filesystem_type();
    let kernels = [
        statfs::PROC_SUPER_MAGIC,
        statfs::SYSFS_MAGIC,
        statfs::CGROUP_SUPER_MAGIC,
        statfs::CGROUP2_SUPER_MAGIC,
        statfs::DEVPTS_SUPER_MAGIC,
        statfs::DEBUGFS_MAGIC,
        statfs::TRACEFS_MAGIC,
        statfs::BPF_FS_MAGIC,
        statfs::SECURITYFS_MAGIC,
    ];
    // devtmpfs has the magic number of tmpfs.
    Ok(kernels.contains(&kind) || path == Path::new("/dev"))
}
