//! `pause` and `resume`: the processes of a container freeze and thaw, by its cgroup in the guest.

use super::state::{Status, status};
use super::{ContainerError, ContainerId};
use crate::Runtime;
use crate::error::Error;
use crate::sandbox::Sandbox;
use crate::store::Lifecycle;

/// Freezes a container.
///
/// # Errors
/// It does not run.
pub fn pause(runtime: &Runtime, id: &ContainerId) -> Result<(), Error> {
    change(
        runtime,
        id,
        Status::Running,
        Lifecycle::Paused,
        "container not running",
    )
}

/// Thaws a container.
///
/// # Errors
/// It is not frozen.
pub fn resume(runtime: &Runtime, id: &ContainerId) -> Result<(), Error> {
    change(
        runtime,
        id,
        Status::Paused,
        Lifecycle::Started,
        "container not paused",
    )
}

fn change(
    runtime: &Runtime,
    id: &ContainerId,
    from: Status,
    to: Lifecycle,
    problem: &'static str,
) -> Result<(), Error> {
    let store = &runtime.store;
    let sandbox = Sandbox::open(store, &store.container(id)?.sandbox_id)?;
    let mut record = store.container(id)?;
    let status = status(store, &record);
    if status != from {
        return Err(ContainerError::WrongState {
            id: id.clone(),
            status,
            problem,
        }
        .into());
    }
    let mut agent = sandbox.agent()?;
    match to {
        Lifecycle::Paused => agent.pause_container(id)?,
        _ => agent.resume_container(id)?,
    }
    record.lifecycle = to;
    Ok(store.save_container(&record)?)
}
