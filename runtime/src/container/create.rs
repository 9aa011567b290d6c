//! `create`: everything up to the point at which the container's program is about to run.
//!
//! What has been done when a step fails is undone by the drop of what it made, in reverse: the sandbox, then the
//! proxy, the cgroup, then `poststop` hooks, then the id. The order of the steps:
//!
//! 1. The bundle is read and checked, and the id reserved.
//! 2. The network namespace is opened or made, and the process proxy born in it: hooks and engines want its pid.
//! 3. hull-vmm and the sandbox's monitor are started in the namespace; the guest boots meanwhile.
//! 4. `prestart` and `createRuntime` hooks run; they wire the namespace. Then `createContainer` hooks.
//! 5. The VM gets the shared directory, and its agent makes the guest ready; then the VM gets the network.
//! 6. The agent makes the container, the proxy connects to its process.
//! 7. The record says `created`, and last of all the pid file is written.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::SystemTime;

use nix::unistd::{Uid, User, gethostname};

use super::placement::{PinnedNamespace, Placement, is_pod_sandbox, resolve_namespace};
use super::state::{State, Status};
use super::streams::fit;
use super::update::limits_of_others;
use super::{Console, ContainerError, ContainerId, write_pid_file};
use crate::Runtime;
use crate::bundle::Bundle;
use crate::cgroup::{Cgroup, PendingCgroup};
use crate::config::{SandboxConfig, VmSize, annotated_model};
use crate::error::{Error, chain};
use crate::hooks::{self, HookKind};
use crate::network::Netns;
use crate::process_identity::ProcessIdentity;
use crate::process_proxy::foreground::HostTerminal;
use crate::process_proxy::{Attach, InheritedFile, NewProxy, Setup, StandardStreams};
use crate::rootfs::{self, GuestContainer};
use crate::sandbox::disk::RootDisk;
use crate::sandbox::{NewSandbox, PendingSandbox};
use crate::store::{ContainerRecord, Lifecycle};
use crate::timing::Stopwatch;

/// What `create` is told.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The container's id.
    pub id: ContainerId,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The disk that is its root file system; its bundle's directory if none.
    pub root_disk: Option<RootDisk>,
    /// Who has its terminal.
    pub console: Console,
    /// Its standard streams; the caller's own if none.
    pub stdio: Option<StandardStreams>,
    /// Open files that its process has beside those.
    pub files: Vec<InheritedFile>,
    /// How many of them, the first ones, are sockets for a service to listen on: sd_listen_fds(3).
    pub listening: usize,
    /// Where the proxy's pid is written.
    pub pid_file: Option<PathBuf>,
    /// Whether the caller is a service, to whose manager the container is to report ([`crate::notify`]).
    pub notifies: bool,
}

/// A container that was created.
#[derive(Debug)]
pub struct Created {
    /// Its process proxy, a child of this process.
    pub proxy: Child,
    /// The terminal of this process, if the container is to have that.
    pub terminal: Option<HostTerminal>,
}

