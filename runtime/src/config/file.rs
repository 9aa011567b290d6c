//! The configuration file, as it is written: every value may be missing, and none may be unknown.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, Vhost};
use crate::network::Model;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub(super) paths: Paths,
    pub(super) guest: Guest,
    pub(super) sandbox: Sandbox,
    pub(super) network: Network,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Paths {
    pub(super) vmm: Option<PathBuf>,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initramfs: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Guest {
    pub(super) kernel_parameters: Option<String>,
    pub(super) early_serial: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Sandbox {
    pub(super) vcpus: Option<u64>,
    pub(super) memory_mib: Option<u64>,
    pub(super) max_vcpus: Option<u64>,
    pub(super) max_memory_mib: Option<u64>,
    pub(super) memory_overhead_mib: Option<u32>,
    pub(super) boot_timeout_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Network {
    pub(super) model: Option<Model>,
    pub(super) vhost: Option<Vhost>,
}

impl ConfigFile {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(path, &text)
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.into(),
            source: Box::new(source),
        })
    }
}
