//! What a configuration must have, and what it must not ask of a VM.

use oci_spec::runtime::{Hook, Linux, LinuxNamespaceType, Process, Root, Spec};

use super::BundleError;

/// The oldest version of the specification that hull takes.
pub const OLDEST_OCI_VERSION: &str = "1.0.0";
/// The newest version of the specification that hull knows.
pub const NEWEST_OCI_VERSION: &str = "1.3.0";

/// Why a container cannot have the network of the host.
pub(crate) const HOST_NETWORK: &str =
    "sharing the host's network with a VM is not supported: give the container a network namespace";

/// Checks all of a configuration but what it names on the host; gives its process.
pub(super) fn validate(spec: &Spec) -> Result<Process, BundleError> {
    version(spec.version())?;
    root(spec)?;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| field("process", "it is missing"))?;
    validate_process(process)?;
    hooks(spec)?;
    mounts(spec)?;
    if spec.solaris().is_some() || spec.windows().is_some() || spec.zos().is_some() {
        return Err(unsupported(
            "solaris, windows, zos",
            "hull runs Linux containers",
        ));
    }
    if spec.vm().is_some() {
        return Err(unsupported(
            "vm",
            "hull makes the VM from its own configuration",
        ));
    }
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| field("linux", "it is missing"))?;
    namespaces(linux)?;
    features(linux)?;
    Ok(process.clone())
}

pub(super) fn root(spec: &Spec) -> Result<&Root, BundleError> {
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| field("root", "it is missing"))?;
    if root.path().as_os_str().is_empty() {
        return Err(field("root.path", "it is empty"));
    }
    Ok(root)
}

/// Checks a process object.
///
/// # Errors
/// See [`BundleError`].
pub fn validate_process(process: &Process) -> Result<(), BundleError> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(field("process.args", "it must not be empty"));
    }
    let env = process.env().as_deref().unwrap_or_default();
    if args.iter().chain(env).any(|text| text.contains('\0')) {
        return Err(field(
            "process.args, process.env",
            "a string holds a zero byte",
        ));
    }
    if !process.cwd().is_absolute() {
        return Err(field("process.cwd", "it must be an absolute path"));
    }
    // The last one means "as it is" to the kernel, which would leave root.
    let user = process.user();
    let groups = user.additional_gids().iter().flatten().copied();
    if groups
        .chain([user.uid(), user.gid()])
        .any(|id| i32::try_from(id).is_err())
    {
        return Err(field(
            "process.user",
            "uids and gids must be in range 0-2147483647",
        ));
    }
    Ok(())
}

/// `major.minor.patch` with an optional `-suffix` or `+suffix`; all of 1.0 to the newest minor are taken.
fn version(version: &str) -> Result<(), BundleError> {
    let fail = || BundleError::Version {
        version: version.into(),
    };
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<u32> = numbers
        .split('.')
        .map(|part| part.parse().map_err(|_| fail()))
        .collect::<Result<_, _>>()?;
    let newest_minor = NEWEST_OCI_VERSION
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse().ok());
    match parts[..] {
        [1, minor, _] if Some(minor) <= newest_minor => Ok(()),
        _ => Err(fail()),
    }
}

fn hooks(spec: &Spec) -> Result<(), BundleError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    #[allow(deprecated)]
    let kinds: [(&'static str, &Option<Vec<Hook>>); 6] = [
        ("hooks.prestart", hooks.prestart()),
        ("hooks.createRuntime", hooks.create_runtime()),
        ("hooks.createContainer", hooks.create_container()),
        ("hooks.startContainer", hooks.start_container()),
        ("hooks.poststart", hooks.poststart()),
        ("hooks.poststop", hooks.poststop()),
    ];
    for (kind, hooks) in kinds {
        for hook in hooks.iter().flatten() {
            if !hook.path().is_absolute() {
                let problem = format!("{} is not an absolute path", hook.path().display());
                return Err(field(kind, problem));
            }
            if hook.timeout().is_some_and(|timeout| timeout <= 0) {
                return Err(field(kind, "a timeout must be more than zero"));
            }
        }
    }
    Ok(())
}

fn mounts(spec: &Spec) -> Result<(), BundleError> {
    for mount in spec.mounts().iter().flatten() {
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
            return Err(unsupported(
                &format!("mounts: {}", mount.destination().display()),
                "mounts with id mappings are not supported",
            ));
        }
    }
    Ok(())
}

/// A container has its own pid, ipc, mount and network namespace in a VM, for those of the host cannot be shared with
/// it. Namespaces with a path, but for the network's, are looked at when the sandbox is known.
fn namespaces(linux: &Linux) -> Result<(), BundleError> {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let has = |kind| namespaces.iter().any(|namespace| namespace.typ() == kind);
    for (kind, name, reason) in [
        (LinuxNamespaceType::Network, "network", HOST_NETWORK),
        (
            LinuxNamespaceType::Pid,
            "pid",
            "a container in a VM cannot share the host's processes: give it a pid namespace",
        ),
        (
            LinuxNamespaceType::Ipc,
            "ipc",
            "a container in a VM cannot share the host's IPC objects: give it an ipc namespace",
        ),
        (
            LinuxNamespaceType::Mount,
            "mount",
            "a container in a VM cannot share the host's mounts: give it a mount namespace",
        ),
    ] {
        if !has(kind) {
            return Err(unsupported(
                &format!("linux.namespaces without {name}"),
                reason,
            ));
        }
    }
    for (index, namespace) in namespaces.iter().enumerate() {
        let again = |other: &oci_spec::runtime::LinuxNamespace| other.typ() == namespace.typ();
        if namespaces[..index].iter().any(again) {
            return Err(field(
                "linux.namespaces",
                format!("{} is there twice", namespace.typ()),
            ));
        }
        if namespace
            .path()
            .as_deref()
            .is_some_and(|path| !path.is_absolute())
        {
            return Err(field(
                "linux.namespaces",
                format!("the path of {} is not absolute", namespace.typ()),
            ));
        }
    }
    Ok(())
}

fn features(linux: &Linux) -> Result<(), BundleError> {
    if linux.intel_rdt().is_some() {
        return Err(unsupported(
            "linux.intelRdt",
            "a guest cannot partition the host's caches",
        ));
    }
    if linux.memory_policy().is_some() {
        return Err(unsupported(
            "linux.memoryPolicy",
            "a guest has one NUMA node",
        ));
    }
    if linux
        .net_devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        return Err(unsupported(
            "linux.netDevices",
            "moving devices of the host is not supported",
        ));
    }
    if linux
        .seccomp()
        .as_ref()
        .is_some_and(|seccomp| seccomp.listener_path().is_some())
    {
        return Err(unsupported(
            "linux.seccomp.listenerPath",
            "the guest's system calls cannot be handed to a process of the host",
        ));
    }
    let resources = linux.resources().as_ref();
    if resources.is_some_and(|resources| {
        resources
            .rdma()
            .as_ref()
            .is_some_and(|rdma| !rdma.is_empty())
    }) {
        return Err(unsupported(
            "linux.resources.rdma",
            "the guest has no RDMA devices",
        ));
    }
    Ok(())
}

fn field(field: &'static str, problem: impl Into<String>) -> BundleError {
    BundleError::Field {
        field,
        problem: problem.into(),
    }
}

fn unsupported(field: &str, reason: &'static str) -> BundleError {
    BundleError::Unsupported {
        field: field.into(),
        reason,
    }
}
