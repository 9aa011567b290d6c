//! `events`: what a container uses, in the shape in which runc tells it (its `types/events.go`, which engines read).

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use hull_agent_protocol::agent::StatsContainerResponse;
pub use hull_vmm_protocol::control::NicTraffic;
use libcgroups::common::DEFAULT_CGROUP_ROOT;
use serde::Serialize;

use super::ContainerId;
use super::state::check_live;
use crate::Runtime;
use crate::error::Error;
use crate::sandbox::{PARTING_LIMIT, agent_of, traffic};
use crate::store::ContainerRecord;

/// How long the VMM may take to say what has passed through its NICs.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(30);

/// One line of `events`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// `stats`, or `oom`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The container.
    pub id: ContainerId,
    /// What it uses, with `stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Stats>,
}

/// What a container uses, as its cgroup in the guest has it, and what has passed through the NICs of its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    cpu: Cpu,
    memory: Memory,
    pids: Pids,
    network_interfaces: Vec<NetworkInterface>,
}

/// A NIC, as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkInterface {
    name: String,
    rx_bytes: u64,
    rx_packets: u64,
    rx_errors: u64,
    rx_dropped: u64,
    tx_bytes: u64,
    tx_packets: u64,
    tx_errors: u64,
    tx_dropped: u64,
}

impl NetworkInterface {
    /// Frames that could not be passed on count as dropped, whatever was wrong with them.
    fn new((name, passed): (String, NicTraffic)) -> Self {
        Self {
            name,
            rx_bytes: passed.received.bytes,
            rx_packets: passed.received.packets,
            rx_errors: 0,
            rx_dropped: passed.received.dropped,
            tx_bytes: passed.sent.bytes,
            tx_packets: passed.sent.packets,
            tx_errors: 0,
            tx_dropped: passed.sent.dropped,
        }
    }
}

/// In nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct CpuUsage {
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    periods: u64,
    throttled_periods: u64,
    throttled_time: u64,
}

