//! What a container sees of the host's files: turns a bundle's configuration into the guest's, in which every path
//! that the host is to provide lies below the shared directory, and lists what must be mounted there.
//!
//! Of the configuration the guest gets everything but what has a meaning on the host only: the network namespace (the
//! containers of a sandbox share the guest's), host hooks, the cgroup's path, and labels of Linux security modules
//! that the guest's kernel does not have. Nothing here touches the host but to look.

mod devices;
mod mounts;
mod notify;
pub mod program;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hooks, Linux, LinuxNamespaceType, LinuxResources, Process, Root, Spec};

use crate::bundle::Bundle;
use crate::container::ContainerId;
use crate::process_proxy::FileKind;
use crate::sandbox::disk::RootDisk;
use crate::sandbox::share::Share;
pub use mounts::SharedMemory;
pub use notify::NotifySocket;

/// Where the guest has the shared directory.
pub const GUEST_SHARE: &str = "/run/hull/shared";

/// How a container's files fail.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The source of a bind mount is not there.
    #[error("mount {}: source {}", destination.display(), path.display())]
    Source {
        /// Where it is to be mounted.
        destination: PathBuf,
        /// The source.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A mount has no source or type that could be mounted.
    #[error("mount {}: {problem}", destination.display())]
    Mount {
        /// Where it is to be mounted.
        destination: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A device of the host.
    #[error("device {} of the host ({kind} {major}:{minor}) cannot be given to a container in a VM", path.display())]
    Device {
        /// Its path.
        path: PathBuf,
        /// `char` or `block`.
        kind: &'static str,
        /// Its numbers.
        major: u64,
        /// Its numbers.
        minor: u64,
    },
    /// A namespace of the host.
    #[error(
        "a container in a VM cannot join the {kind} namespace {}: it is the host's, or of a container in another VM (one \
         that shares its network is in the same VM)",
        path.display()
    )]
    Namespace {
        /// Its kind.
        kind: LinuxNamespaceType,
        /// Its path.
        path: PathBuf,
    },
    /// The program is not in the root file system.
    #[error("exec: {program:?}: executable file not found in $PATH")]
    NotInPath {
        /// Its name.
        program: String,
    },
    /// The program is not in the root file system.
    #[error("exec: {program:?}: stat {program}: no such file or directory")]
    NoProgram {
        /// Its path.
        program: String,
    },
    /// The program is a directory, or has no execute bit.
    #[error("exec: {program:?}: permission denied")]
    NotExecutable {
        /// Its name or path.
        program: String,
    },
    /// The guest's configuration cannot be written.
    #[error("configuration for the guest")]
    Encode(#[source] serde_json::Error),
}

/// A container as the guest gets it.
#[derive(Debug)]
pub struct GuestContainer {
    /// Its config.json.
    pub spec: Vec<u8>,
    /// What must be in the shared directory; the root file system first, unless it is a disk.
    pub shares: Vec<Share>,
    /// The shared memory that must be mounted in the guest.
    pub shared_memory: Vec<SharedMemory>,
    /// The notification socket that must be in the guest.
    pub notify: Option<NotifySocket>,
    /// The open files that its process has beside its stdio.
    pub files: Vec<FileKind>,
}

/// What a namespace of the host that a configuration names is in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestNamespace {
    /// A new one.
    New,
    /// That of another container of the sandbox, or of the pod, by its path in the guest.
    Of(PathBuf),
}

/// Says what a namespace of the host is in the guest; none if it is nothing there.
pub type ResolveNamespace<'a> = dyn Fn(LinuxNamespaceType, &Path) -> Option<GuestNamespace> + 'a;

