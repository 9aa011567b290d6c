//! What is known of a sandbox at one moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hull_agent_protocol::agent::HealthResponse;
use hull_agent_protocol::latency::COUNTS;
use hull_vmm_protocol::control::{DeviceCounters, NicTraffic};

use crate::agent_client::{AgentClient, AgentError};
use crate::container::{CgroupFiles, ContainerId};
use crate::error::chain;
use crate::process_identity::ProcessIdentity;
use crate::sandbox::traffic;
use crate::store::{ContainerRecord, SandboxRecord, Store};
use crate::timing::Phase;
use crate::vmm_process::{Control, VmmError, vsock_socket};

/// How long the VMM, and then the guest, may take to answer.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// A sandbox. What could not be had is missing.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) sandbox: ContainerId,
    /// Whether its VM runs; nobody is asked else.
    pub(super) running: bool,
    pub(super) vcpus: u8,
    pub(super) vmm: Option<Vmm>,
    /// By the names of their interfaces.
    pub(super) nics: Option<Vec<(String, NicTraffic)>>,
    pub(super) guest: Option<Guest>,
    pub(super) containers: Vec<Container>,
}

/// What the VMM, and the host of it, say.
#[derive(Debug)]
pub(super) struct Vmm {
    /// The guest's memory in bytes.
    pub(super) memory: u64,
    /// What of its memory the process has from the host, in bytes: the guest's too.
    pub(super) resident: u64,
    /// The vCPUs' exits to it.
    pub(super) exits: u64,
    /// What KVM counts of the vCPUs, by its names.
    pub(super) vcpu_counters: BTreeMap<String, u64>,
    /// What its devices have moved that are no NICs.
    pub(super) devices: Vec<DeviceCounters>,
}

/// What the agent says.
#[derive(Debug)]
pub(super) struct Guest {
    /// How long it took to say that it is well.
    pub(super) latency: Duration,
    /// How many of its calls have taken how long ([`hull_agent_protocol::latency`]), and all of them together.
    pub(super) calls: ([u64; COUNTS], Duration),
    /// In bytes.
    pub(super) memory_total: u64,
    pub(super) memory_available: u64,
}

/// A container of the sandbox.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: ContainerId,
    /// How it was created.
    pub(super) phases: Vec<Phase>,
    /// What its cgroup in the guest says.
    pub(super) used: Option<Used>,
}

#[derive(Debug)]
pub(super) struct Used {
    pub(super) cpu: Duration,
    /// In bytes.
    pub(super) memory: u64,
}

impl Reading {
    /// Of a sandbox with its containers, which are among `containers`.
    pub(super) fn take(
        store: &Store,
        record: &SandboxRecord,
        containers: &[ContainerRecord],
    ) -> Self {
        let containers = containers
            .iter()
            .filter(|container| container.sandbox_id == record.id);
        let mut reading = Self {
            sandbox: record.id.clone(),
            running: false,
            vcpus: record.size.vcpus,
            vmm: None,
            nics: None,
            guest: None,
            containers: containers
                .map(|container| Container {
                    id: container.id.clone(),
                    phases: container.timings.clone(),
                    used: None,
                })
                .collect(),
        };
        if let Some(vmm) = record.vmm.filter(ProcessIdentity::is_alive) {
            reading.running = true;
            reading.vmm = present(ask_vmm(store, record, vmm));
            reading.nics = present(traffic(store, &record.id, LIMIT));
            reading.guest = present(ask_guest(store, &record.id, &mut reading.containers));
        }
        reading
    }
}

/// Who asks is told by what is missing; why, the monitor's log says.
fn present<T, E: std::error::Error>(answer: Result<T, E>) -> Option<T> {
    answer
        .inspect_err(|error| tracing::debug!(error = %chain(error), "metrics"))
        .ok()
}

fn ask_vmm(store: &Store, record: &SandboxRecord, vmm: ProcessIdentity) -> Result<Vmm, VmmError> {
    let control = Control::connect_within(&store.sandbox_directory(&record.id), LIMIT)?;
    let status = control.status()?;
    Ok(Vmm {
        memory: u64::from(status.memory_mib) << 20,
        resident: resident(vmm.pid),
        exits: status.exits,
        vcpu_counters: control.vcpu_counters()?,
        devices: control.device_counters()?,
    })
}

/// The second number of `/proc/PID/statm`, which is in pages (proc_pid_statm(5)); zero for a process that has ended.
fn resident(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * page_size()
}

fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

/// Asks the agent how the guest is, and what its containers use. One that answers to the first only has told that.
fn ask_guest(
    store: &Store,
    id: &ContainerId,
    containers: &mut [Container],
) -> Result<Guest, AgentError> {
    let deadline = Instant::now() + LIMIT;
    let socket = vsock_socket(&store.sandbox_directory(id));
    let mut agent = AgentClient::connect_within(&socket, LIMIT)?;
    let asked = Instant::now();
    agent.limit_calls(deadline);
    let health = agent.health()?;
    let guest = Guest {
        latency: asked.elapsed(),
        calls: calls(&health),
        memory_total: health.memory_total,
        memory_available: health.memory_available,
    };
    for container in containers {
        agent.limit_calls(deadline);
        match agent.stats_container(&container.id) {
            Ok(answer) => container.used = Some(Used::of(&CgroupFiles::from(answer))),
            // It is not there yet, or not any more.
            Err(AgentError::Refused { .. }) => {}
            Err(error) => {
                tracing::debug!(error = %chain(&error), "metrics of a container");
                break;
            }
        }
    }
    Ok(guest)
}

/// What the guest says need not make sense.
fn calls(health: &HealthResponse) -> ([u64; COUNTS], Duration) {
    let mut counts = [0; COUNTS];
    for (count, told) in counts.iter_mut().zip(&health.call_counts) {
        *count = *told;
    }
    (counts, Duration::from_micros(health.call_time_us))
}

impl Used {
    fn of(files: &CgroupFiles) -> Self {
        Self {
            cpu: Duration::from_micros(files.keyed("cpu.stat", "usage_usec")),
            memory: files.number("memory.current"),
        }
    }
}