/// In bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Memory {
    /// Of files that could be read again.
    cache: u64,
    usage: Usage,
    swap: Usage,
    /// `memory.stat`.
    raw: HashMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Usage {
    limit: u64,
    usage: u64,
    max: u64,
    failcnt: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Pids {
    current: u64,
    /// Zero for none.
    limit: u64,
}

/// Calls `tell` with what a container uses, again after each `interval`, and when the guest's kernel has ended a process
/// of it for want of memory; until `tell` says to stop, or the container has ended.
///
/// # Errors
/// It does not run when this begins, or its agent does not answer while it does.
pub fn events(
    runtime: &Runtime,
    id: &ContainerId,
    interval: Duration,
    mut tell: impl FnMut(&Event) -> bool,
) -> Result<(), Error> {
    let record = runtime.store.container(id)?;
    check_live(&runtime.store, &record)?;
    let mut out_of_memory = None;
    loop {
        let Reading { files, nics } = match read_running(runtime, &record) {
            Ok(reading) => reading,
            // The VM is gone a little before the container's process on the host is.
            Err(_)
                if record
                    .proxy
                    .is_none_or(|proxy| proxy.wait_end(PARTING_LIMIT)) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let kills = files.keyed("memory.events", "oom_kill");
        let event = |kind, data| Event {
            kind,
            id: id.clone(),
            data,
        };
        if out_of_memory.is_some_and(|before| kills > before) && !tell(&event("oom", None)) {
            return Ok(());
        }
        out_of_memory = Some(kills);
        if !tell(&event("stats", Some(files.stats(nics)))) {
            return Ok(());
        }
        std::thread::sleep(interval);
        if check_live(&runtime.store, &record).is_err() {
            return Ok(());
        }
    }
}

/// What a container uses at one moment.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Its cgroup in the guest.
    pub files: CgroupFiles,
    /// What has passed through the NICs of its sandbox, by name.
    pub nics: Vec<(String, NicTraffic)>,
}

/// What the container `id` uses now.
///
/// # Errors
/// It does not run, or its agent does not answer.
pub fn read(runtime: &Runtime, id: &ContainerId) -> Result<Reading, Error> {
    let record = runtime.store.container(id)?;
    check_live(&runtime.store, &record)?;
    read_running(runtime, &record)
}

fn read_running(runtime: &Runtime, record: &ContainerRecord) -> Result<Reading, Error> {
    let answer = agent_of(&runtime.store, &record.sandbox_id)?.stats_container(&record.id)?;
    Ok(Reading {
        files: CgroupFiles(answer),
        nics: traffic(&runtime.store, &record.sandbox_id, TRAFFIC_LIMIT)?,
    })
}

/// The files of a container's cgroup (`Documentation/admin-guide/cgroup-v2.rst` of the kernel). A guest may write into
/// them what it likes: what is no number counts as zero.
#[derive(Clone, Debug)]
pub struct CgroupFiles(StatsContainerResponse);

impl From<StatsContainerResponse> for CgroupFiles {
    fn from(answer: StatsContainerResponse) -> Self {
        Self(answer)
    }
}

impl CgroupFiles {
    /// Those of the cgroup of the host that a process is in; none if it has ended.
    pub(crate) fn of_process(pid: i32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        // Version 2 has the one line with no controllers.
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let entries = std::fs::read_dir(Path::new(DEFAULT_CGROUP_ROOT).join(path)).ok()?;
        let mut answer = StatsContainerResponse::new();
        for entry in entries.flatten() {
            // Some can only be written.
            if let (Some(name), Ok(text)) = (
                entry.file_name().to_str(),
                std::fs::read_to_string(entry.path()),
            ) {
                answer.files.insert(name.to_owned(), text);
            }
        }
        Some(Self(answer))
    }

    /// A file as it reads, without blanks around it; empty if there is none.
    pub fn text(&self, file: &str) -> &str {
        self.0.files.get(file).map_or("", |text| text.trim())
    }

    /// A file that holds one number; one that says `max` holds the largest.
    pub fn number(&self, file: &str) -> u64 {
        match self.text(file) {
            "max" => u64::MAX,
            text => text.parse().unwrap_or(0),
        }
    }

    /// The lines `key number` of a file.
    pub fn table(&self, file: &str) -> impl Iterator<Item = (&str, u64)> {
        self.text(file).lines().filter_map(|line| {
            let (key, number) = line.split_once(' ')?;
            Some((key, number.trim().parse().ok()?))
        })
    }

    /// The number beside `key` in such a file.
    pub fn keyed(&self, file: &str, key: &str) -> u64 {
        self.table(file)
            .find_map(|(found, number)| (found == key).then_some(number))
            .unwrap_or(0)
    }

    fn stats(&self, passed: Vec<(String, NicTraffic)>) -> Stats {
        let nanoseconds = |key| self.keyed("cpu.stat", key).saturating_mul(1000);
        let raw: HashMap<String, u64> = self
            .table("memory.stat")
            .map(|(key, number)| (key.to_owned(), number))
            .collect();
        Stats {
            cpu: Cpu {
                usage: CpuUsage {
                    total: nanoseconds("usage_usec"),
                    kernel: nanoseconds("system_usec"),
                    user: nanoseconds("user_usec"),
                },
                throttling: Throttling {
                    periods: self.keyed("cpu.stat", "nr_periods"),
                    throttled_periods: self.keyed("cpu.stat", "nr_throttled"),
                    throttled_time: nanoseconds("throttled_usec"),
                },
            },
            memory: Memory {
                cache: raw.get("file").copied().unwrap_or(0),
                usage: Usage {
                    limit: self.number("memory.max"),
                    usage: self.number("memory.current"),
                    max: self.number("memory.peak"),
                    failcnt: self.keyed("memory.events", "max"),
                },
                swap: Usage {
                    limit: self.number("memory.swap.max"),
                    usage: self.number("memory.swap.current"),
                    ..Usage::default()
                },
                raw,
            },
            pids: Pids {
                current: self.number("pids.current"),
                limit: match self.number("pids.max") {
                    u64::MAX => 0,
                    limit => limit,
                },
            },
            network_interfaces: passed.into_iter().map(NetworkInterface::new).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_files_become_runcs_numbers() {
        let mut answer = StatsContainerResponse::new();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods nonsense\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 7\nfile 9\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
        ] {
            answer.files.insert(file.into(), text.into());
        }
        let mut passed = NicTraffic::default();
        passed.received.bytes = 11;
        passed.sent.dropped = 12;
        let passed = vec![("eth0".to_owned(), passed)];
        let stats = serde_json::to_value(CgroupFiles(answer).stats(passed)).unwrap();
        assert_eq!(stats["cpu"]["usage"]["total"], 5000);
        assert_eq!(stats["cpu"]["throttling"]["periods"], 0);
        assert_eq!(stats["memory"]["usage"]["usage"], 4096);
        assert_eq!(stats["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(stats["memory"]["cache"], 9);
        assert_eq!(stats["memory"]["raw"]["anon"], 7);
        assert_eq!(stats["pids"]["current"], 2);
        assert_eq!(stats["pids"]["limit"], 0);
        let nic = &stats["network_interfaces"][0];
        assert_eq!(
            (&nic["Name"], &nic["RxBytes"], &nic["TxDropped"]),
            (&"eth0".into(), &11.into(), &12.into())
        );
    }
}
