//! What Kubernetes says that a pod's containers may use together, before there are any. Its runtimes write the sum of their
//! limits into annotations of the container that holds the pod:
//!
//! | by | annotation | value |
//! |---|---|---|
//! | containerd | `io.kubernetes.cri.sandbox-cpu-quota`, `….sandbox-cpu-period`, `….sandbox-memory` | numbers, as in cgroups |
//! | CRI-O | `pod-linux-resources.crio.io`, once `io.kubernetes.cri-o.PodLinuxResources` | CRI's LinuxContainerResources as JSON |

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResources};
use serde::Deserialize;

use super::ConfigError;
use super::sizing::VmSize;

const QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
/// The name of today first.
const CRIO: [&str; 2] = [
    "pod-linux-resources.crio.io",
    "io.kubernetes.cri-o.PodLinuxResources",
];

/// As cgroups have them; zero where there is no limit.
#[derive(Debug, Default, Deserialize)]
struct PodLimits {
    #[serde(default)]
    cpu_quota: i64,
    #[serde(default)]
    cpu_period: i64,
    #[serde(default)]
    memory_limit_in_bytes: i64,
}

/// What the containers of the pod that is to be made may use at the most; zero where there is no limit, and for what is
/// no pod.
///
/// # Errors
/// An annotation is not what its runtime writes.
pub(super) fn limits(annotations: &HashMap<String, String>) -> Result<VmSize, ConfigError> {
    let crio = CRIO
        .into_iter()
        .find_map(|name| annotations.get_key_value(name));
    let limits = match crio {
        Some((name, value)) => serde_json::from_str::<Option<PodLimits>>(value)
            .map_err(|_| ConfigError::Annotation {
                name: name.clone(),
                value: value.clone(),
                expected: "the resources of a pod in JSON are expected",
            })?
            .unwrap_or_default(),
        None => PodLimits {
            cpu_quota: number(annotations, QUOTA)?,
            cpu_period: number(annotations, PERIOD)?,
            memory_limit_in_bytes: number(annotations, MEMORY)?,
        },
    };
    Ok(VmSize::of_limits(&limits.resources()))
}

impl PodLimits {
    fn resources(&self) -> LinuxResources {
        let mut resources = LinuxResources::default();
        if let Ok(period) = u64::try_from(self.cpu_period) {
            let cpu = LinuxCpuBuilder::default()
                .quota(self.cpu_quota)
                .period(period);
            resources.set_cpu(cpu.build().ok());
        }
        let memory = LinuxMemoryBuilder::default().limit(self.memory_limit_in_bytes);
        resources.set_memory(memory.build().ok());
        resources
    }
}

/// Zero if there is no such annotation.
fn number(annotations: &HashMap<String, String>, name: &'static str) -> Result<i64, ConfigError> {
    let Some(value) = annotations.get(name) else {
        return Ok(0);
    };
    value.parse().map_err(|_| ConfigError::Value {
        name,
        value: value.clone(),
        expected: "a number is expected",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<(u8, u32), ConfigError> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let size = limits(&annotations.iter().map(owned).collect())?;
        Ok((size.vcpus, size.memory_mib))
    }

    #[test]
    fn the_limits_of_a_pod_are_read_as_its_runtime_writes_them() {
        let cpus = |quota| [(QUOTA, quota), (PERIOD, "100000")];
        for (annotations, expected) in [
            (&[][..], (0, 0)),
            (&cpus("150000"), (2, 0)),
            (&cpus("0"), (0, 0)),
            (&cpus("-1"), (0, 0)),
            (&[(QUOTA, "100000")], (0, 0)),
            (&[(MEMORY, "104857600")], (0, 100)),
            (&[(MEMORY, "0")], (0, 0)),
            (
                &[(
                    CRIO[0],
                    r#"{"cpu_period":1000,"cpu_quota":3000,"memory_limit_in_bytes":1048576}"#,
                )],
                (3, 1),
            ),
            (&[(CRIO[1], r#"{"cpu_shares":2,"unified":{}}"#)], (0, 0)),
            (&[(CRIO[1], "null")], (0, 0)),
        ] {
            assert_eq!(of(annotations).unwrap(), expected, "{annotations:?}");
        }
        for annotation in [
            (QUOTA, "many"),
            (MEMORY, "1Gi"),
            (CRIO[0], "{"),
            (CRIO[1], "7"),
        ] {
            of(&[annotation]).unwrap_err();
        }
    }
}
