//! `delete`: nothing is left of the container, and with the last of a sandbox nothing of that.

use std::time::Duration;

use super::create::run_poststop;
use super::state::{Status, status};
use super::{ContainerError, ContainerId};
use crate::Runtime;
use crate::error::{Error, chain};
use crate::sandbox::{Sandbox, agent_of};
use crate::store::{ContainerRecord, StoreError};
use crate::vmm_process;

/// How long a container that was killed may take to end, with its VM.
const END_LIMIT: Duration = Duration::from_secs(30);
/// How long a proxy may take to notice that its VM has gone.
const PARTING_LIMIT: Duration = Duration::from_secs(2);

/// Deletes a container that has stopped, or that was created and not started. With `force` in any state, also when
/// its record is damaged; and a container that is not there is no error. Of two that delete a container at once, the
/// second waits for the first, and finds that it is gone.
///
/// # Errors
/// It runs; or something of it cannot be undone, and then it can be deleted again.
pub fn delete(runtime: &Runtime, id: &ContainerId, force: bool) -> Result<(), Error> {
    let store = &runtime.store;
    let Some(_turn) = store.lock_container(id)? else {
        let gone = StoreError::NotFound { id: id.clone() };
        return if force { Ok(()) } else { Err(gone.into()) };
    };
    let record = match store.container(id) {
        Ok(record) => record,
        Err(StoreError::NotFound { .. } | StoreError::Damaged { .. }) if force => {
            return delete_unknown(runtime, id);
        }
        Err(error) => return Err(error.into()),
    };
    match status(store, &record) {
        Status::Stopped => {}
        Status::Created => end(runtime, &record)?,
        _ if force => end(runtime, &record)?,
        status => {
            return Err(ContainerError::WrongState {
                id: id.clone(),
                status,
                problem: "cannot delete container that is not stopped",
            }
            .into());
        }
    }
    // A proxy that outlived its VM is about to end, and one without a VM must not be left.
    reap_proxy(&record)?;
    let mut cgroup = record.cgroup.as_ref();
    match Sandbox::open(store, &record.sandbox_id) {
        Ok(sandbox) => {
            // The one that the VM is in goes with the sandbox.
            cgroup = cgroup.filter(|cgroup| !sandbox.is_in(cgroup));
            leave(sandbox, id, force)?;
        }
        // `create` may have been killed before there was one.
        Err(StoreError::NoSandbox { .. }) => {
            remove_recordless_sandbox(runtime, &record.sandbox_id, id)?
        }
        Err(error) => return Err(error.into()),
    }
    if let Some(cgroup) = cgroup {
        cgroup.remove()?;
    }
    run_poststop(&record, &record.bundle);
    store.remove_container(id)?;
    Ok(())
}

/// Kills a container's processes. The sandbox's lock is not held: the proxy wants it. A guest that does not answer is
/// ended with its VM; one that does may have other containers, and is left alone.
fn end(runtime: &Runtime, record: &ContainerRecord) -> Result<(), Error> {
    let Some(proxy) = record.proxy else {
        return Ok(());
    };
    let killed = agent_of(&runtime.store, &record.sandbox_id)
        .and_then(|mut agent| agent.signal(&record.id, "", libc::SIGKILL.unsigned_abs(), true));
    match killed {
        Ok(()) => return Ok(()),
        // The container has just ended by itself, and its VM with it.
        Err(_) if proxy.wait_end(PARTING_LIMIT) => return Ok(()),
        Err(error) => {
            tracing::warn!(container = %record.id, error = %chain(&error), "killing the container");
            if error.code().is_some() {
                return Ok(());
            }
        }
    }
    if let Ok(sandbox) = runtime.store.sandbox(&record.sandbox_id)
        && let Some(vmm) = sandbox.vmm
    {
        vmm_process::stop(&vmm, &runtime.store.sandbox_directory(&record.sandbox_id))?;
    }
    Ok(())
}

/// A proxy whose process, or VM, has ended does so itself; it is helped if it does not.
fn reap_proxy(record: &ContainerRecord) -> Result<(), ContainerError> {
    let Some(proxy) = record.proxy else {
        return Ok(());
    };
    if proxy.wait_end(END_LIMIT) {
        return Ok(());
    }
    tracing::warn!(container = %record.id, "the process proxy does not end");
    let killed = proxy.signal(libc::SIGKILL).is_ok() && proxy.wait_end(END_LIMIT);
    killed
        .then_some(())
        .ok_or_else(|| ContainerError::Unkillable {
            id: record.id.clone(),
        })
}

/// Takes a stopped container out of its sandbox, and ends that if it was the last and no pod is to outlive it.
fn leave(mut sandbox: Sandbox, id: &ContainerId, force: bool) -> Result<(), Error> {
    if sandbox.pod().is_none() && sandbox.containers_but(id)?.is_empty() {
        return sandbox.end_and_remove();
    }
    match sandbox.remove_container(id) {
        Err(error) if force => {
            tracing::warn!(container = %id, error = %chain(&error), "taking it out of its VM");
            Ok(())
        }
        answer => answer,
    }
}

/// A sandbox's directory without a record is one that `create` was killed in while it made it.
fn remove_recordless_sandbox(
    runtime: &Runtime,
    sandbox: &ContainerId,
    id: &ContainerId,
) -> Result<(), Error> {
    if sandbox == id {
        runtime.store.remove_sandbox(sandbox)?;
    }
    Ok(())
}

/// What is left of a container that nothing is known of: its directory, and the sandbox that was its own.
fn delete_unknown(runtime: &Runtime, id: &ContainerId) -> Result<(), Error> {
    match Sandbox::open(&runtime.store, id) {
        Ok(sandbox) => leave(sandbox, id, true)?,
        Err(StoreError::NoSandbox { .. }) => remove_recordless_sandbox(runtime, id, id)?,
        Err(error) => return Err(error.into()),
    }
    runtime.store.remove_container(id)?;
    Ok(())
}
