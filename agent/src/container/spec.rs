//! Turns the specification that the runtime sends into one that holds in the guest. This is the one place that knows
//! what a guest drops or changes of `config.json`:
//!
//! - namespaces: new ones for pid, mount, ipc, uts and cgroup (and time, when asked for), or, of pid, ipc and uts, that
//!   of another container of the sandbox, by the path `/proc/<pid of its first process>/ns/<kind>`, or that of a pod which
//!   no container holds, by the path of process 1: of ipc and uts the guest's own, of pid that of the pod's init; no network
//!   namespace, since a sandbox's containers share the guest's. User namespaces are refused.
//! - the cgroup is `/hull/<container id>`. What needs the host's devices or controllers (block I/O, huge pages, RDMA,
//!   network classes, Intel RDT) is dropped: the guest is the boundary that they stand for. CPU
//!   sets are cut to the guest's CPUs.
//! - device rules are taken out: they become a BPF program on the cgroup.
//! - AppArmor profiles and SELinux labels are the host's, and dropped.
//! - `net.*` sysctls are taken out, for they belong to the guest's one network namespace.
//! - hooks: only `startContainer` belongs into the guest.
//! - seccomp, the last step of dropping capabilities, and startContainer hooks are taken out of what `libcontainer`
//!   does and put into the [`Payload`], which the helper's executor applies last: `libcontainer` 0.7 would load the profile
//!   long before exec(2), where it hits the set-up itself, and would leave processes of exec without it.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capability, Hook, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, LinuxSeccomp, LinuxSeccompAction, Process, Spec,
};
use serde::{Deserialize, Serialize};

/// The pid namespace of a pod that no container holds, in a specification.
const POD_PROCESSES: &str = "/proc/1/ns/pid";

/// Why a specification or a process object is refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not JSON of the expected shape.
    #[error("parse the specification")]
    Parse(#[source] serde_json::Error),
    /// A part that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A part is there that the guest cannot have.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The root file system's path.
    #[error("root.path {0:?} is not an absolute path")]
    RelativeRoot(PathBuf),
    /// `process.cwd` must be absolute.
    #[error("process.cwd {0:?} is not an absolute path")]
    RelativeCwd(PathBuf),
    /// A namespace that is no container's and no pod's.
    #[error("the namespace {0:?} is not one of a container's first process, nor a pod's")]
    Namespace(PathBuf),
    /// A sysctl's name.
    #[error("{0:?} is no name of a sysctl")]
    Sysctl(String),
}

/// What the helper's executor does itself, last thing before it executes the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Payload {
    /// The profile.
    pub seccomp: Option<LinuxSeccomp>,
    /// Set on the process already when the executor runs.
    pub no_new_privileges: bool,
    /// The capabilities that the program runs with.
    pub capabilities: LinuxCapabilities,
    /// startContainer hooks.
    pub start_hooks: Vec<Hook>,
    /// A new terminal's rows and columns.
    pub window: Option<(u16, u16)>,
    /// The user's id, whose the stdio is to be.
    pub user: u32,
    /// The stdio is a new terminal.
    pub terminal: bool,
    /// What is to be read-only once it has in it what belongs there: the devices, and other mounts.
    pub readonly_mounts: Vec<PathBuf>,
}

impl Payload {
    /// Whether the profile is loaded with CAP_SYS_ADMIN: that takes either it or no_new_privs (seccomp(2)).
    pub fn loads_with_privileges(&self) -> bool {
        self.seccomp.is_some() && !self.no_new_privileges
    }

    /// Whether the terminal is to be given to another user than it was made by.
    pub fn gives_terminal(&self) -> bool {
        self.terminal && self.user != 0
    }

    /// Whether the process keeps [`EXECUTORS`] beside its capabilities until the executor has done its part.
    pub fn needs_privileges(&self) -> bool {
        self.loads_with_privileges() || self.gives_terminal() || !self.readonly_mounts.is_empty()
    }
}

/// What the executor needs: to load a profile without no_new_privs or to remount, to give a terminal away, and to drop both
/// again from the bounding set.
const EXECUTORS: [Capability; 3] = [Capability::SysAdmin, Capability::Chown, Capability::Setpcap];

