//! What is kept of containers and sandboxes.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::config::{NicSettings, VmSize};
use crate::container::{ContainerId, PinnedNamespace};
use crate::network::{NetworkState, Options};
use crate::process_identity::ProcessIdentity;
use crate::sandbox::pod::Pod;
use crate::timing::Phase;

/// `state.json`: a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// The sandbox whose VM it is in.
    pub sandbox_id: ContainerId,
    /// `ociVersion` of its configuration.
    pub oci_version: String,
    /// Its bundle, an absolute path.
    pub bundle: PathBuf,
    /// Its root file system on the host, an absolute path.
    pub rootfs: PathBuf,
    /// When it was created: RFC 3339.
    pub created: String,
    /// The user who created it, by name if it has one.
    pub owner: String,
    /// Annotations of its configuration.
    pub annotations: HashMap<String, String>,
    /// The file of the host that it has as `/etc/resolv.conf`.
    #[serde(default)]
    pub resolver_file: Option<PathBuf>,
    /// Whether it is to report to the service manager of whoever starts it.
    #[serde(default)]
    pub notifies: bool,
    /// The namespaces that an engine keeps for its pod and has given it.
    #[serde(default)]
    pub pinned_namespaces: Vec<PinnedNamespace>,
    /// How far it has come by commands; whether it has ended since is for the processes to tell.
    pub lifecycle: Lifecycle,
    /// The `hull create` that makes it, while it does.
    pub creator: Option<ProcessIdentity>,
    /// Its process proxy.
    pub proxy: Option<ProcessIdentity>,
    /// Its cgroup on the host; none in a record that is older than the cgroup.
    #[serde(default)]
    pub cgroup: Option<Cgroup>,
    /// What it may use at the most; zero where there is no limit.
    #[serde(default)]
    pub limits: VmSize,
    /// The pid of its first process in the guest, as the agent sees it.
    pub guest_pid: Option<u32>,
    /// Hooks that run after `create`, when the bundle may have changed or gone.
    pub poststart: Vec<Hook>,
    /// See `poststart`.
    pub poststop: Vec<Hook>,
    /// How long the steps of its creation took.
    pub timings: Vec<Phase>,
}

/// How far commands have brought a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// `create` is at work.
    Creating,
    /// `create` is done.
    Created,
    /// `start` is done.
    Started,
    /// `pause` is done, after `start`.
    Paused,
}

/// `sandbox.json`: a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id, that of the container it was made for, or of the pod.
    pub id: ContainerId,
    /// The pod that it was made for, before any container of it.
    #[serde(default)]
    pub pod: Option<Pod>,
    /// Where its network namespace is mounted, if it was given one.
    pub netns_path: Option<PathBuf>,
    /// A process that lives in its network namespace: the first container's proxy, if it was made for one.
    pub netns_holder: Option<ProcessIdentity>,
    /// What is wanted of its network.
    pub network_options: Options,
    /// What was done to the network namespace.
    pub network: NetworkState,
    /// How its NICs move packets.
    #[serde(default)]
    pub nics: NicSettings,
    /// What its VM has.
    pub size: VmSize,
    /// What its VM can grow to; less than its size in a record that is older than growing.
    #[serde(default)]
    pub most: VmSize,
    /// The cgroup that the VM is in, its first container's, once it is.
    #[serde(default)]
    pub cgroup: Option<Cgroup>,
    /// Its `hull-vmm` process; none before it was started, and after its end was seen to.
    pub vmm: Option<ProcessIdentity>,
    /// The process that follows changes of its network namespace, as `vmm`.
    #[serde(default)]
    pub monitor: Option<ProcessIdentity>,
    /// What stands for the network that the guest was given last and took whole; none while that is not sure.
    #[serde(default)]
    pub guest_network: Option<u64>,
    /// The containers whose root file systems are disks of the VM's.
    #[serde(default)]
    pub disks: Vec<ContainerId>,
}
