//! How the VM of a sandbox grows with the limits of its containers: by vCPUs that were held back at the boot, and by
//! memory that its guest takes. It does not shrink: what a container is allowed less of, its cgroups hold it to.

use std::time::{Duration, Instant};

use super::{Sandbox, SandboxError};
use crate::config::VmSize;
use crate::error::chain;
use crate::vmm_process::Control;

/// How long a guest may take to take its memory.
const TAKE_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl Sandbox {
    /// What its VM can grow to.
    fn most(&self) -> VmSize {
        self.record.most.or_more(self.record.size)
    }

    /// Checks that its VM can become so large.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_can_hold(&self, wanted: VmSize) -> Result<(), SandboxError> {
        let most = self.most();
        if wanted.or_more(most) != most {
            return Err(SandboxError::TooSmall {
                id: self.record.id.clone(),
                most,
                wanted,
            });
        }
        Ok(())
    }

    /// Has its VM grow to `wanted`, as far as it can grow; nothing happens to what is as large already.
    ///
    /// # Errors
    /// The VM or its guest does not take part. The size is as it was then.
    pub fn grow(&mut self, wanted: VmSize) -> Result<(), crate::Error> {
        let has = self.record.size;
        let wanted = wanted.or_less(self.most()).or_more(has);
        if wanted.memory_mib > has.memory_mib {
            let control = Control::connect(&self.directory())?;
            if let Err(error) = self.grow_memory(&control, wanted.memory_mib) {
                if let Err(error) = control.resize_memory(has.memory_mib) {
                    tracing::warn!(error = %chain(&error), "memory that nobody wants any more");
                }
                return Err(error);
            }
            self.record.size.memory_mib = wanted.memory_mib;
            self.save()?;
        }
        if wanted.vcpus > has.vcpus {
            let online = self.agent()?.online_cpus(wanted.vcpus)?;
            tracing::debug!(online, "vCPUs");
            self.record.size.vcpus = wanted.vcpus;
            self.save()?;
        }
        Ok(())
    }

    fn grow_memory(&self, control: &Control, wanted_mib: u32) -> Result<(), crate::Error> {
        control.resize_memory(wanted_mib)?;
        // The first time there is a new device to be found.
        self.agent()?.rescan_devices()?;
        let start = Instant::now();
        loop {
            let has_mib = control.status()?.memory_mib;
            if has_mib >= wanted_mib {
                tracing::debug!(memory_mib = has_mib, took = ?start.elapsed(), "memory");
                return Ok(());
            }
            if start.elapsed() > TAKE_LIMIT {
                return Err(SandboxError::NotGrown {
                    id: self.record.id.clone(),
                    has_mib,
                    wanted_mib,
                }
                .into());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}