/// A container's specification, taken apart.
#[derive(Debug)]
pub struct GuestSpec {
    /// What `libcontainer` gets.
    pub spec: Spec,
    /// What the executor does.
    pub payload: Payload,
    /// `net.*` sysctls of the guest's network namespace.
    pub network_sysctls: Vec<(String, String)>,
    /// The device rules of its cgroup.
    pub devices: Vec<LinuxDeviceCgroup>,
    /// The process gets a terminal.
    pub terminal: bool,
}

impl GuestSpec {
    /// Whether the container's pid namespace is one that was there before it.
    pub fn shares_processes(&self) -> bool {
        let linux = self.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
        let mut namespaces = namespaces.unwrap_or_default().iter();
        namespaces.any(|one| one.typ() == LinuxNamespaceType::Pid && one.path().is_some())
    }

    /// The namespace that it is to share with the pod, whose init is to be named instead of process 1.
    pub fn pod_processes(&mut self) -> Option<&mut LinuxNamespace> {
        let namespaces = self.spec.linux_mut().as_mut()?.namespaces_mut().as_mut()?;
        let is_pods =
            |one: &&mut LinuxNamespace| one.path().as_deref() == Some(Path::new(POD_PROCESSES));
        namespaces.iter_mut().find(is_pods)
    }
}

/// What the guest has, as far as specifications depend on it.
#[derive(Clone, Debug)]
pub struct Guest {
    /// CPUs that are there, online or not.
    pub cpus: BTreeSet<u32>,
    /// The pids of the containers' first processes, as far as they run.
    pub first_processes: BTreeSet<i32>,
    /// The memory controller knows swap.
    pub swap: bool,
    /// The parent of the containers' cgroups, from the tree's root: `/hull`.
    pub cgroups: PathBuf,
}

/// Reads `config.json` and makes it hold in the guest.
///
/// # Errors
/// See [`SpecError`].
pub fn for_guest(json: &[u8], id: &str, guest: &Guest) -> Result<GuestSpec, SpecError> {
    let mut spec: Spec = serde_json::from_slice(json).map_err(SpecError::Parse)?;
    let root = spec.root().as_ref().ok_or(SpecError::Missing("root"))?;
    if !root.path().is_absolute() {
        return Err(SpecError::RelativeRoot(root.path().clone()));
    }
    let start_hooks = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.start_container().clone())
        .unwrap_or_default();
    spec.set_hooks(None);
    spec.set_uid_mappings(None);
    spec.set_gid_mappings(None);

    let mut linux = spec.linux().clone().unwrap_or_default();
    let seccomp = linux.seccomp().clone();
    let network_sysctls = take_network_sysctls(&mut linux)?;
    let devices = linux
        .resources_mut()
        .as_mut()
        .and_then(|resources| resources.devices_mut().take())
        .unwrap_or_default();
    confine(&mut linux, id, guest)?;
    spec.set_linux(Some(linux));

    let process = spec
        .process()
        .clone()
        .ok_or(SpecError::Missing("process"))?;
    name_sources(&mut spec);
    let readonly_mounts = take_readonly_mounts(&mut spec);
    let (process, payload) = for_process(process, seccomp, start_hooks, readonly_mounts)?;
    let terminal = process.terminal().unwrap_or(false);
    spec.set_process(Some(process));
    Ok(GuestSpec {
        spec,
        payload,
        network_sysctls,
        devices,
        terminal,
    })
}

/// Reads the process object of an exec into a container with the given seccomp profile.
///
/// # Errors
/// See [`SpecError`].
pub fn for_exec(
    json: &[u8],
    seccomp: Option<LinuxSeccomp>,
) -> Result<(Process, Payload), SpecError> {
    let process = serde_json::from_slice(json).map_err(SpecError::Parse)?;
    for_process(process, seccomp, Vec::new(), Vec::new())
}

