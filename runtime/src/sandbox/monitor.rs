//! The sandbox's monitor: started with its VM, started anew when it is found missing, and ended with it.

use std::time::Duration;

use super::{Sandbox, SandboxError};
use crate::container::ContainerId;
use crate::monitor::{MonitorError, StartingMonitor};
use crate::network::Netns;
use crate::process_identity::ProcessIdentity;
use crate::store::{SandboxRecord, Store};

/// How long a monitor that was killed may take to end.
const END_LIMIT: Duration = Duration::from_secs(30);

impl Sandbox {
    /// Starts its monitor. The VM is running, and named in the record.
    pub(super) fn start_monitor(&mut self, netns: &Netns) -> Result<StartingMonitor, crate::Error> {
        let log = self.directory().join("monitor.log");
        let monitor = StartingMonitor::spawn(netns, self.store.root(), self.id(), &log)?;
        self.record.monitor = Some(monitor.identity());
        self.save()?;
        if let Some(cgroup) = &self.record.cgroup {
            cgroup.add(monitor.identity())?;
        }
        Ok(monitor)
    }

    /// Starts its monitor if its VM runs without one.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ensure_monitor(&mut self) -> Result<(), crate::Error> {
        if !lacks_monitor(&self.record) {
            return Ok(());
        }
        let netns = self.open_netns().ok_or_else(|| SandboxError::NotRunning {
            id: self.record.id.clone(),
        })?;
        tracing::debug!(sandbox = %self.record.id, "its monitor has ended; starting another");
        Ok(self.start_monitor(&netns)?.wait_listening()?)
    }

    /// Whether `process` is its monitor.
    pub fn is_monitored_by(&self, process: ProcessIdentity) -> bool {
        self.record.monitor == Some(process)
    }

    /// Kills its monitor. It holds no lock, as this process does, and so is not in the middle of a change.
    pub(super) fn end_monitor(&mut self) -> Result<(), MonitorError> {
        if let Some(monitor) = self.record.monitor {
            let killed = monitor.signal(libc::SIGKILL).is_ok() && monitor.wait_end(END_LIMIT);
            if !killed {
                return Err(MonitorError::Unkillable { pid: monitor.pid });
            }
            self.record.monitor = None;
        }
        Ok(())
    }
}

/// Starts the monitor of a sandbox whose VM runs without one; the lock is taken only then.
///
/// # Errors
/// The record cannot be read, or the monitor not be started.
pub fn ensure_monitor(store: &Store, id: &ContainerId) -> Result<(), crate::Error> {
    if lacks_monitor(&store.sandbox(id)?) {
        Sandbox::open(store, id)?.ensure_monitor()?;
    }
    Ok(())
}

fn lacks_monitor(record: &SandboxRecord) -> bool {
    let is_alive = |process: Option<ProcessIdentity>| process.is_some_and(|it| it.is_alive());
    is_alive(record.vmm) && !is_alive(record.monitor)
}
