//! What a container asks of the sandbox that is made for it.

use std::collections::HashMap;

use oci_spec::runtime::LinuxResources;

use super::sizing::VmSize;
use super::{Config, ConfigError, NicSettings, network, pod};
use crate::network::Options;

/// A sandbox that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxConfig {
    /// The size of its VM.
    pub size: VmSize,
    /// What its VM can grow to.
    pub most: VmSize,
    /// What its first container may use.
    pub limits: VmSize,
    /// Its network.
    pub network: Options,
    /// How its NICs move packets.
    pub nics: NicSettings,
}

impl SandboxConfig {
    /// What the configuration, the annotations and the limits of a sandbox's first container ask for.
    ///
    /// # Errors
    /// An annotation makes no sense.
    pub fn of(
        config: &Config,
        annotations: &HashMap<String, String>,
        resources: Option<&LinuxResources>,
    ) -> Result<Self, ConfigError> {
        let limits = resources.map_or_else(VmSize::default, VmSize::of_limits);
        let together = limits.or_more(pod::limits(annotations)?);
        let size = VmSize::of(config, annotations, together)?;
        Ok(Self {
            size,
            most: VmSize::most(config, size),
            limits,
            network: network::options(config, annotations, size.vcpus)?,
            nics: NicSettings::of(config, annotations)?,
        })
    }
}
