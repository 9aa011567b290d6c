//! `linux.resources.unified` (config-linux.md "Unified"): files of the container's cgroup with what is written to them. The
//! guest writes them as they stand; the host's cgroup and the VM's size go by the limits that they mean.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

/// Controllers whose files bound a VM as they bound a container. Its memory takes more than the container's.
const SAME_FOR_VM: [&str; 3] = ["cpu.", "cpuset.", "io."];

/// The period of a `cpu.max` that names none, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// `limits` with the CPU time and the memory that its files say, which come after its other limits.
pub fn with_unified(limits: &LinuxResources) -> LinuxResources {
    let mut all = limits.clone();
    let file = |name| {
        limits
            .unified()
            .as_ref()?
            .get(name)
            .map(|value| value.trim())
    };
    if let Some((quota, period)) = file("cpu.max").and_then(quota) {
        let mut cpu: LinuxCpu = limits.cpu().clone().unwrap_or_default();
        cpu.set_quota(Some(quota)).set_period(Some(period));
        all.set_cpu(Some(cpu));
    }
    if let Some(limit) = file("memory.max").and_then(bytes) {
        let mut memory: LinuxMemory = limits.memory().unwrap_or_default();
        memory.set_limit(Some(limit));
        all.set_memory(Some(memory));
    }
    all
}

/// The files that bound a VM.
pub(super) fn of_vm(limits: &LinuxResources) -> HashMap<String, String> {
    let files = limits.unified().iter().flatten();
    files
        .filter(|(name, _)| SAME_FOR_VM.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// A `cpu.max`: the quota, -1 for none, and the period.
fn quota(text: &str) -> Option<(i64, u64)> {
    let (quota, period) = text.split_once(' ').unwrap_or((text, ""));
    let quota = match quota {
        "max" => -1,
        quota => quota.parse().ok()?,
    };
    match period.trim() {
        "" => Some((quota, DEFAULT_PERIOD)),
        period => Some((quota, period.parse().ok()?)),
    }
}

/// A `memory.max` in bytes, -1 for none; the kernel takes K, M, G and T.
fn bytes(text: &str) -> Option<i64> {
    if text == "max" {
        return Some(-1);
    }
    let number = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let shift = match text.get(number.len()..)?.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn limits(json: &Value) -> LinuxResources {
        serde_json::from_value(json.clone()).unwrap()
    }

    #[test]
    fn files_come_after_other_limits() {
        let given = limits(&json!({
            "cpu": { "shares": 512, "quota": 40_000, "period": 100_000 },
            "memory": { "limit": 1024, "swap": 4096 },
            "unified": { "cpu.max": "5000 50000", "memory.max": "64M", "pids.max": "9", "io.max": "8:0 rbps=1" },
        }));
        let all = with_unified(&given);
        let (cpu, memory) = (all.cpu().clone().unwrap(), all.memory().unwrap());
        assert_eq!(
            (cpu.shares(), cpu.quota(), cpu.period()),
            (Some(512), Some(5000), Some(50_000))
        );
        assert_eq!(
            (memory.limit(), memory.swap()),
            (Some(64 << 20), Some(4096))
        );
        let mut files: Vec<_> = of_vm(&given).into_keys().collect();
        files.sort();
        assert_eq!(files, ["cpu.max", "io.max"]);
        let none = limits(&json!({ "pids": { "limit": 9 } }));
        assert_eq!(with_unified(&none), none);
    }

    #[test]
    fn files_are_read_as_the_kernel_does() {
        assert_eq!(quota("max"), Some((-1, DEFAULT_PERIOD)));
        assert_eq!(quota("max 20000"), Some((-1, 20_000)));
        assert_eq!(quota("10000"), Some((10_000, DEFAULT_PERIOD)));
        assert_eq!(bytes("max"), Some(-1));
        assert_eq!(bytes("2g"), Some(2 << 30));
        assert_eq!(bytes("4096"), Some(4096));
        for text in ["", "M", "1X", "1 M", "9999999999T"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
