//! The cgroups of containers on the host. A container's process proxies are in its cgroup, and so is the VM that was
//! made for it, with all its threads: the host accounts for a pod and bounds it where its engine looks. What a
//! container's limits mean for its own processes, the guest sees to.
//!
//! A pod's sandbox container bounds nothing here: its limits are those of a program that only waits, and the VM in its
//! cgroup serves the whole pod, which the engine's own cgroup above it bounds.
//!
//! Files of cgroups are read and written by libcgroups. Where systemd makes them, it is asked to over D-Bus.

mod dbus;
mod systemd;
mod unified;

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use libcgroups::common::{
    AnyCgroupManager, AnyManagerError, CgroupConfig, CgroupManager, CgroupSetup, ControllerOpt,
    CreateCgroupSetupError, DEFAULT_CGROUP_ROOT, create_cgroup_manager, get_cgroup_setup,
};
use nix_of_libcgroups::unistd::Pid;
use oci_spec::runtime::{LinuxBlockIo, LinuxMemory, LinuxResources};
use serde::{Deserialize, Serialize};

use self::systemd::Scope;
pub use self::systemd::SystemdError;
pub use self::unified::with_unified;
use crate::container::ContainerId;
use crate::process_identity::ProcessIdentity;

const MIB: i64 = 1 << 20;
/// What a VMM and the proxies of a pod may take beside the guest's memory, in MiB.
const VMM_OVERHEAD_MIB: u32 = 64;
/// How long what is left in a cgroup may take to end when it is removed.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked for meanwhile.
const REMOVE_INTERVAL: Duration = Duration::from_millis(10);

/// How a cgroup of the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host's cgroups, or systemd's, are not as they need be.
    #[error("cgroup {}", path.display())]
    SetUp {
        /// The cgroup.
        path: PathBuf,
        /// Why not.
        source: Box<CreateCgroupSetupError>,
    },
    /// The host refused a change.
    #[error("{operation} cgroup {}", path.display())]
    Change {
        /// What was to be done.
        operation: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// Why not.
        source: Box<AnyManagerError>,
    },
    /// Processes of others are in it.
    #[error("container's cgroup is not empty: {}", path.display())]
    Taken {
        /// The cgroup.
        path: PathBuf,
    },
    /// Nothing would run in it.
    #[error("container's cgroup unexpectedly frozen: {}", path.display())]
    Frozen {
        /// The cgroup.
        path: PathBuf,
    },
    /// systemd does not make it as it need be.
    #[error("cgroup {}", path.display())]
    Systemd {
        /// The cgroup.
        path: PathBuf,
        /// Why not.
        source: SystemdError,
    },
    /// The cgroup of this process cannot be told.
    #[error("/proc/self/cgroup")]
    Own(#[source] io::Error),
}

/// A container's cgroup on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// `linux.cgroupsPath` (config-linux.md "Cgroups Path"): below the mount point of cgroups, or, for systemd,
    /// `slice:prefix:name`.
    path: PathBuf,
    /// Whether systemd makes it.
    by_systemd: bool,
    container: ContainerId,
}

