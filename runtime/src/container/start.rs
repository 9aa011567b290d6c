//! `start`: the container's program runs.

use std::ffi::OsStr;

use hull_agent_protocol::stdio::{StreamKind, StreamRequest};

use super::state::{State, Status, status};
use super::{ContainerError, ContainerId};
use crate::Runtime;
use crate::agent_client::{AgentClient, vsock};
use crate::error::{Error, chain};
use crate::hooks::{self, HookKind};
use crate::notify::ReadyNotice;
use crate::process_proxy::ProxyError;
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::{ContainerRecord, Lifecycle};
use crate::timing::Stopwatch;

/// Runs the program of a container that was created. Its network is looked at once more before: engines may have
/// wired it since. `service_manager`: the socket of the caller's service manager, if it is a service; the container's
/// word for it is to be waited for then, if it was created to give one.
///
/// # Errors
/// It is in another state; or the program cannot be run, and then the container has stopped.
pub fn start(
    runtime: &Runtime,
    id: &ContainerId,
    service_manager: Option<&OsStr>,
) -> Result<Option<ReadyNotice>, Error> {
    let mut stopwatch = Stopwatch::start();
    let store = &runtime.store;
    let record = store.container(id)?;
    let mut sandbox = Sandbox::open(store, &record.sandbox_id)?;
    // What it was before the lock was had may have changed.
    let mut record = store.container(id)?;
    let status = status(store, &record);
    if status != Status::Created {
        return Err(ContainerError::WrongState {
            id: id.clone(),
            status,
            problem: match status {
                Status::Stopped => "cannot start a container that has stopped",
                Status::Running => "cannot start an already running container",
                Status::Paused => "cannot start a container in the paused state",
                Status::Creating | Status::Created => "cannot start a container",
            },
        }
        .into());
    }
    let running = run_program(&mut sandbox, &record, service_manager, &mut stopwatch);
    let (mut agent, notice) = running.map_err(|error| sandbox.explain(error))?;
    record.lifecycle = Lifecycle::Started;
    store.save_container(&record)?;
    let state = State::with_status(&record, Status::Running).to_json();
    let hooked = hooks::run(
        HookKind::Poststart,
        &record.poststart,
        &state,
        &record.bundle,
        None,
    );
    if let Err(error) = hooked {
        // As runc does: a container whose hooks failed does not go on.
        if let Err(error) = agent.signal(id, "", libc::SIGKILL.unsigned_abs(), true) {
            tracing::warn!(error = %chain(&error), "killing a container whose hook failed");
        }
        return Err(error.into());
    }
    Ok(notice)
}

/// Has the guest run the program, once it has what the program may look for.
fn run_program(
    sandbox: &mut Sandbox,
    record: &ContainerRecord,
    service_manager: Option<&OsStr>,
    stopwatch: &mut Stopwatch,
) -> Result<(AgentClient, Option<ReadyNotice>), Error> {
    let netns = sandbox
        .open_netns()
        .ok_or_else(|| SandboxError::NotRunning {
            id: record.sandbox_id.clone(),
        })?;
    let mut agent = sandbox.agent()?;
    sandbox.reconcile_network(&netns, &mut agent)?;
    if let Err(error) = sandbox.ensure_monitor() {
        tracing::warn!(container = %record.id, error = %chain(&error), "changes of the network are not followed");
    }
    stopwatch.phase("start_network");
    if sandbox.vcpus() > 1 {
        // Many programs size themselves by the CPUs that they find when they start.
        let online = agent.online_cpus(sandbox.vcpus())?;
        tracing::debug!(online, "vCPUs");
        stopwatch.phase("vcpus");
    }
    let notice = service_manager
        .filter(|_| record.notifies)
        .map(|address| ready_notice(sandbox, &record.id, address))
        .transpose()?;
    agent.start_container(&record.id)?;
    stopwatch.phase("start_container");
    Ok((agent, notice))
}

/// Opened before the program runs, so that nothing of what it says is missed.
fn ready_notice(
    sandbox: &Sandbox,
    id: &ContainerId,
    address: &OsStr,
) -> Result<ReadyNotice, Error> {
    let request = StreamRequest {
        kind: StreamKind::Notify,
        container_id: id.to_string(),
        exec_id: String::new(),
    };
    let stream = vsock::open_stream(&sandbox.vsock_socket(), &request);
    Ok(ReadyNotice::new(
        stream.map_err(ProxyError::from)?,
        address,
    )?)
}
