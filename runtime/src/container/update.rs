//! `update`: the limits of a container that was created, anew.

use oci_spec::runtime::LinuxResources;

use super::state::{Status, status};
use super::{ContainerError, ContainerId};
use crate::Runtime;
use crate::config::VmSize;
use crate::error::Error;
use crate::rootfs::RootfsError;
use crate::sandbox::Sandbox;

/// Sets the limits that `resources` names, and leaves the others as they are. The VM keeps its size.
///
/// # Errors
/// The container has stopped; or the VM is too small for the limits to be limits.
pub fn update(
    runtime: &Runtime,
    id: &ContainerId,
    resources: &LinuxResources,
) -> Result<(), Error> {
    let store = &runtime.store;
    let sandbox = Sandbox::open(store, &store.container(id)?.sandbox_id)?;
    let record = store.container(id)?;
    if matches!(status(store, &record), Status::Stopped | Status::Creating) {
        return Err(ContainerError::NotRunning.into());
    }
    sandbox.check_holds(VmSize::of_limits(resources))?;
    let encoded = serde_json::to_vec(resources).map_err(RootfsError::Encode)?;
    sandbox.agent()?.update_container(id, encoded)?;
    if let Some(cgroup) = record.cgroup.filter(|cgroup| sandbox.is_in(cgroup)) {
        cgroup.limit(resources, sandbox.memory_mib())?;
    }
    Ok(())
}