impl Cgroup {
    /// The cgroup that a configuration names, which has no processes yet and is not frozen. One that names none has it
    /// beside that of this process, by the container's id.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn of(
        path: Option<&Path>,
        by_systemd: bool,
        container: &ContainerId,
    ) -> Result<Self, CgroupError> {
        let path = match path {
            Some(path) if !path.as_os_str().is_empty() => path.to_owned(),
            _ if by_systemd => PathBuf::from(format!(":hull:{container}")),
            _ => beside_own()?.join(container.as_str()),
        };
        let cgroup = Self {
            path,
            by_systemd,
            container: container.clone(),
        };
        // One that is not there has none.
        match cgroup.manager()?.get_all_pids() {
            Ok(pids) if !pids.is_empty() => Err(CgroupError::Taken { path: cgroup.path }),
            Ok(_) if cgroup.is_frozen()? => Err(CgroupError::Frozen { path: cgroup.path }),
            Ok(_) | Err(_) => Ok(cgroup),
        }
    }

    /// Puts a process with all its threads into it, and makes it if it is not there.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn add(&self, process: ProcessIdentity) -> Result<(), CgroupError> {
        let description = format!("hull container {}", self.container);
        let added = self.by_systemd(|scope| scope.add(process.pid, &description))?;
        if added.is_some() {
            return Ok(());
        }
        let manager = self.manager()?;
        let add = || manager.add_task(Pid::from_raw(process.pid));
        // Once more: libcgroups fails where somebody else makes a cgroup above this one at the same time.
        let added = add().or_else(|error| add().map_err(|_| error));
        added.map_err(self.change("add a process to"))
    }

    /// Bounds what is in it by a container's limits of CPU time, memory and I/O. Where memory is limited, its VM may
    /// still take all of the `vm_memory_mib` that the guest has, which bounds the container itself.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn limit(&self, limits: &LinuxResources, vm_memory_mib: u32) -> Result<(), CgroupError> {
        let limits = &with_unified(limits);
        let mut files = unified::of_vm(limits);
        let mut resources = LinuxResources::default();
        let mut memory = limits
            .memory()
            .as_ref()
            .map(|own| of_vm(own, vm_memory_mib));
        if let Some(own) = limits.memory()
            && let Some(swap) = swap_alone(own)
            && matches!(get_cgroup_setup(), Ok(CgroupSetup::Unified))
        {
            files.insert("memory.swap.max".to_owned(), swap.to_owned());
            if own.limit().is_none() {
                memory = memory.map(|mut memory| *memory.set_swap(None));
            }
        }
        resources
            .set_cpu(limits.cpu().clone())
            .set_block_io(self.without_absent(limits.block_io().clone())?)
            .set_memory(memory);
        resources.set_unified(Some(files).filter(|files| !files.is_empty()));
        let limits = ControllerOpt {
            resources: &resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        self.manager()?
            .apply(&limits)
            .map_err(self.change("limit"))?;
        self.by_systemd(|scope| scope.keep(&resources))?;
        Ok(())
    }

    /// The pids of the processes in it.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let pids = self.manager()?.get_all_pids();
        let pids = pids.map_err(self.change("list the processes of"))?;
        Ok(pids.into_iter().map(Pid::as_raw).collect())
    }

    /// Removes it, and ends what is still in it.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        let manager = self.manager()?;
        let deadline = Instant::now() + REMOVE_LIMIT;
        let mut is_empty = false;
        loop {
            let removed = manager.remove();
            if removed.is_ok() || is_empty || Instant::now() >= deadline {
                removed.map_err(self.change("remove"))?;
                break;
            }
            // libcgroups gives what it kills a moment, which is too short on a machine that is busy.
            thread::sleep(REMOVE_INTERVAL);
            is_empty = manager.get_all_pids().map_or(true, |pids| pids.is_empty());
        }
        self.by_systemd(|scope| scope.stop())?;
        Ok(())
    }

    /// Whether it is frozen, where the host's cgroups are of version 2.
    fn is_frozen(&self) -> Result<bool, CgroupError> {
        let state = std::fs::read_to_string(self.file("cgroup.freeze")?);
        Ok(state.is_ok_and(|state| state.trim_end() == "1"))
    }

    /// `block_io` without weights of single disks where the host's scheduler of I/O knows none, as runc has it.
    fn without_absent(
        &self,
        mut block_io: Option<LinuxBlockIo>,
    ) -> Result<Option<LinuxBlockIo>, CgroupError> {
        let named = |block_io: &LinuxBlockIo| {
            let devices = block_io.weight_device().as_ref();
            devices.is_some_and(|devices| !devices.is_empty())
        };
        if let Some(block_io) = block_io.as_mut().filter(|block_io| named(block_io))
            && matches!(get_cgroup_setup(), Ok(CgroupSetup::Unified))
            && !self.file("io.bfq.weight")?.exists()
        {
            tracing::warn!("weights of single disks do not hold: the host does not use BFQ");
            block_io.set_weight_device(None);
        }
        Ok(block_io)
    }

    /// A file of it, where the host's cgroups are of version 2.
    fn file(&self, name: &str) -> Result<PathBuf, CgroupError> {
        let path = self.path_in_tree()?;
        let below_mount = path.strip_prefix("/").unwrap_or(&path);
        Ok(Path::new(DEFAULT_CGROUP_ROOT).join(below_mount).join(name))
    }

    /// What `act` does with its scope, if systemd makes it.
    fn by_systemd<T>(
        &self,
        act: impl FnOnce(Scope) -> Result<T, SystemdError>,
    ) -> Result<Option<T>, CgroupError> {
        let done = self
            .by_systemd
            .then(|| Scope::of(&self.path).and_then(act))
            .transpose();
        done.map_err(|source| CgroupError::Systemd {
            path: self.path.clone(),
            source,
        })
    }

    /// Its path from the root of its tree.
    fn path_in_tree(&self) -> Result<PathBuf, CgroupError> {
        let of_scope = self.by_systemd(|scope| Ok(Path::new("/").join(scope.path)))?;
        Ok(of_scope.unwrap_or_else(|| self.path.clone()))
    }

    /// What reads and writes its files.
    fn manager(&self) -> Result<AnyCgroupManager, CgroupError> {
        let config = CgroupConfig {
            cgroup_path: self.path_in_tree()?,
            systemd_cgroup: false,
            container_name: self.container.to_string(),
        };
        create_cgroup_manager(config).map_err(|source| CgroupError::SetUp {
            path: self.path.clone(),
            source: Box::new(source),
        })
    }

    fn change(&self, operation: &'static str) -> impl Fn(AnyManagerError) -> CgroupError {
        let path = self.path.clone();
        move |source| CgroupError::Change {
            operation,
            path: path.clone(),
            source: Box::new(source),
        }
    }
}

