//! `update`: the limits of a container that was created, anew.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::state::check_live;
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
    let resources = &without_zeros(resources);
    let store = &runtime.store;
    let mut sandbox = Sandbox::open(store, &store.container(id)?.sandbox_id)?;
    let mut record = store.container(id)?;
    check_live(store, &record)?;
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

/// To callers zero and the empty list say nothing of a limit, as they do to runc: Docker 20.10 sends them for all limits
/// that its user does not name.
fn without_zeros(resources: &LinuxResources) -> LinuxResources {
    let cpu = resources.cpu().as_ref().map(|given| {
        let mut cpu: LinuxCpu = given.clone();
        cpu.set_shares(given.shares().filter(|shares| *shares != 0))
            .set_period(given.period().filter(|period| *period != 0))
            .set_quota(given.quota().filter(|quota| *quota != 0))
            .set_cpus(given.cpus().clone().filter(|cpus| !cpus.is_empty()))
            .set_mems(given.mems().clone().filter(|mems| !mems.is_empty()));
        cpu
    });
    let memory = resources.memory().map(|given| {
        let mut memory: LinuxMemory = given;
        memory
            .set_limit(given.limit().filter(|limit| *limit != 0))
            .set_reservation(given.reservation().filter(|limit| *limit != 0))
            .set_swap(given.swap().filter(|limit| *limit != 0))
            .set_kernel(given.kernel().filter(|limit| *limit != 0));
        memory
    });
    let block_io = resources.block_io().as_ref().map(|given| {
        let mut block_io: LinuxBlockIo = given.clone();
        block_io.set_weight(given.weight().filter(|weight| *weight != 0));
        block_io
    });
    let mut named = resources.clone();
    named.set_cpu(cpu).set_memory(memory).set_block_io(block_io);
    named
}

/// What the containers of a sandbox but for `id` may use together.
pub(super) fn limits_of_others(sandbox: &Sandbox, id: &ContainerId) -> Result<VmSize, StoreError> {
    let others = sandbox.containers_but(id)?;
    Ok(others
        .iter()
        .filter(|record| in_use(record))
        .fold(VmSize::default(), |all, record| all.and(record.limits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_name_no_limit() {
        let docker = r#"{"memory":{"limit":209715200,"reservation":0,"swap":209715200,"kernel":0},
            "cpu":{"shares":0,"quota":0,"period":0,"cpus":"","mems":""},"blockIO":{"weight":0}}"#;
        let given: LinuxResources = serde_json::from_str(docker).unwrap();
        let named = r#"{"memory":{"limit":209715200,"swap":209715200},"cpu":{},"blockIO":{}}"#;
        let named: LinuxResources = serde_json::from_str(named).unwrap();
        assert_eq!(without_zeros(&given), named);
    }
}
