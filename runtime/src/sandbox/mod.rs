//! A sandbox: one VM, what its guest sees of the host's files (share.rs), its network (network.rs), and its end.
//!
//! Whoever changes a sandbox, or the set of its containers, holds its lock, which a [`Sandbox`] does from
//! [`Sandbox::open`] to its drop. The exception is a process that only talks to the agent.
//!
//! The VM ends with the last process of its containers (their proxies see to that) or with the last container's
//! `delete`, whichever comes first; and the network namespace is given back in the same step, for the proxy is the
//! last process that surely is in it. One that was made for a pod (pod.rs) lives until it is stopped.

pub mod disk;
mod monitor;
mod network;
mod pending;
pub mod pod;
mod resize;
pub mod share;
mod traffic;

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use hull_vmm_protocol::config::{FsConfig, JAIL_SHARE, VmConfig, VsockConfig};

use crate::agent_client::{AgentClient, AgentError};
use crate::cgroup::Cgroup;
use crate::config::{Config, SandboxConfig, VmSize};
use crate::container::{ContainerId, in_use};
use crate::network::{Model, Netns, NetworkState};
use crate::process_identity::ProcessIdentity;
use crate::rootfs::GUEST_SHARE;
use crate::store::{Lock, SandboxRecord, Store, StoreError};
use crate::vmm_process::{self, Control, StartingVmm, VmmError};
pub use monitor::ensure_monitor;
pub use network::Followed;
pub use pending::{NewSandbox, PendingSandbox};
use share::{Share, ShareError};
pub use traffic::traffic;

/// The mount tag of the shared directory.
const SHARE_TAG: &str = "hull";
/// The guest's context id; each VMM has its own Unix socket, so all guests have the same.
const GUEST_CID: u32 = 3;
/// How long a guest may take to write everything out and end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
/// How long the processes of a VM whose guest is gone may take to end.
pub const PARTING_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of the host's randomness that a guest gets.
const SEED: usize = 64;