/// Makes a container.
///
/// # Errors
/// Whatever fails: nothing is left of the container then.
pub fn create(runtime: &Runtime, options: &CreateOptions) -> Result<Created, Error> {
    let mut stopwatch = Stopwatch::start();
    let mut bundle = Bundle::load(&options.bundle)?;
    tell_of_sockets(&mut bundle, options.listening);
    let streams = options.console.streams(&bundle.process)?;
    let terminal = HostTerminal::of(&streams)?;
    fit(&mut bundle.process, terminal.as_ref());
    let root_disk = options.root_disk.as_ref();
    if root_disk.is_none() {
        rootfs::program::check(&bundle)?;
    }
    let annotations = bundle.annotations();
    let resources = bundle
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().clone());
    let wanted = SandboxConfig::of(&runtime.config, &annotations, resources.as_ref())?;
    let store = &runtime.store;
    let reservation = store.reserve(&options.id)?;
    let placement = Placement::find(store, &bundle.spec, &annotations)?;
    let pod_memory = placement
        .sandbox
        .as_ref()
        .and_then(|sandbox| sandbox.lend(&mut bundle));
    let resolve =
        |kind, path: &Path| resolve_namespace(store, placement.sandbox.as_ref(), kind, path);
    let mut guest = rootfs::translate(
        &options.id,
        &bundle,
        root_disk.is_some(),
        options.notifies,
        pod_memory.as_ref(),
        &resolve,
    )?;
    guest.files = options.files.iter().map(InheritedFile::kind).collect();
    let cgroup = Cgroup::of(bundle.cgroups_path(), runtime.systemd_cgroup, &options.id)?;
    let mut record = new_record(options, &bundle, &placement, &cgroup, wanted.limits)?;
    store.save_container(&record)?;
    stopwatch.phase("validate");

    let mut poststop = Poststop::new(&bundle);
    let hooks = bundle.hooks();
    let mut kinds = HookKind::OF_CREATE.into_iter();
    let has_hooks = kinds.any(|kind| !kind.of(&hooks).is_empty());
    let pending_cgroup = PendingCgroup::new(cgroup.clone());
    let proxy = NewProxy::spawn(
        Some(&placement.netns),
        bundle.process.args().as_deref().unwrap_or_default(),
        &Setup {
            streams: streams.clone(),
            own_session: options.console.is_detached(),
            log: runtime.log.clone(),
            origin: stopwatch.origin(),
            own_mounts: has_hooks,
            files: guest.files.clone(),
        },
        options.stdio.as_ref(),
        &options.files,
    )?;
    cgroup.add(proxy.identity())?;
    record.proxy = Some(proxy.identity());
    store.save_container(&record)?;
    stopwatch.phase("proxy");

    let Placement {
        netns,
        netns_path,
        sandbox,
    } = placement;
    let mut bounds = None;
    let mut sandbox = match sandbox {
        Some(mut sandbox) => {
            sandbox.check_model(annotated_model(&annotations)?)?;
            sandbox.ensure_monitor()?;
            let all = limits_of_others(&sandbox, &options.id)?.and(record.limits);
            sandbox.grow(all.with_overhead(&runtime.config))?;
            PendingSandbox::join(sandbox, &options.id)
        }
        None => {
            let size = wanted.size;
            let new = NewSandbox {
                id: &options.id,
                netns: &netns,
                netns_path,
                holder: Some(proxy.identity()),
                pod: None,
            };
            let mut sandbox = PendingSandbox::boot(store, &runtime.config, new, &wanted)?;
            sandbox.sandbox()?.enter(&cgroup)?;
            let limits = resources.filter(|_| !is_pod_sandbox(&annotations));
            bounds = limits.map(|limits| (limits, size.memory_mib));
            sandbox
        }
    };
    stopwatch.phase("vmm_spawn");

    let state = State::with_status(&record, Status::Creating).to_json();
    poststop.arm(&record);
    let identity = proxy.identity();
    let at_proxy = (&identity, &netns);
    for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
        run_hooks(kind, &bundle, &state, at_proxy)?;
    }
    stopwatch.phase("hooks");

    let made = make_in_guest(
        runtime,
        &bundle,
        &guest,
        at_proxy,
        &state,
        options,
        &mut sandbox,
        &mut stopwatch,
    );
    record.guest_pid = Some(made.map_err(|error| sandbox.explain(error))?);
    // With a small quota its VM would take minutes to boot.
    if let Some((limits, memory_mib)) = bounds {
        cgroup.limit(&limits, memory_mib)?;
    }
    let attached = proxy.attach(&Attach {
        root: store.root().into(),
        sandbox_id: record.sandbox_id.clone(),
        container_id: options.id.clone(),
        exec_id: String::new(),
        // Of a disk the host sees no file.
        files: root_disk.map_or(guest.shares, |_| Vec::new()),
        shows_processes: is_of_podman(&annotations),
        notify: guest.notify.and_then(|socket| socket.host),
    });
    attached.map_err(|error| sandbox.explain(error.into()))?;
    stopwatch.phase("attach");

    record.lifecycle = Lifecycle::Created;
    record.creator = None;
    record.timings = stopwatch.into_phases();
    store.save_container(&record)?;
    if let Some(path) = &options.pid_file {
        write_pid_file(path, proxy.identity().pid)?;
    }
    let proxy = proxy.commit().inspect_err(|_| {
        if let Some(path) = &options.pid_file {
            // The file names a process that has ended.
            let _ = std::fs::remove_file(path);
        }
    })?;
    sandbox.keep();
    pending_cgroup.keep();
    poststop.disarm();
    reservation.keep();
    Ok(Created { proxy, terminal })
}

/// From a VM that may still be booting to a container in its guest; gives the pid of its process there.
#[allow(clippy::too_many_arguments)]
fn make_in_guest(
    runtime: &Runtime,
    bundle: &Bundle,
    guest: &GuestContainer,
    (proxy, netns): (&ProcessIdentity, &Netns),
    state: &str,
    options: &CreateOptions,
    sandbox: &mut PendingSandbox,
    stopwatch: &mut Stopwatch,
) -> Result<u32, Error> {
    sandbox.wait_running(&runtime.config)?;
    stopwatch.phase("vm_running");
    run_hooks(HookKind::CreateContainer, bundle, state, (proxy, netns))?;
    sandbox.sandbox()?.share(proxy, &guest.shares)?;
    let attach = |disk| sandbox.sandbox()?.attach_disk(&options.id, disk);
    let disk = options.root_disk.as_ref().map(attach).transpose()?;
    stopwatch.phase("share");
    let mut agent = sandbox.agent(&runtime.config, &hostname(bundle)?)?;
    if let (Some(disk), Some(address)) = (&options.root_disk, disk) {
        disk.mount(&mut agent, &options.id, &address)?;
    }
    stopwatch.phase("agent");
    sandbox.sandbox()?.reconcile_network(netns, &mut agent)?;
    stopwatch.phase("network");
    let pid = agent.create_container(&options.id, guest)?;
    stopwatch.phase("container");
    Ok(pid)
}

