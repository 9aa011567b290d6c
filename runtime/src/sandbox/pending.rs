//! A sandbox while a container is being made in it: what `create` has done so far, undone when that fails.

use std::path::PathBuf;

use super::pod::Pod;
use super::{Sandbox, SandboxError, share};
use crate::agent_client::AgentClient;
use crate::config::{Config, SandboxConfig};
use crate::container::ContainerId;
use crate::monitor::StartingMonitor;
use crate::network::Netns;
use crate::process_identity::ProcessIdentity;
use crate::store::Store;
use crate::vmm_process::StartingVmm;

/// A sandbox that is to be made.
#[derive(Debug)]
pub struct NewSandbox<'a> {
    /// Its id.
    pub id: &'a ContainerId,
    /// Its network namespace, which the caller holds open.
    pub netns: &'a Netns,
    /// Where that is mounted.
    pub netns_path: Option<PathBuf>,
    /// A process that lives in it.
    pub holder: Option<ProcessIdentity>,
    /// The pod, if it is not made for a container.
    pub pod: Option<Pod>,
}

/// A sandbox that a container is being made in. Dropping it ends a VM that was made for the container, or takes the
/// container out of one that was there before.
#[derive(Debug)]
pub struct PendingSandbox {
    container: ContainerId,
    /// Empty once it was kept.
    sandbox: Option<Sandbox>,
    starting: Option<(StartingVmm, StartingMonitor)>,
    is_new: bool,
}

impl PendingSandbox {
    /// Makes a sandbox, and starts its VM and its monitor.
    ///
    /// # Errors
    /// The state directory, or hull-vmm's program.
    pub fn boot(
        store: &Store,
        config: &Config,
        new: NewSandbox<'_>,
        wanted: &SandboxConfig,
    ) -> Result<Self, crate::Error> {
        let (id, netns) = (new.id, new.netns);
        let mut pending = Self {
            container: id.clone(),
            sandbox: Some(Sandbox::create(store, new, wanted)?),
            starting: None,
            is_new: true,
        };
        let vmm = pending.sandbox()?.start_vmm(config, netns)?;
        let monitor = pending.sandbox()?.start_monitor(netns)?;
        pending.starting = Some((vmm, monitor));
        Ok(pending)
    }

    /// Takes a sandbox whose VM runs.
    pub fn join(sandbox: Sandbox, container: &ContainerId) -> Self {
        Self {
            container: container.clone(),
            sandbox: Some(sandbox),
            starting: None,
            is_new: false,
        }
    }

    /// Waits until the VM runs, with the device of its shared directory, and the monitor listens.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_running(&mut self, config: &Config) -> Result<(), crate::Error> {
        if let Some((vmm, monitor)) = self.starting.take() {
            vmm.wait_running(config.boot_limit)?;
            monitor.wait_listening()?;
            self.sandbox()?.attach_share_device()?;
        }
        Ok(())
    }

    /// The guest's agent; a guest that has just booted is made ready first.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn agent(&mut self, config: &Config, hostname: &str) -> Result<AgentClient, crate::Error> {
        let is_new = self.is_new;
        let sandbox = self.sandbox()?;
        if is_new {
            sandbox.set_up_guest(config.boot_limit, hostname)
        } else {
            Ok(sandbox.agent()?)
        }
    }

    /// The sandbox.
    ///
    /// # Errors
    /// None as long as it is pending.
    pub fn sandbox(&mut self) -> Result<&mut Sandbox, SandboxError> {
        self.sandbox
            .as_mut()
            .ok_or_else(|| SandboxError::NotRunning {
                id: self.container.clone(),
            })
    }

    /// See [`Sandbox::explain`].
    pub fn explain(&self, error: crate::Error) -> crate::Error {
        match &self.sandbox {
            Some(sandbox) => sandbox.explain(error),
            None => error,
        }
    }

    /// What was to be made has been.
    pub fn keep(mut self) {
        self.sandbox = None;
    }
}

impl Drop for PendingSandbox {
    fn drop(&mut self) {
        let Some(mut sandbox) = self.sandbox.take() else {
            return;
        };
        // A VMM whose machine does not run yet takes no calls.
        drop(self.starting.take());
        if self.is_new {
            if let Err(error) = sandbox.end_and_remove() {
                tracing::error!(error = %crate::error::chain(&error), "undoing a sandbox");
            }
            return;
        }
        let undone = sandbox.remove_container(&self.container).or_else(|error| {
            // The guest may never have heard of the container.
            tracing::debug!(error = %crate::error::chain(&error), "taking a container out of its sandbox");
            Ok::<_, crate::Error>(share::detach(&sandbox.vmm()?, &self.container)?)
        });
        if let Err(error) = undone {
            tracing::error!(error = %crate::error::chain(&error), "taking a container out of its sandbox");
        }
    }
}
