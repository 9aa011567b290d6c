//! `update`: the limits of a container that was created, anew.

use oci_spec::runtime::LinuxResources;

use super::state::live_status;
use super::{ContainerId, in_use};
use crate::Runtime;
use crate::config::VmSize;
use crate::error::Error;
use crate::rootfs::RootfsError;
use crate::sandbox::Sandbox;
use crate::store::StoreError;

/// Sets the limits that `resources` names, and leaves the others as they are. The VM grows if they take more than it
/// has.
///
/// # Errors
/// The container has stopped; or the VM cannot grow so far.
pub fn update(
    runtime: &Runtime,
    id: &ContainerId,
    resources: &LinuxResources,
) -> Result<(), Error> {
    let store = &runtime.store;
    let mut sandbox = Sandbox::open(store, &store.container(id)?.sandbox_id)?;
    let mut record = store.container(id)?;
    live_status(store, &record)?;
    record.limits = record.limits.updated(resources);
    sandbox.check_can_hold(record.limits)?;
    let all = limits_of_others(&sandbox, id)?.and(record.limits);
    sandbox.grow(all.with_overhead(&runtime.config))?;
    let encoded = serde_json::to_vec(resources).map_err(RootfsError::Encode)?;
    sandbox.agent()?.update_container(id, encoded)?;
    if let Some(cgroup) = &record.cgroup
        && sandbox.is_in(cgroup)
    {
        cgroup.limit(resources, sandbox.memory_mib())?;
    }
    Ok(store.save_container(&record)?)
}

/// What the containers of a sandbox but for `id` may use together.
pub(super) fn limits_of_others(sandbox: &Sandbox, id: &ContainerId) -> Result<VmSize, StoreError> {
    let others = sandbox.containers_but(id)?;
    Ok(others
        .iter()
        .filter(|record| in_use(record))
        .fold(VmSize::default(), |all, record| all.and(record.limits)))
}