/// Translates `bundle` for the container `id`. `has_disk`: its root file system is a [`RootDisk`] and not the bundle's
/// directory. `notifies`: its caller is a service that it is to report to. `pod_memory`: what the containers of its pod
/// have at `/dev/shm`.
///
/// # Errors
/// See [`RootfsError`].
pub fn translate(
    id: &ContainerId,
    bundle: &Bundle,
    has_disk: bool,
    notifies: bool,
    pod_memory: Option<&SharedMemory>,
    resolve_namespace: &ResolveNamespace<'_>,
) -> Result<GuestContainer, RootfsError> {
    let mut spec = bundle.spec.clone();
    let mut shares = Vec::new();
    let root_path = if has_disk {
        RootDisk::guest_path(id)
    } else {
        let share = Share::rootfs(id, &bundle.rootfs);
        let path = Path::new(GUEST_SHARE).join(&share.target);
        shares.push(share);
        path
    };
    let readonly = spec.root().as_ref().and_then(Root::readonly);
    let mut root = Root::default();
    root.set_path(root_path).set_readonly(readonly);
    spec.set_root(Some(root));
    let engine_mount = if notifies {
        None
    } else {
        notify::of_engine(id, bundle)
    };
    let mut shared_memory = Vec::new();
    let mounts = mounts::translate(
        id,
        bundle,
        engine_mount.as_ref(),
        pod_memory,
        &mut shares,
        &mut shared_memory,
    )?;
    spec.set_mounts(Some(mounts));
    spec.set_process(Some(guest_process(bundle.process.clone())));
    spec.set_hooks(guest_hooks(&bundle.hooks()));
    if let Some(linux) = spec.linux_mut() {
        guest_linux(id, linux, resolve_namespace)?;
    }
    let notify = if notifies {
        Some(NotifySocket::of_caller(id, &mut spec))
    } else {
        engine_mount.map(|mount| mount.socket)
    };
    let spec = encode(&spec)?;
    Ok(GuestContainer {
        spec,
        shares,
        shared_memory,
        notify,
        files: Vec::new(),
    })
}

/// A process object for the guest.
///
/// # Errors
/// It cannot be written.
pub fn translate_process(process: Process) -> Result<Vec<u8>, RootfsError> {
    serde_json::to_vec(&guest_process(process)).map_err(RootfsError::Encode)
}

fn encode(spec: &Spec) -> Result<Vec<u8>, RootfsError> {
    serde_json::to_vec(spec).map_err(RootfsError::Encode)
}

/// The guest's kernel has neither AppArmor nor SELinux: labels, which engines write by default, have nothing to act
/// on there, and confine the container less than the VM does.
fn guest_process(mut process: Process) -> Process {
    if process.apparmor_profile().is_some() || process.selinux_label().is_some() {
        tracing::info!("labels of Linux security modules have no effect in the guest");
    }
    process.set_apparmor_profile(None).set_selinux_label(None);
    process
}

/// Only `startContainer` hooks are programs of the container.
fn guest_hooks(hooks: &Hooks) -> Option<Hooks> {
    hooks.start_container().as_ref().map(|start_container| {
        let mut hooks = Hooks::default();
        hooks.set_start_container(Some(start_container.clone()));
        hooks
    })
}

fn guest_linux(
    id: &ContainerId,
    linux: &mut Linux,
    resolve_namespace: &ResolveNamespace<'_>,
) -> Result<(), RootfsError> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    for namespace in &mut namespaces {
        let Some(path) = namespace.path().clone() else {
            continue;
        };
        let kind = namespace.typ();
        match resolve_namespace(kind, &path) {
            Some(GuestNamespace::New) => namespace.set_path(None),
            Some(GuestNamespace::Of(path)) => namespace.set_path(Some(path)),
            None => return Err(RootfsError::Namespace { kind, path }),
        };
    }
    linux
        .set_namespaces(Some(namespaces))
        .set_cgroups_path(Some(Path::new("/").join(id.as_str())))
        .set_mount_label(None);
    if let Some(devices) = linux.devices() {
        devices.iter().try_for_each(devices::check)?;
    }
    if let Some(resources) = linux.resources_mut() {
        guest_resources(resources);
    }
    Ok(())
}

/// Limits of the host's devices and networks name things that the guest does not have.
fn guest_resources(resources: &mut LinuxResources) {
    let named = resources.block_io().as_ref().is_some_and(|block_io| {
        [
            block_io.throttle_read_bps_device(),
            block_io.throttle_write_bps_device(),
            block_io.throttle_read_iops_device(),
            block_io.throttle_write_iops_device(),
        ]
        .iter()
        .any(|devices| devices.as_ref().is_some_and(|devices| !devices.is_empty()))
    });
    let classes = resources.network().as_ref().is_some_and(|network| {
        network.class_id().is_some_and(|class| class != 0)
            || network
                .priorities()
                .as_ref()
                .is_some_and(|priorities| !priorities.is_empty())
    });
    if named || classes {
        tracing::warn!(
            "limits of the host's block devices and network classes do not hold in a VM"
        );
    }
    resources.set_block_io(None).set_network(None);
}
