//! How a machine's memory grows: by the memory device, which is attached when it is first needed, for most machines
//! never grow and a device costs time at the boot. Runs in the main thread.

use std::ops::Range;
use std::sync::Arc;

use hull_vmm_protocol::config::VmConfig;

use super::devices::{DeviceError, Devices};
use crate::devices::virtio::mem::backend::Region;
use crate::devices::virtio::mem::device::Mem;

const ID: &str = "memory";

/// What a machine has started with, and what it can grow by.
pub(super) struct Growth {
    start_mib: u32,
    max_mib: u32,
    region: Option<Arc<Region>>,
    attached: bool,
}

impl Growth {
    /// The machine of `config`, which grows into `range`, if it can.
    pub(super) fn new(config: &VmConfig, range: Option<Range<u64>>) -> Self {
        Self {
            start_mib: config.memory_mib,
            max_mib: config.max_memory_mib,
            region: range.map(|range| Arc::new(Region::new(range))),
            attached: false,
        }
    }

    /// What the guest has, in MiB.
    pub(super) fn memory_mib(&self) -> u32 {
        let plugged = self.region.as_ref().map_or(0, |region| region.plugged());
        self.start_mib.saturating_add(mib(plugged))
    }

    /// Asks the guest to have `memory_mib` MiB.
    ///
    /// # Errors
    /// It has more from the start or cannot have so much, or the device cannot be attached.
    pub(super) fn resize(
        &mut self,
        devices: &mut Devices,
        memory_mib: u32,
    ) -> Result<(), DeviceError> {
        let more = memory_mib
            .checked_sub(self.start_mib)
            .filter(|_| memory_mib <= self.max_mib)
            .ok_or_else(|| DeviceError::Value {
                field: "memory_mib",
                value: memory_mib.to_string(),
                allowed: "at least what the machine started with, and at most what it can grow to",
            })?;
        let Some(region) = &self.region else {
            // It can have what it has.
            return Ok(());
        };
        region.want(u64::from(more) << 20);
        if more > 0 && !self.attached {
            devices.attach_permanent(ID, Box::new(Mem::new(region.clone())))?;
            self.attached = true;
        }
        Ok(())
    }
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}