fn for_process(
    mut process: Process,
    seccomp: Option<LinuxSeccomp>,
    start_hooks: Vec<Hook>,
    readonly_mounts: Vec<PathBuf>,
) -> Result<(Process, Payload), SpecError> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(SpecError::Missing("process.args"));
    }
    if !process.cwd().is_absolute() {
        return Err(SpecError::RelativeCwd(process.cwd().clone()));
    }
    if let Some(profile) = &seccomp {
        refuse_notify(profile)?;
    }
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    let window = process.console_size().and_then(|size| {
        let rows = u16::try_from(size.height()).ok()?;
        let columns = u16::try_from(size.width()).ok()?;
        (rows > 0 && columns > 0).then_some((rows, columns))
    });
    let payload = Payload {
        no_new_privileges: process.no_new_privileges() == Some(true),
        capabilities: explicit(process.capabilities().as_ref()),
        seccomp,
        start_hooks,
        window,
        user: process.user().uid(),
        terminal: process.terminal() == Some(true),
        readonly_mounts,
    };
    let mut capabilities = payload.capabilities.clone();
    if payload.needs_privileges() {
        let with_executors = |set: &Option<HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.extend(EXECUTORS);
            Some(set)
        };
        capabilities.set_bounding(with_executors(capabilities.bounding()));
        capabilities.set_permitted(with_executors(capabilities.permitted()));
        capabilities.set_effective(with_executors(capabilities.effective()));
    }
    process.set_capabilities(Some(capabilities));
    Ok((process, payload))
}

/// Every set, since a set that is not given is empty (and not left as it is).
fn explicit(given: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let mut all = LinuxCapabilities::default();
    let of = |set: fn(&LinuxCapabilities) -> &Option<HashSet<Capability>>| {
        Some(
            given
                .and_then(|given| set(given).clone())
                .unwrap_or_default(),
        )
    };
    all.set_bounding(of(LinuxCapabilities::bounding))
        .set_effective(of(LinuxCapabilities::effective))
        .set_inheritable(of(LinuxCapabilities::inheritable))
        .set_permitted(of(LinuxCapabilities::permitted))
        .set_ambient(of(LinuxCapabilities::ambient));
    all
}

/// Notifications go to a listener's socket, which is on the host.
fn refuse_notify(profile: &LinuxSeccomp) -> Result<(), SpecError> {
    let notifies = profile.default_action() == LinuxSeccompAction::ScmpActNotify
        || profile
            .syscalls()
            .iter()
            .flatten()
            .any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    if notifies || profile.listener_path().is_some() {
        return Err(SpecError::Unsupported("seccomp's SCMP_ACT_NOTIFY"));
    }
    Ok(())
}

/// Gives mounts that come from nowhere, such as a tmpfs, the name of their type for a source, which may be missing
/// (runtime specification, § Mounts) and which `libcontainer` asks for.
fn name_sources(spec: &mut Spec) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.source().is_none() {
            mount.set_source(mount.typ().as_ref().map(PathBuf::from));
        }
    }
}

/// Leaves `/dev` and every tmpfs writable while the rest of the mounts are made, and says which are to be read-only then.
fn take_readonly_mounts(spec: &mut Spec) -> Vec<PathBuf> {
    let mut readonly = Vec::new();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let is_later =
            mount.typ().as_deref() == Some("tmpfs") || mount.destination() == Path::new("/dev");
        let mut options = mount.options().clone().unwrap_or_default();
        if is_later && options.iter().any(|option| option == "ro") {
            options.retain(|option| option != "ro");
            mount.set_options(Some(options));
            readonly.push(mount.destination().clone());
        }
    }
    readonly
}

fn take_network_sysctls(linux: &mut Linux) -> Result<Vec<(String, String)>, SpecError> {
    let Some(sysctls) = linux.sysctl().clone() else {
        return Ok(Vec::new());
    };
    for name in sysctls.keys() {
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-:@".contains(&byte))
        };
        if !name.split(['.', '/']).all(plain) {
            return Err(SpecError::Sysctl(name.clone()));
        }
    }
    let (network, rest): (Vec<_>, Vec<_>) = sysctls
        .into_iter()
        .partition(|(name, _)| name.starts_with("net.") || name.starts_with("net/"));
    linux.set_sysctl(Some(rest.into_iter().collect()));
    Ok(network)
}

