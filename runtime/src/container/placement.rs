//! Which VM a container goes into: one of its own, or that of the pod that it belongs to.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, statfs};
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

use super::{ContainerError, ContainerId};
use crate::bundle::{BundleError, HOST_NETWORK};
use crate::network::{Netns, NetnsId};
use crate::rootfs::GuestNamespace;
use crate::sandbox::Sandbox;
use crate::store::{Store, StoreError};
use crate::sys::namespace_type;

/// The host's network namespace, as far as hull sees the host.
const HOST_NETNS: &str = "/proc/1/ns/net";

/// Annotations with which an engine says that a container belongs to a pod: the annotation of the kind, its value for
/// a container of a pod, and the annotation that holds the id of the pod's sandbox.
const POD_ANNOTATIONS: [(&str, &str, &str); 2] = [
    (
        "io.kubernetes.cri.container-type",
        "container",
        "io.kubernetes.cri.sandbox-id",
    ),
    (
        "io.kubernetes.cri-o.ContainerType",
        "container",
        "io.kubernetes.cri-o.SandboxID",
    ),
];

/// The value of the same annotations for the container that only holds a pod's namespaces.
const POD_SANDBOX: &str = "sandbox";

/// The network namespace of a container, and the sandbox that is in it already.
#[derive(Debug)]
pub(super) struct Placement {
    /// It is held open for as long as the container is being made.
    pub(super) netns: Netns,
    /// Where it is mounted, if the configuration names one.
    pub(super) netns_path: Option<PathBuf>,
    /// A sandbox whose VM runs, with its lock.
    pub(super) sandbox: Option<Sandbox>,
}

impl Placement {
    /// Finds, or makes, the network namespace of a container with this configuration, and its sandbox.
    ///
    /// # Errors
    /// The namespace cannot be had, or the state directory cannot be read.
    pub(super) fn find(
        store: &Store,
        spec: &Spec,
        annotations: &HashMap<String, String>,
    ) -> Result<Self, crate::Error> {
        let netns_path = netns_path(spec);
        let netns = match &netns_path {
            Some(path) => open_given(path)?,
            None => Netns::create()?,
        };
        let by_annotation = pod_of(annotations);
        let sandbox = match &by_annotation {
            Some(id) => open_running(store, id)?,
            None => None,
        };
        let sandbox = match (sandbox, &netns_path) {
            (None, Some(path)) => {
                let sandbox = sandbox_in(store, &netns)?;
                if sandbox.is_none() {
                    check_unused(&netns, path)?;
                }
                sandbox
            }
            (sandbox, _) => sandbox,
        };
        Ok(Self {
            netns,
            netns_path,
            sandbox,
        })
    }
}

/// Opens the network namespace at `path` for a sandbox that is to be made in it.
///
/// # Errors
/// It cannot be had, or somebody is in it already.
pub(crate) fn open_unused(store: &Store, path: &Path) -> Result<Netns, crate::Error> {
    let netns = open_given(path)?;
    if let Some(sandbox) = sandbox_in(store, &netns)? {
        return Err(ContainerError::TakenNetns {
            path: path.into(),
            sandbox: sandbox.id().clone(),
        }
        .into());
    }
    check_unused(&netns, path)?;
    Ok(netns)
}

/// Opens the namespace that the configuration names, which is not to be the host's: wiring that would take the host's
/// own interfaces away.
fn open_given(path: &Path) -> Result<Netns, crate::Error> {
    let netns = Netns::open(path)?;
    if netns.id() == Netns::open(Path::new(HOST_NETNS))?.id() {
        return Err(BundleError::Unsupported {
            field: format!("linux.namespaces: network {}", path.display()),
            reason: HOST_NETWORK,
        }
        .into());
    }
    Ok(netns)
}

fn netns_path(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux: &Linux| linux.namespaces().as_deref());
    namespaces
        .unwrap_or_default()
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
        .and_then(|namespace| namespace.path().clone())
        .filter(|path| path != Path::new(""))
}

/// The pod that annotations name; a name that is no id is no sandbox's.
fn pod_of(annotations: &HashMap<String, String>) -> Option<ContainerId> {
    POD_ANNOTATIONS
        .iter()
        .find_map(|(kind, container, sandbox)| {
            annotations
                .get(*kind)
                .filter(|value| value == container)
                .and_then(|_| annotations.get(*sandbox)?.parse().ok())
        })
}

/// Whether an engine says that the container is the one which only holds a pod's namespaces.
pub(super) fn is_pod_sandbox(annotations: &HashMap<String, String>) -> bool {
    POD_ANNOTATIONS.iter().any(|(kind, ..)| {
        annotations
            .get(*kind)
            .is_some_and(|value| value == POD_SANDBOX)
    })
}

