//! How large a VM is: the configuration's default, more if the container's limits or those of its pod ask for more, or what
//! its annotations say; and how large it can become.

use std::collections::HashMap;
use std::fmt;

use oci_spec::runtime::{LinuxMemory, LinuxResources};
use serde::{Deserialize, Serialize};

use super::{Config, ConfigError};
use crate::cgroup::with_unified;

/// The annotation that sets the number of vCPUs.
const VCPUS: &str = "dev.hull.vcpus";
/// The annotation that sets the memory, in MiB.
const MEMORY: &str = "dev.hull.memory_mib";

const MAX_VCPUS: u8 = 32;
/// vCPUs that a VM can grow to if nothing is said: each one that is held back costs the guest memory.
const DEFAULT_MAX_VCPUS: u8 = 8;
const MIN_MEMORY_MIB: u64 = 64;

/// A VM's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSize {
    /// 1 to 32.
    pub vcpus: u8,
    /// At least 64.
    pub memory_mib: u32,
}

impl fmt::Display for VmSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} vCPUs and {} MiB", self.vcpus, self.memory_mib)
    }
}

impl VmSize {
    /// What a container may use at the most with these limits; zero where there is none. A memory limit beyond the
    /// host's memory (engines write very large numbers for "none") is none beyond that.
    pub fn of_limits(limits: &LinuxResources) -> Self {
        Self::of_merged(&with_unified(limits))
    }

    /// The same of limits that have those of their files already.
    fn of_merged(limits: &LinuxResources) -> Self {
        Self {
            vcpus: vcpus_of_quota(limits),
            memory_mib: memory_of_limit(limits).min(host_memory_mib()),
        }
    }

    /// What a VM of `size` can grow to.
    pub(super) fn most(config: &Config, size: Self) -> Self {
        size.or_more(Self {
            vcpus: config.max_vcpus.unwrap_or_else(default_max_vcpus),
            memory_mib: config.max_memory_mib.unwrap_or_else(host_memory_mib),
        })
    }

    /// Of each the larger.
    #[must_use]
    pub fn or_more(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.max(other.vcpus),
            memory_mib: self.memory_mib.max(other.memory_mib),
        }
    }

    /// Of each the smaller.
    #[must_use]
    pub fn or_less(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.min(other.vcpus),
            memory_mib: self.memory_mib.min(other.memory_mib),
        }
    }

    /// Both together: what two containers may use.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
        }
    }

    /// These limits of a container once `limits`, which names some of them, is put into force. More CPUs than the host
    /// has are no limit beyond those.
    #[must_use]
    pub fn updated(self, limits: &LinuxResources) -> Self {
        let limits = with_unified(limits);
        let named = Self::of_merged(&limits);
        let cpu = limits.cpu().as_ref();
        let memory = limits.memory().as_ref();
        Self {
            vcpus: cpu
                .and_then(|cpu| cpu.quota())
                .map_or(self.vcpus, |_| named.vcpus.min(host_cpus())),
            memory_mib: memory
                .and_then(LinuxMemory::limit)
                .map_or(self.memory_mib, |_| named.memory_mib),
        }
    }

    /// What a VM needs for containers that may use so much.
    #[must_use]
    pub fn with_overhead(self, config: &Config) -> Self {
        let memory_mib = match self.memory_mib {
            0 => 0,
            memory_mib => memory_mib.saturating_add(config.memory_overhead_mib),
        };
        Self { memory_mib, ..self }
    }

    /// The size of the VM of a container with these annotations, which may use so much.
    ///
    /// # Errors
    /// An annotation is no number, or out of range.
    pub fn of(
        config: &Config,
        annotations: &HashMap<String, String>,
        limits: Self,
    ) -> Result<Self, ConfigError> {
        let vcpus = match annotations.get(VCPUS) {
            Some(value) => vcpus(VCPUS, number(VCPUS, value)?)?,
            None => config.vcpus.max(limits.vcpus),
        };
        let memory_mib = match annotations.get(MEMORY) {
            Some(value) => memory(MEMORY, number(MEMORY, value)?)?,
            None => config
                .memory_mib
                .max(limits.with_overhead(config).memory_mib),
        };
        Ok(Self { vcpus, memory_mib })
    }
}

fn vcpus_of_quota(limits: &LinuxResources) -> u8 {
    let cpu = limits.cpu().as_ref();
    let Some((quota, period)) = cpu.and_then(|cpu| Some((cpu.quota()?, cpu.period()?))) else {
        return 0;
    };
    match u64::try_from(quota) {
        Ok(quota) if period > 0 => u8::try_from(quota.div_ceil(period))
            .unwrap_or(MAX_VCPUS)
            .min(MAX_VCPUS),
        // Negative is "no limit", zero is no period.
        _ => 0,
    }
}

/// In MiB.
fn memory_of_limit(limits: &LinuxResources) -> u32 {
    let limit = limits.memory().as_ref().and_then(LinuxMemory::limit);
    // Negative is "no limit".
    let limit = limit
        .and_then(|limit| u64::try_from(limit).ok())
        .unwrap_or(0);
    u32::try_from(limit.div_ceil(1024 * 1024)).unwrap_or(u32::MAX)
}

