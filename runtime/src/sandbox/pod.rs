//! A sandbox that is made for a pod, before any container of it: where an engine has no container that only holds the
//! pod's namespaces (containerd's Sandbox API). The guest's own namespaces are the pod's then, but for that of processes,
//! for which the agent starts an init; the VMM is the process that stands for the pod on the host, and the VM lives until
//! it is stopped.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::MountBuilder;
use serde::{Deserialize, Serialize};

use super::{NewSandbox, PARTING_LIMIT, PendingSandbox, Sandbox, SandboxError, traffic};
use crate::Runtime;
use crate::bundle::Bundle;
use crate::cgroup::{Cgroup, PendingCgroup};
use crate::config::SandboxConfig;
use crate::container::{self, CgroupFiles, ContainerId, Reading, open_unused};
use crate::error::Error;
use crate::monitor::{MonitorError, guard};
use crate::process_identity::ProcessIdentity;
use crate::rootfs::SharedMemory;
use crate::store::{Store, StoreError, write_atomic};

/// The directory of a sandbox that has its pod's files.
const FILES: &str = "files";
/// What a pod's shared memory has room for, as Kubernetes' engines give it.
const MEMORY_SIZE: u64 = 64 << 20;

/// A pod that is to be made.
#[derive(Clone, Debug)]
pub struct PodOptions {
    /// Its id, the sandbox's.
    pub id: ContainerId,
    /// Where its network namespace is mounted.
    pub netns: PathBuf,
    /// Its host name; the guest has one of hull's own if it is empty.
    pub hostname: String,
    /// What is asked of its VM and network.
    pub annotations: HashMap<String, String>,
    /// Its cgroup, as `linux.cgroupsPath` has it.
    pub cgroup: Option<PathBuf>,
    /// Kernel parameters that its containers have if they name none of their own.
    pub sysctls: HashMap<String, String>,
    /// The contents of files that its containers have, by their paths there.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}

/// What is kept of a pod for its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// See [`PodOptions::sysctls`].
    pub sysctls: HashMap<String, String>,
    /// Where containers have the pod's files.
    pub files: Vec<PathBuf>,
}

/// Makes a pod's sandbox, and gives its VMM, whose end is the pod's. This process is to live as long: it has the
/// sandbox's monitor made anew should that be killed.
///
/// # Errors
/// Whatever fails: nothing is left of the sandbox then.
pub fn start(runtime: &Runtime, options: &PodOptions) -> Result<ProcessIdentity, Error> {
    let store = &runtime.store;
    let wanted = SandboxConfig::of(&runtime.config, &options.annotations, None)?;
    let netns = open_unused(store, &options.netns)?;
    let path = options.cgroup.as_deref();
    let cgroup = Cgroup::of(path, runtime.systemd_cgroup, &options.id)?;
    let pending_cgroup = PendingCgroup::new(cgroup.clone());
    let new = NewSandbox {
        id: &options.id,
        netns: &netns,
        netns_path: Some(options.netns.clone()),
        holder: None,
        pod: Some(Pod {
            sysctls: options.sysctls.clone(),
            files: options.files.keys().cloned().collect(),
        }),
    };
    let mut pending = PendingSandbox::boot(store, &runtime.config, new, &wanted)?;
    let mut make = || -> Result<ProcessIdentity, Error> {
        let sandbox = pending.sandbox()?;
        sandbox.enter(&cgroup)?;
        sandbox.write_files(&options.files)?;
        pending.wait_running(&runtime.config)?;
        let hostname = Some(&*options.hostname).filter(|name| !name.is_empty());
        let mut agent = pending.agent(&runtime.config, hostname.unwrap_or("hull"))?;
        let sandbox = pending.sandbox()?;
        sandbox.reconcile_network(&netns, &mut agent)?;
        guard(store.clone(), options.id.clone())
            .map_err(|error| MonitorError::Wait("start a thread", error))?;
        Ok(sandbox.vmm()?)
    };
    let vmm = make().map_err(|error| pending.explain(error))?;
    pending.keep();
    pending_cgroup.keep();
    Ok(vmm)
}