/// A cgroup that is being filled; dropping it removes it.
#[derive(Debug)]
pub struct PendingCgroup(Option<Cgroup>);

impl PendingCgroup {
    /// Fills `cgroup`.
    pub fn new(cgroup: Cgroup) -> Self {
        Self(Some(cgroup))
    }

    /// It stays.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for PendingCgroup {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|cgroup| cgroup.remove()) {
            tracing::warn!(error = %crate::error::chain(&error), "undoing a cgroup");
        }
    }
}

/// Where the cgroup of this process is.
fn beside_own() -> Result<PathBuf, CgroupError> {
    let text = std::fs::read_to_string("/proc/self/cgroup").map_err(CgroupError::Own)?;
    // Version 2 has the one line with no controllers.
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    let own = Path::new(own.unwrap_or("/"));
    Ok(own.parent().unwrap_or(own).to_owned())
}

/// What is written of swap where libcgroups gets it wrong: none at all beside a limit of memory, which it takes for no
/// limit, and no limit without one of memory, which it refuses.
fn swap_alone(own: &LinuxMemory) -> Option<&'static str> {
    match (own.limit(), own.swap()) {
        (Some(limit @ 1..), Some(swap)) if swap == limit => Some("0"),
        (None, Some(-1)) => Some("max"),
        _ => None,
    }
}

/// The memory limits of a VM with so much memory, whose container has the limits `own`.
fn of_vm(own: &LinuxMemory, memory_mib: u32) -> LinuxMemory {
    let mut memory = *own;
    // Neither none nor "no limit".
    if let Some(own_limit @ 1..) = own.limit() {
        let limit = own_limit.max(MIB * i64::from(memory_mib.saturating_add(VMM_OVERHEAD_MIB)));
        memory.set_limit(Some(limit));
        // Of memory and swap together (config-linux.md "Memory"): the swap stays as it is.
        if let Some(swap @ 1..) = own.swap() {
            memory.set_swap(Some(swap.saturating_add(limit - own_limit)));
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_may_take_what_its_guest_has() {
        let mut own = LinuxMemory::default();
        own.set_limit(Some(100 * MIB)).set_swap(Some(150 * MIB));
        let memory = of_vm(&own, 228);
        let limit = MIB * i64::from(228 + VMM_OVERHEAD_MIB);
        assert_eq!(memory.limit(), Some(limit));
        assert_eq!(memory.swap(), Some(limit + 50 * MIB));
        own.set_swap(Some(-1));
        assert_eq!(of_vm(&own, 228).swap(), Some(-1));
        own.set_limit(Some(i64::MAX)).set_swap(Some(i64::MAX));
        assert_eq!(of_vm(&own, 228), own);
        own.set_limit(Some(-1));
        assert_eq!(of_vm(&own, 228), own);
    }
}