/// The sandbox `id`, if its VM runs once its lock is had.
fn open_running(store: &Store, id: &ContainerId) -> Result<Option<Sandbox>, crate::Error> {
    match Sandbox::open(store, id) {
        Ok(sandbox) => Ok(sandbox.is_running().then_some(sandbox)),
        Err(StoreError::NoSandbox { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The running sandbox that lives in `netns`. One that ended there without giving the namespace back (its proxy was
/// killed) does so now.
fn sandbox_in(store: &Store, netns: &Netns) -> Result<Option<Sandbox>, crate::Error> {
    for record in store.sandboxes()? {
        if record.network.netns != Some(netns.id()) {
            continue;
        }
        if let Some(sandbox) = open_running(store, &record.id)? {
            return Ok(Some(sandbox));
        }
        give_back(store, &record.id)?;
    }
    Ok(None)
}

/// Checks that no container without a VM of this state directory is in the namespace: wiring its interfaces to a VM would
/// take its network away. A container is told from what else may be there (whoever holds the namespace, a tool that looks
/// into it) by its root directory, which is not the host's.
fn check_unused(netns: &Netns, path: &Path) -> Result<(), crate::Error> {
    let own_root = root_of(Path::new("/proc/self")).map_err(ContainerError::OwnProcess)?;
    let processes = std::fs::read_dir("/proc").map_err(ContainerError::OwnProcess)?;
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let directory = process.path();
        // A process that has ended meanwhile is in no namespace.
        let is_in_it = std::fs::metadata(directory.join("ns/net"))
            .is_ok_and(|file| NetnsId::of(&file) == netns.id());
        if is_in_it && root_of(&directory).is_ok_and(|root| root != own_root) {
            let command = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
            return Err(ContainerError::ForeignNetns {
                path: path.into(),
                pid,
                command: command.trim_end().into(),
            }
            .into());
        }
    }
    Ok(())
}

/// Device and inode of a process's root directory.
fn root_of(process: &Path) -> std::io::Result<(u64, u64)> {
    let root = std::fs::metadata(process.join("root"))?;
    Ok((root.dev(), root.ino()))
}

fn give_back(store: &Store, id: &ContainerId) -> Result<(), crate::Error> {
    match Sandbox::open(store, id) {
        Ok(mut sandbox) => sandbox.end(),
        Err(StoreError::NoSandbox { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A namespace of the host that an engine has made for a pod and keeps by a mount, as CRI-O does. No process is in it: it
/// stands for one that the pod's containers have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedNamespace {
    kind: LinuxNamespaceType,
    device: u64,
    inode: u64,
}

impl PinnedNamespace {
    /// The one at `path`; none if it is none, the host's own, or of a kind that is not kept so.
    fn at(kind: LinuxNamespaceType, path: &Path) -> Option<Self> {
        let own = Path::new("/proc/self/ns").join(pinned_name(kind)?);
        let is_namespace = statfs(path).ok()?.filesystem_type() == NSFS_MAGIC;
        let open = |path: &Path| {
            let file = File::open(path).ok()?;
            let metadata = file.metadata().ok()?;
            let id = (metadata.dev(), metadata.ino());
            Some((namespace_type(file.as_fd())?, id))
        };
        let (own_type, own) = open(&own)?;
        let (given_type, (device, inode)) = is_namespace.then(|| open(path)).flatten()?;
        (given_type == own_type && own != (device, inode)).then_some(Self {
            kind,
            device,
            inode,
        })
    }

    /// All that a configuration names.
    pub(super) fn all(spec: &Spec) -> Vec<Self> {
        let linux = spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
        let pinned = |namespace: &LinuxNamespace| {
            let path = namespace.path().as_deref()?;
            Self::at(namespace.typ(), path).filter(|_| proxy_in(path).is_none())
        };
        namespaces
            .unwrap_or_default()
            .iter()
            .filter_map(pinned)
            .collect()
    }
}

/// The kinds of namespace that engines keep for a pod, but for the network's, by their names below `/proc/<pid>/ns`.
fn pinned_name(kind: LinuxNamespaceType) -> Option<&'static str> {
    match kind {
        LinuxNamespaceType::Ipc => Some("ipc"),
        LinuxNamespaceType::Uts => Some("uts"),
        _ => None,
    }
}

/// What a namespace that a configuration names is in the guest: that of a container of the same sandbox, which it names
/// by the container's proxy or which was given the same pinned namespace; that of the pod, which it names by the VMM; or,
/// for a pinned namespace that no container has yet, a new one.
pub(super) fn resolve_namespace(
    store: &Store,
    sandbox: Option<&Sandbox>,
    kind: LinuxNamespaceType,
    path: &Path,
) -> Option<GuestNamespace> {
    if let Some((pid, name)) = proxy_in(path) {
        if let Some(path) = sandbox?.pod_namespace(pid, name) {
            return Some(GuestNamespace::Of(path));
        }
        return of_proxy(store, sandbox?, kind, path).map(GuestNamespace::Of);
    }
    let pinned = PinnedNamespace::at(kind, path)?;
    let name = pinned_name(kind)?;
    let Some(sandbox) = sandbox else {
        return Some(GuestNamespace::New);
    };
    let containers = store.containers().ok()?;
    let owner = containers.iter().find(|record| {
        record.sandbox_id == *sandbox.id()
            && record.pinned_namespaces.contains(&pinned)
            && record.proxy.is_some_and(|proxy| proxy.is_alive())
    });
    Some(match owner.and_then(|owner| owner.guest_pid) {
        Some(pid) => GuestNamespace::Of(format!("/proc/{pid}/ns/{name}").into()),
        None => GuestNamespace::New,
    })
}

/// The pid and the name in `/proc/<pid>/ns/<name>`.
fn proxy_in(path: &Path) -> Option<(i32, &str)> {
    let (pid, name) = path.to_str()?.strip_prefix("/proc/")?.split_once("/ns/")?;
    Some((pid.parse().ok()?, name))
}

/// The namespace of the container whose proxy `path` names.
fn of_proxy(
    store: &Store,
    sandbox: &Sandbox,
    kind: LinuxNamespaceType,
    path: &Path,
) -> Option<PathBuf> {
    let sandbox = sandbox.id();
    let (pid, name) = proxy_in(path)?;
    let known = matches!(
        (kind, name),
        (LinuxNamespaceType::Pid, "pid")
            | (LinuxNamespaceType::Ipc, "ipc")
            | (LinuxNamespaceType::Uts, "uts")
    );
    if !known {
        return None;
    }
    let containers = store.containers().ok()?;
    let owner = containers.iter().find(|record| {
        record.sandbox_id == *sandbox
            && record
                .proxy
                .is_some_and(|proxy| proxy.pid == pid && proxy.is_alive())
    })?;
    Some(PathBuf::from(format!(
        "/proc/{}/ns/{name}",
        owner.guest_pid?
    )))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pinned_namespace_is_told_from_the_hosts_own_and_from_files() {
        let at = |kind, path: &str| PinnedNamespace::at(kind, Path::new(path));
        assert_eq!(at(LinuxNamespaceType::Ipc, "/proc/self/ns/ipc"), None);
        assert_eq!(at(LinuxNamespaceType::Ipc, "/etc/hostname"), None);
        assert_eq!(at(LinuxNamespaceType::Pid, "/proc/self/ns/net"), None);
        assert_eq!(at(LinuxNamespaceType::Ipc, "/proc/self/ns/net"), None);
        let mut other = Command::new("unshare")
            .args(["--ipc", "sleep", "1000"])
            .spawn()
            .unwrap();
        let path = format!("/proc/{}/ns/ipc", other.id());
        let own = std::fs::read_link("/proc/self/ns/ipc").unwrap();
        while std::fs::read_link(&path).unwrap() == own {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pinned = at(LinuxNamespaceType::Ipc, &path);
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(pinned.is_some());
    }

    #[test]
    fn annotations_of_engines_name_the_pod() {
        let annotations = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let containerd = annotations(&[
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.sandbox-id", "pod1"),
        ]);
        assert_eq!(pod_of(&containerd), Some("pod1".parse().unwrap()));
        let crio = annotations(&[
            ("io.kubernetes.cri-o.ContainerType", "container"),
            ("io.kubernetes.cri-o.SandboxID", "pod2"),
        ]);
        assert_eq!(pod_of(&crio), Some("pod2".parse().unwrap()));
        for pairs in [
            &[][..],
            &[
                ("io.kubernetes.cri.container-type", "sandbox"),
                ("io.kubernetes.cri.sandbox-id", "pod1"),
            ],
            &[("io.kubernetes.cri.container-type", "container")],
            &[
                ("io.kubernetes.cri.container-type", "container"),
                ("io.kubernetes.cri.sandbox-id", "../pod1"),
            ],
        ] {
            assert_eq!(pod_of(&annotations(pairs)), None);
        }
    }
}