fn number(name: &'static str, value: &str) -> Result<u64, ConfigError> {
    value.parse().map_err(|_| ConfigError::Value {
        name,
        value: value.into(),
        expected: "a number is expected",
    })
}

pub(super) fn vcpus(name: &'static str, value: u64) -> Result<u8, ConfigError> {
    u8::try_from(value)
        .ok()
        .filter(|vcpus| (1..=MAX_VCPUS).contains(vcpus))
        .ok_or_else(|| ConfigError::Value {
            name,
            value: value.to_string(),
            expected: "1 to 32 is expected",
        })
}

pub(super) fn memory(name: &'static str, value: u64) -> Result<u32, ConfigError> {
    u32::try_from(value)
        .ok()
        .filter(|_| value >= MIN_MEMORY_MIB)
        .ok_or_else(|| ConfigError::Value {
            name,
            value: value.to_string(),
            expected: "at least 64 is expected",
        })
}

/// The host's memory in MiB; no bound if it cannot be read.
fn host_memory_mib() -> u32 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(u32::MAX, |kib| {
            u32::try_from(kib / 1024).unwrap_or(u32::MAX)
        })
}

/// vCPUs that a VM can grow to if nothing is said: as the host has CPUs, within reason.
fn default_max_vcpus() -> u8 {
    host_cpus().min(DEFAULT_MAX_VCPUS)
}

/// As far as a VM can have so many.
fn host_cpus() -> u8 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u8::try_from(cpus).map_or(MAX_VCPUS, |cpus| cpus.min(MAX_VCPUS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::ConfigFile;
    use std::path::Path;

    fn size(annotations: &[(&str, &str)], resources: &str) -> Result<VmSize, ConfigError> {
        let config = Config::resolve(ConfigFile::default(), Path::new("/usr")).unwrap();
        let annotations = annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let resources = serde_json::from_str(resources).unwrap();
        VmSize::of(&config, &annotations, VmSize::of_limits(&resources))
    }

    #[test]
    fn limits_make_a_vm_larger_and_never_smaller() {
        for (resources, vcpus, memory_mib) in [
            ("{}", 1, 512),
            (r#"{"memory":{"limit":67108864}}"#, 1, 512),
            (r#"{"memory":{"limit":1073741825}}"#, 1, 1153),
            (r#"{"memory":{"limit":-1}}"#, 1, 512),
            (
                r#"{"memory":{"limit":9223372036854771712}}"#,
                1,
                host_memory_mib() + 128,
            ),
            (r#"{"cpu":{"quota":250000,"period":100000}}"#, 3, 512),
            (r#"{"cpu":{"quota":-1,"period":100000}}"#, 1, 512),
            (r#"{"cpu":{"quota":100000,"period":0}}"#, 1, 512),
            (r#"{"cpu":{"quota":100000000,"period":1000}}"#, 32, 512),
        ] {
            assert_eq!(
                size(&[], resources).unwrap(),
                VmSize { vcpus, memory_mib },
                "{resources}"
            );
        }
    }

    #[test]
    fn an_update_changes_the_limits_that_it_names() {
        let had = VmSize {
            vcpus: 2,
            memory_mib: 100,
        };
        for (resources, vcpus, memory_mib) in [
            ("{}", 2, 100),
            (
                r#"{"memory":{"limit":1073741824}}"#,
                2,
                1024.min(host_memory_mib()),
            ),
            (r#"{"memory":{"limit":-1}}"#, 2, 0),
            (r#"{"memory":{"swap":1}}"#, 2, 100),
            (r#"{"cpu":{"quota":50000,"period":100000}}"#, 1, 100),
            (r#"{"cpu":{"quota":-1,"period":100000}}"#, 0, 100),
            (r#"{"cpu":{"shares":512}}"#, 2, 100),
        ] {
            let limits = serde_json::from_str(resources).unwrap();
            let expected = VmSize { vcpus, memory_mib };
            assert_eq!(had.updated(&limits), expected, "{resources}");
        }
    }

    #[test]
    fn a_vm_grows_to_what_the_configuration_says_and_never_to_less_than_it_has() {
        let mut config = Config::resolve(ConfigFile::default(), Path::new("/usr")).unwrap();
        (config.max_vcpus, config.max_memory_mib) = (Some(4), Some(1024));
        for (size, most) in [
            ((1, 512), (4, 1024)),
            ((8, 512), (8, 1024)),
            ((1, 2048), (4, 2048)),
        ] {
            let of = |(vcpus, memory_mib)| VmSize { vcpus, memory_mib };
            assert_eq!(VmSize::most(&config, of(size)), of(most));
        }
    }

    #[test]
    fn annotations_decide_and_are_checked() {
        let limit = r#"{"memory":{"limit":1073741824}}"#;
        assert_eq!(
            size(&[(VCPUS, "4"), (MEMORY, "256")], limit).unwrap(),
            VmSize {
                vcpus: 4,
                memory_mib: 256
            }
        );
        for annotation in [
            (VCPUS, "0"),
            (VCPUS, "33"),
            (VCPUS, "two"),
            (VCPUS, ""),
            (MEMORY, "63"),
            (MEMORY, "-1"),
            (MEMORY, "1G"),
            (MEMORY, "4294967296"),
        ] {
            size(&[annotation], "{}").unwrap_err();
        }
    }
}