/// Tells the container's program of the sockets that it is given, as systemd would.
fn tell_of_sockets(bundle: &mut Bundle, count: usize) {
    if count > 0 {
        let mut variables = bundle.process.env().clone().unwrap_or_default();
        variables.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".into()]);
        bundle.process.set_env(Some(variables));
    }
}

/// The guest's host name: the container's, or that of the host.
fn hostname(bundle: &Bundle) -> Result<String, ContainerError> {
    if let Some(hostname) = bundle.spec.hostname() {
        return Ok(hostname.clone());
    }
    let hostname = gethostname().map_err(|errno| ContainerError::Hostname(errno.into()))?;
    Ok(hostname.to_string_lossy().into_owned())
}

/// Whether `podman top` will look for the container's processes.
fn is_of_podman(annotations: &HashMap<String, String>) -> bool {
    let engine = annotations.get("io.container.manager");
    engine.is_some_and(|engine| engine == "libpod")
}

fn run_hooks(
    kind: HookKind,
    bundle: &Bundle,
    state: &str,
    proxy: (&ProcessIdentity, &Netns),
) -> Result<(), Error> {
    let hooks = bundle.hooks();
    // As with runc.
    let directory = match kind {
        HookKind::CreateContainer => &bundle.rootfs,
        _ => &bundle.directory,
    };
    hooks::run(kind, kind.of(&hooks), state, directory, Some(proxy))?;
    Ok(())
}

fn new_record(
    options: &CreateOptions,
    bundle: &Bundle,
    placement: &Placement,
    cgroup: &Cgroup,
    limits: VmSize,
) -> Result<ContainerRecord, Error> {
    let hooks = bundle.hooks();
    let uid = Uid::effective();
    let owner = User::from_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name);
    let sandbox_id = placement
        .sandbox
        .as_ref()
        .map_or(&options.id, crate::sandbox::Sandbox::id);
    Ok(ContainerRecord {
        id: options.id.clone(),
        sandbox_id: sandbox_id.clone(),
        oci_version: bundle.spec.version().clone(),
        bundle: bundle.directory.clone(),
        rootfs: bundle.rootfs.clone(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        owner,
        annotations: bundle.annotations(),
        resolver_file: resolver_file(bundle),
        notifies: options.notifies,
        pinned_namespaces: PinnedNamespace::all(&bundle.spec),
        lifecycle: Lifecycle::Creating,
        creator: Some(ProcessIdentity::own().map_err(ContainerError::OwnProcess)?),
        proxy: None,
        cgroup: Some(cgroup.clone()),
        limits,
        guest_pid: None,
        poststart: HookKind::Poststart.of(&hooks).to_vec(),
        poststop: HookKind::Poststop.of(&hooks).to_vec(),
        timings: Vec::new(),
    })
}

/// What is mounted on the container's resolver file.
fn resolver_file(bundle: &Bundle) -> Option<PathBuf> {
    let mounts = bundle.spec.mounts().iter().flatten();
    let mut resolvers = mounts.filter(|mount| mount.destination() == Path::new("/etc/resolv.conf"));
    resolvers.next_back()?.source().clone()
}

/// `poststop` hooks, which run once the others have, however far those came: they undo what those did.
struct Poststop {
    bundle: PathBuf,
    /// The record, once they are due.
    record: Option<ContainerRecord>,
}

impl Poststop {
    fn new(bundle: &Bundle) -> Self {
        Self {
            bundle: bundle.directory.clone(),
            record: None,
        }
    }

    fn arm(&mut self, record: &ContainerRecord) {
        self.record = Some(record.clone());
    }

    fn disarm(mut self) {
        self.record = None;
    }
}

impl Drop for Poststop {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            run_poststop(&record, &self.bundle);
        }
    }
}

/// A failing hook is logged; the next run all the same (runtime.md "Lifecycle", step 13).
pub(super) fn run_poststop(record: &ContainerRecord, bundle: &Path) {
    let state = State::with_status(record, Status::Stopped).to_json();
    // A bundle may be gone before its container.
    let directory = if bundle.is_dir() {
        bundle
    } else {
        Path::new("/")
    };
    for hook in &record.poststop {
        let hook = std::slice::from_ref(hook);
        if let Err(error) = hooks::run(HookKind::Poststop, hook, &state, directory, None) {
            tracing::warn!(container = %record.id, error = %chain(&error), "poststop hook");
        }
    }
}
