//! `ps`: the processes of a container, as the guest sees them.

use hull_agent_protocol::agent::list_processes_response::Process;

use super::state::{Status, status};
use super::{ContainerError, ContainerId};
use crate::Runtime;
use crate::agent_client::AgentClient;
use crate::error::Error;
use crate::vmm_process::vsock_socket;

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
    let socket = vsock_socket(&runtime.store.sandbox_directory(&record.sandbox_id));
    let mut agent = AgentClient::connect(&socket)?;
    Ok(agent.list_processes(id)?.processes)
}