fn confine(linux: &mut Linux, id: &str, guest: &Guest) -> Result<(), SpecError> {
    let asked: HashSet<LinuxNamespaceType> = linux
        .namespaces()
        .iter()
        .flatten()
        .map(LinuxNamespace::typ)
        .collect();
    if asked.contains(&LinuxNamespaceType::User) {
        return Err(SpecError::Unsupported("a user namespace"));
    }
    if linux
        .net_devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        return Err(SpecError::Unsupported("linux.netDevices"));
    }
    let namespaces = namespaces(linux, guest)?;
    linux
        .set_namespaces(Some(namespaces))
        .set_cgroups_path(Some(guest.cgroups.join(id)))
        .set_seccomp(None)
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_net_devices(None)
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    if let Some(resources) = linux.resources_mut() {
        limit(resources, guest);
    }
    Ok(())
}

/// The namespaces that the container gets.
fn namespaces(linux: &Linux, guest: &Guest) -> Result<Vec<LinuxNamespace>, SpecError> {
    let asked = linux.namespaces().as_deref().unwrap_or_default();
    let mut namespaces = Vec::new();
    for (kind, shared_as) in [
        (LinuxNamespaceType::Pid, Some("pid")),
        (LinuxNamespaceType::Mount, None),
        (LinuxNamespaceType::Ipc, Some("ipc")),
        (LinuxNamespaceType::Uts, Some("uts")),
        (LinuxNamespaceType::Cgroup, None),
        (LinuxNamespaceType::Time, None),
    ] {
        let wanted = asked.iter().find(|namespace| namespace.typ() == kind);
        if wanted.is_none() && kind == LinuxNamespaceType::Time {
            continue;
        }
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        if let Some(path) = wanted.and_then(|wanted| wanted.path().clone()) {
            if !shared_as.is_some_and(|name| is_shared(&path, name, guest)) {
                return Err(SpecError::Namespace(path));
            }
            namespace.set_path(Some(path));
        }
        namespaces.push(namespace);
    }
    Ok(namespaces)
}

/// Whether `path` is `/proc/<pid>/ns/<name>` of a container's first process, or of the guest's, which stands for the pod.
fn is_shared(path: &Path, name: &str, guest: &Guest) -> bool {
    let is_of = |pid: &i32| path == Path::new(&format!("/proc/{pid}/ns/{name}"));
    guest.first_processes.iter().any(is_of) || is_of(&1)
}

/// Reads an OCI resources object and makes it hold in the guest. Device rules stay as the container was made with them.
///
/// # Errors
/// See [`SpecError`].
pub fn resources_for_guest(json: &[u8], guest: &Guest) -> Result<LinuxResources, SpecError> {
    let mut resources: LinuxResources = serde_json::from_slice(json).map_err(SpecError::Parse)?;
    resources.set_devices(None);
    limit(&mut resources, guest);
    Ok(resources)
}

fn limit(resources: &mut LinuxResources, guest: &Guest) {
    resources
        .set_block_io(None)
        .set_hugepage_limits(None)
        .set_network(None)
        .set_rdma(None);
    if let Some(cpu) = resources.cpu_mut() {
        let cpus = cpu
            .cpus()
            .as_deref()
            .and_then(|list| clamp(list, &guest.cpus));
        cpu.set_cpus(cpus);
        // The guest has one memory node.
        cpu.set_mems(None);
    }
    if let Some(memory) = resources.memory_mut() {
        // A kernel without swap accounting holds any limit of it.
        if !guest.swap {
            memory.set_swap(None);
        } else if memory.limit().is_none() && memory.swap() == Some(-1) {
            // `libcgroups` takes no limit of swap without one of memory.
            memory.set_swap(None);
            let mut files = resources.unified().clone().unwrap_or_default();
            files.insert("memory.swap.max".to_owned(), "max".to_owned());
            resources.set_unified(Some(files));
        }
    }
}

/// The CPUs of `list` that are there, as a list again; nothing when none is, or when it is all.
fn clamp(list: &str, there: &BTreeSet<u32>) -> Option<String> {
    let wanted = parse_cpus(list)?;
    let kept: Vec<String> = wanted.intersection(there).map(u32::to_string).collect();
    (!kept.is_empty() && kept.len() < there.len()).then(|| kept.join(","))
}

/// Reads a list of CPUs as the kernel writes it: `0-2,5`.
pub fn parse_cpus(list: &str) -> Option<BTreeSet<u32>> {
    /// More than any guest has, and little to count to.
    const MOST: u32 = 4096;
    let mut cpus = BTreeSet::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
#[path = "spec/tests.rs"]
mod tests;