/// Ends the VM of a pod, if it has not ended by itself, and gives the network namespace back; what is known of the pod
/// stays. Nothing happens if there is no such pod.
///
/// # Errors
/// Something cannot be undone.
pub fn stop(store: &Store, id: &ContainerId) -> Result<(), Error> {
    match Sandbox::open(store, id) {
        Ok(mut sandbox) => sandbox.end(),
        Err(StoreError::NoSandbox { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends a pod, and leaves nothing of it and its containers; nothing happens to a sandbox that was not made for a pod.
///
/// # Errors
/// Something cannot be undone.
pub fn remove(runtime: &Runtime, id: &ContainerId) -> Result<(), Error> {
    let store = &runtime.store;
    match store.sandbox(id) {
        Ok(record) if record.pod.is_none() => return Ok(()),
        Ok(_) => {}
        // It was being made.
        Err(StoreError::NoSandbox { .. }) => return Ok(store.remove_sandbox(id)?),
        Err(error) => return Err(error.into()),
    }
    stop(store, id)?;
    for record in store.containers()? {
        if record.sandbox_id == *id {
            container::delete(runtime, &record.id, true)?;
        }
    }
    match Sandbox::open(store, id) {
        Ok(sandbox) => sandbox.end_and_remove(),
        Err(StoreError::NoSandbox { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What a pod takes of the host, and what has passed through its NICs.
///
/// # Errors
/// Its VM does not run.
pub fn read(store: &Store, id: &ContainerId) -> Result<Reading, Error> {
    let vmm = store.sandbox(id)?.vmm;
    let files = vmm.and_then(|vmm| CgroupFiles::of_process(vmm.pid));
    Ok(Reading {
        files: files.ok_or_else(|| SandboxError::NotRunning { id: id.clone() })?,
        nics: traffic(store, id, PARTING_LIMIT)?,
    })
}

impl Sandbox {
    /// The pod that it was made for, if it was.
    pub fn pod(&self) -> Option<&Pod> {
        self.record.pod.as_ref()
    }

    /// What `/proc/<pid>/ns/<name>` is in the guest, if `pid` stands for the pod.
    pub fn pod_namespace(&self, pid: i32, name: &str) -> Option<PathBuf> {
        let is_pods = self.pod().is_some() && self.record.vmm.is_some_and(|vmm| vmm.pid == pid);
        let is_shared = matches!(name, "ipc" | "pid" | "uts");
        (is_pods && is_shared).then(|| Path::new("/proc/1/ns").join(name))
    }

    /// Gives a container what it has of its pod, where it has none of its own, and the shared memory of the pod.
    pub fn lend(&self, bundle: &mut Bundle) -> Option<SharedMemory> {
        let pod = self.pod()?;
        let mut mounts = bundle.spec.mounts().clone().unwrap_or_default();
        for destination in &pod.files {
            if mounts
                .iter()
                .any(|mount| mount.destination() == destination)
            {
                continue;
            }
            let mount = MountBuilder::default()
                .destination(destination)
                .typ("bind")
                .source(self.file(destination))
                .options(["rbind".to_owned(), "rprivate".to_owned(), "rw".to_owned()]);
            mounts.extend(mount.build());
        }
        bundle.spec.set_mounts(Some(mounts));
        if let Some(linux) = bundle.spec.linux_mut() {
            let mut sysctls = pod.sysctls.clone();
            sysctls.extend(linux.sysctl().clone().unwrap_or_default());
            linux.set_sysctl(Some(sysctls));
        }
        Some(SharedMemory {
            name: "pod".into(),
            size: MEMORY_SIZE,
        })
    }

    /// Where the pod's file is that containers have at `destination`.
    fn file(&self, destination: &Path) -> PathBuf {
        let name = destination.file_name().unwrap_or_default();
        self.directory().join(FILES).join(name)
    }

    fn write_files(&self, files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<(), StoreError> {
        let directory = self.directory().join(FILES);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(StoreError::io("make", &directory))?;
        for (destination, content) in files {
            let path = self.file(destination);
            write_atomic(&path, content, 0o644).map_err(StoreError::io("write", &path))?;
        }
        Ok(())
    }
}