/// How a sandbox fails.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The agent did not come up.
    #[error("the agent in the VM did not come up")]
    NoAgent {
        /// How the VM ended, if it did, and the last lines of its console: see [`crate::Error::details`].
        description: String,
        /// Why.
        source: AgentError,
    },
    /// An interface of the network namespace cannot be given to the VM.
    #[error("{0}")]
    Uplink(String),
    /// A container that joins the sandbox asks for another model than its network has.
    #[error("sandbox {id} has the network model {has}, so a container in it cannot have {asked}")]
    OtherModel {
        /// The sandbox.
        id: ContainerId,
        /// The sandbox's model.
        has: Model,
        /// The container's.
        asked: Model,
    },
    /// More is asked for than the VM can grow to.
    #[error(
        "sandbox {id} has a VM that grows to {most} at the most, too small for the limits, which take {wanted}"
    )]
    TooSmall {
        /// The sandbox.
        id: ContainerId,
        /// What the VM can grow to.
        most: VmSize,
        /// What it would need.
        wanted: VmSize,
    },
    /// The guest was offered more memory and did not take it in time.
    #[error("sandbox {id} has a VM of {has_mib} MiB that does not grow to {wanted_mib} MiB")]
    NotGrown {
        /// The sandbox.
        id: ContainerId,
        /// What the guest has, in MiB.
        has_mib: u32,
        /// What it should have.
        wanted_mib: u32,
    },
    /// The VM of the sandbox has ended.
    #[error("the VM of sandbox {id} is not running")]
    NotRunning {
        /// The sandbox.
        id: ContainerId,
    },
    /// The VM has ended under what was to be done with it.
    #[error("the VM of sandbox {id} has ended")]
    Ended {
        /// The sandbox.
        id: ContainerId,
        /// How it ended: see [`crate::Error::details`].
        description: String,
        /// What failed by that.
        source: Box<crate::Error>,
    },
    /// vhost-net is there, and cannot be had.
    #[error("/dev/vhost-net")]
    Vhost(#[source] io::Error),
    /// A disk cannot be had.
    #[error("root file system on the disk {}", path.display())]
    Disk {
        /// The block device or the image.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The host's randomness cannot be read.
    #[error("/dev/urandom")]
    Entropy(#[source] io::Error),
}

/// What is to be known of a sandbox after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// Its record, also while it ends.
    Record,
    /// Nothing: its directory is about to go.
    Nothing,
}

/// A sandbox whose lock this process holds.
#[derive(Debug)]
pub struct Sandbox {
    store: Store,
    record: SandboxRecord,
    _lock: Lock,
}

impl Sandbox {
    /// Takes the lock of a sandbox and reads its record.
    ///
    /// # Errors
    /// It is gone, or damaged.
    pub fn open(store: &Store, id: &ContainerId) -> Result<Self, StoreError> {
        let lock = store.lock_sandbox(id)?;
        Ok(Self {
            store: store.clone(),
            record: store.sandbox(id)?,
            _lock: lock,
        })
    }

    /// Makes a sandbox, without a VM yet.
    fn create(
        store: &Store,
        new: NewSandbox<'_>,
        wanted: &SandboxConfig,
    ) -> Result<Self, StoreError> {
        let lock = store.create_sandbox(new.id)?;
        let record = SandboxRecord {
            id: new.id.clone(),
            pod: new.pod,
            netns_path: new.netns_path,
            netns_holder: new.holder,
            network_options: wanted.network.clone(),
            network: NetworkState::default(),
            nics: wanted.nics.clone(),
            size: wanted.size,
            most: wanted.most,
            cgroup: None,
            vmm: None,
            monitor: None,
            guest_network: None,
            disks: Vec::new(),
        };
        let sandbox = Self {
            store: store.clone(),
            record,
            _lock: lock,
        };
        if let Err(error) = sandbox.save() {
            if let Err(error) = store.remove_sandbox(new.id) {
                tracing::warn!(error = %crate::error::chain(&error), "a directory is left behind");
            }
            return Err(error);
        }
        Ok(sandbox)
    }

    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.record.id
    }

    /// Whether its VM runs.
    pub fn is_running(&self) -> bool {
        self.record.vmm.is_some_and(|vmm| vmm.is_alive())
    }

    /// How many vCPUs its guest shall have.
    pub fn vcpus(&self) -> u8 {
        self.record.size.vcpus
    }

    /// How much memory its guest has, in MiB.
    pub fn memory_mib(&self) -> u32 {
        self.record.size.memory_mib
    }

    /// The Unix socket by which its guest is reached.
    pub fn vsock_socket(&self) -> PathBuf {
        vmm_process::vsock_socket(&self.directory())
    }

    /// Connects to its agent, which is up.
    ///
    /// # Errors
    /// The VM is gone, or its agent is.
    pub fn agent(&self) -> Result<AgentClient, AgentError> {
        agent_of(&self.store, &self.record.id)
    }

    /// Starts its VM, which boots while this process goes on.
    fn start_vmm(&mut self, config: &Config, netns: &Netns) -> Result<StartingVmm, crate::Error> {
        let directory = self.directory();
        let SandboxRecord { size, most, .. } = self.record;
        let vm = VmConfig {
            // The rest come online once the container runs: each costs time at the boot.
            vcpus: 1,
            max_vcpus: most.vcpus,
            memory_mib: size.memory_mib,
            max_memory_mib: most.memory_mib,
            kernel: config.kernel.clone(),
            initramfs: config.initramfs.clone(),
            cmdline: config.kernel_parameters.clone(),
            early_serial: config.early_serial,
            vsock: VsockConfig {
                cid: GUEST_CID,
                socket: vmm_process::vsock_socket(&directory),
            },
            console_log: directory.join("console.log"),
            control_socket: vmm_process::control_socket(&directory),
            outcome: directory.join("outcome.json"),
            jail: true,
        };
        let vmm = StartingVmm::spawn(&config.vmm, netns, &directory, &vm)?;
        self.record.vmm = Some(vmm.identity());
        self.save()?;
        Ok(vmm)
    }

    /// Waits for the agent of the VM that was just started, and makes the guest ready for containers.
    fn set_up_guest(
        &self,
        boot_limit: Duration,
        hostname: &str,
    ) -> Result<AgentClient, crate::Error> {
        let vmm = self.vmm()?;
        let mut agent =
            AgentClient::await_boot(&self.vsock_socket(), boot_limit, || vmm.is_alive()).map_err(
                |source| SandboxError::NoAgent {
                    description: vmm_process::describe_end(&self.directory()),
                    source,
                },
            )?;
        let health = agent.health()?;
        tracing::debug!(
            version = health.version,
            kernel = health.kernel_release,
            uptime = health.uptime,
            "agent"
        );
        agent.seed(random_bytes()?)?;
        agent.set_hostname(hostname)?;
        agent.mount_storage("virtiofs", SHARE_TAG, GUEST_SHARE.as_ref(), &[])?;
        Ok(agent)
    }

    /// What a failure comes from: the end of the VM, if that has ended.
    pub fn explain(&self, error: crate::Error) -> crate::Error {
        let directory = self.directory();
        let vmm = self.record.vmm;
        if error.details().is_some()
            || !vmm.is_some_and(|vmm| vmm_process::has_ended(&vmm, &directory))
        {
            return error;
        }
        SandboxError::Ended {
            id: self.record.id.clone(),
            description: vmm_process::describe_end(&directory),
            source: Box::new(error),
        }
        .into()
    }

    /// Puts its VM and its monitor into `cgroup`, which is the sandbox's to remove then.
    ///
    /// # Errors
    /// The cgroup cannot be had, or the record not be written.
    pub fn enter(&mut self, cgroup: &Cgroup) -> Result<(), crate::Error> {
        for process in [Some(self.vmm()?), self.record.monitor] {
            process.map_or(Ok(()), |process| cgroup.add(process))?;
        }
        self.record.cgroup = Some(cgroup.clone());
        Ok(self.save()?)
    }

    /// Whether its VM is in `cgroup`.
    pub fn is_in(&self, cgroup: &Cgroup) -> bool {
        self.record.cgroup.as_ref() == Some(cgroup)
    }

    /// Gives the VM the shared directory.
    fn attach_share_device(&self) -> Result<(), VmmError> {
        Control::connect(&self.directory())?.attach_fs(FsConfig {
            id: "shared".into(),
            tag: SHARE_TAG.into(),
            directory: JAIL_SHARE.into(),
        })
    }

    /// Puts `shares` into the shared directory, as `viewer` sees them.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn share(&self, viewer: &ProcessIdentity, shares: &[Share]) -> Result<(), crate::Error> {
        Ok(share::attach(&self.vmm()?, viewer, shares)?)
    }

    /// Takes all of a container out of the guest: the guest's container, then its disk and its files. Its processes have ended.
    /// Nothing happens if the VM has ended.
    ///
    /// # Errors
    /// The guest or the host refused.
    pub fn remove_container(&mut self, id: &ContainerId) -> Result<(), crate::Error> {
        let Some(vmm) = self.record.vmm.filter(ProcessIdentity::is_alive) else {
            return Ok(());
        };
        let removed = self
            .take_out_of_guest(id)
            .and_then(|()| share::detach(&vmm, id).map_err(ShareError::into));
        if removed.is_err() && vmm.wait_end(PARTING_LIMIT) {
            // It was about to end, which takes some time after its guest is gone.
            return Ok(());
        }
        removed
    }

    fn take_out_of_guest(&mut self, id: &ContainerId) -> Result<(), crate::Error> {
        let mut agent = self.agent()?;
        let removed = agent.remove_container(id);
        // Also when the guest has never heard of the container.
        self.detach_disk(id, &mut agent)?;
        Ok(removed?)
    }

    /// Ends the VM, if it runs: in order if the guest lets it. Gives the network namespace back.
    ///
    /// # Errors
    /// Something cannot be undone; the record then still names it.
    pub fn end(&mut self) -> Result<(), crate::Error> {
        self.end_keeping(Keep::Record)?;
        Ok(self.save()?)
    }

    /// Ends the sandbox, and removes all that is known of it. A disk that is full does not keep it from that.
    ///
    /// # Errors
    /// Something cannot be undone, or a directory cannot be removed.
    pub fn end_and_remove(mut self) -> Result<(), crate::Error> {
        self.end_keeping(Keep::Nothing)?;
        if let Some(cgroup) = &self.record.cgroup {
            cgroup.remove()?;
        }
        Ok(self.store.remove_sandbox(&self.record.id)?)
    }

    fn end_keeping(&mut self, keep: Keep) -> Result<(), crate::Error> {
        // The namespace may have no other process in it than the VMM.
        let netns = self.open_netns();
        // What follows is no change of the network that the guest should hear of.
        self.end_monitor()?;
        let directory = self.directory();
        let noted = self.record.vmm;
        if let Some(vmm) = noted.or_else(|| vmm_process::listening(&directory)) {
            if vmm.is_alive() {
                self.shut_guest_down(&vmm);
                vmm_process::stop(&vmm, &directory)?;
            }
            self.record.vmm = None;
        }
        self.undo_network(netns, keep)
    }

    /// Ends the sandbox if no container but `leaving` is in use, and it was made for them.
    ///
    /// # Errors
    /// See [`Sandbox::end`].
    pub fn end_if_unused(&mut self, leaving: &ContainerId) -> Result<(), crate::Error> {
        if self.record.pod.is_some() {
            return Ok(());
        }
        let others = self.containers_but(leaving)?;
        if others.iter().any(in_use) {
            return Ok(());
        }
        self.end()
    }

    /// The containers of this sandbox, but for one.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn containers_but(
        &self,
        id: &ContainerId,
    ) -> Result<Vec<crate::store::ContainerRecord>, StoreError> {
        let mut containers = self.store.containers()?;
        containers.retain(|record| record.sandbox_id == self.record.id && record.id != *id);
        Ok(containers)
    }

    /// A guest that does not answer is ended without being asked.
    fn shut_guest_down(&self, vmm: &ProcessIdentity) {
        let asked = self
            .agent()
            .and_then(|mut agent| agent.shutdown(SHUTDOWN_LIMIT));
        match asked {
            Ok(()) => {
                if !vmm.wait_end(SHUTDOWN_LIMIT) {
                    tracing::warn!(sandbox = %self.record.id, "the guest did not end in time");
                }
            }
            // The machine may end before the answer is out.
            Err(AgentError::Lost { .. }) if vmm.wait_end(SHUTDOWN_LIMIT) => {}
            Err(error @ AgentError::Connect(_)) => tracing::debug!(
                sandbox = %self.record.id,
                error = %crate::error::chain(&error),
                "the guest has no agent to shut it down"
            ),
            Err(error) => tracing::warn!(
                sandbox = %self.record.id,
                error = %crate::error::chain(&error),
                "the guest could not be shut down in order"
            ),
        }
    }

    fn vmm(&self) -> Result<ProcessIdentity, SandboxError> {
        self.record.vmm.ok_or_else(|| SandboxError::NotRunning {
            id: self.record.id.clone(),
        })
    }

    fn directory(&self) -> PathBuf {
        self.store.sandbox_directory(&self.record.id)
    }

    fn save(&self) -> Result<(), StoreError> {
        self.store.save_sandbox(&self.record)
    }
}

fn random_bytes() -> Result<Vec<u8>, SandboxError> {
    let mut bytes = vec![0; SEED];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(SandboxError::Entropy)?;
    Ok(bytes)
}

/// A connection to the agent of the sandbox `id`, for calls that need not wait for the sandbox's lock.
///
/// # Errors
/// It does not answer: its VM may be gone.
pub fn agent_of(store: &Store, id: &ContainerId) -> Result<AgentClient, AgentError> {
    AgentClient::connect(&vmm_process::vsock_socket(&store.sandbox_directory(id)))
}
