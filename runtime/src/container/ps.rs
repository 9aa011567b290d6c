//! `ps`: the processes of a container, as the guest sees them, or by the pids that the host knows them by.

use hull_agent_protocol::agent::list_processes_response::Process;

use super::state::{Status, status};
use super::{ContainerError, ContainerId};
use crate::Runtime;
use crate::error::Error;
use crate::sandbox::agent_of;

/// The processes of a container; none of one that has stopped.
///
/// # Errors
/// It is still being created, or its agent does not answer.
pub fn ps(runtime: &Runtime, id: &ContainerId) -> Result<Vec<Process>, Error> {
    let record = runtime.store.container(id)?;
    match status(&runtime.store, &record) {
        Status::Stopped => return Ok(Vec::new()),
        Status::Creating => return Err(ContainerError::NotRunning.into()),
        Status::Created | Status::Running | Status::Paused => {}
    }
    let mut agent = agent_of(&runtime.store, &record.sandbox_id)?;
    Ok(agent.list_processes(id)?.processes)
}

/// The pids of the proxies of a container's processes, by which the host knows those that an engine has started; none of
/// a container that has stopped.
///
/// # Errors
/// It is still being created, or its cgroup cannot be read.
pub fn host_pids(runtime: &Runtime, id: &ContainerId) -> Result<Vec<i32>, Error> {
    let record = runtime.store.container(id)?;
    match status(&runtime.store, &record) {
        Status::Stopped => return Ok(Vec::new()),
        Status::Creating => return Err(ContainerError::NotRunning.into()),
        Status::Created | Status::Running | Status::Paused => {}
    }
    let sandbox = runtime.store.sandbox(&record.sandbox_id)?;
    let mut pids = match &record.cgroup {
        Some(cgroup) => cgroup.pids()?,
        None => record.proxy.iter().map(|proxy| proxy.pid).collect(),
    };
    let of_the_sandbox = [sandbox.vmm, sandbox.monitor];
    pids.retain(|pid| {
        of_the_sandbox
            .iter()
            .flatten()
            .all(|process| process.pid != *pid)
    });
    Ok(pids)
}
