//! What Stats answers: `io.containerd.cgroups.v2.Metrics`, from what the container's cgroup in the guest says and what has
//! passed through the NICs of its sandbox.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PidsStat,
};
use hull_runtime::container::{CgroupFiles, Reading};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageFull};

use crate::error::Error;

/// As containerd's clients read it.
pub(crate) fn encode(reading: &Reading) -> Result<Any, Error> {
    let metrics = metrics(reading);
    let mut any = Any::new();
    any.type_url = Metrics::descriptor().full_name().into();
    any.value = metrics.write_to_bytes().map_err(|error| Error::Invalid {
        what: "metrics",
        problem: error.to_string(),
    })?;
    Ok(any)
}

fn metrics(reading: &Reading) -> Metrics {
    let files = &reading.files;
    let mut metrics = Metrics::new();
    metrics.pids = Some(pids(files)).into();
    metrics.cpu = Some(cpu(files)).into();
    metrics.memory = Some(memory(files)).into();
    metrics.memory_events = Some(memory_events(files)).into();
    metrics.io = Some(io(files)).into();
    metrics.network = reading.nics.iter().map(network).collect();
    metrics
}

fn pids(files: &CgroupFiles) -> PidsStat {
    let mut pids = PidsStat::new();
    pids.current = files.number("pids.current");
    // Zero is none.
    pids.limit = match files.number("pids.max") {
        u64::MAX => 0,
        limit => limit,
    };
    pids
}

fn cpu(files: &CgroupFiles) -> CPUStat {
    let of = |key| files.keyed("cpu.stat", key);
    let mut cpu = CPUStat::new();
    cpu.usage_usec = of("usage_usec");
    cpu.user_usec = of("user_usec");
    cpu.system_usec = of("system_usec");
    cpu.nr_periods = of("nr_periods");
    cpu.nr_throttled = of("nr_throttled");
    cpu.throttled_usec = of("throttled_usec");
    cpu.nr_bursts = of("nr_bursts");
    cpu.burst_usec = of("burst_usec");
    cpu
}

fn memory(files: &CgroupFiles) -> MemoryStat {
    let mut memory = MemoryStat::new();
    for (key, value) in files.table("memory.stat") {
        let field = match key {
            "anon" => &mut memory.anon,
            "file" => &mut memory.file,
            "kernel_stack" => &mut memory.kernel_stack,
            "slab" => &mut memory.slab,
            "sock" => &mut memory.sock,
            "shmem" => &mut memory.shmem,
            "file_mapped" => &mut memory.file_mapped,
            "file_dirty" => &mut memory.file_dirty,
            "file_writeback" => &mut memory.file_writeback,
            "anon_thp" => &mut memory.anon_thp,
            "inactive_anon" => &mut memory.inactive_anon,
            "active_anon" => &mut memory.active_anon,
            "inactive_file" => &mut memory.inactive_file,
            "active_file" => &mut memory.active_file,
            "unevictable" => &mut memory.unevictable,
            "slab_reclaimable" => &mut memory.slab_reclaimable,
            "slab_unreclaimable" => &mut memory.slab_unreclaimable,
            "pgfault" => &mut memory.pgfault,
            "pgmajfault" => &mut memory.pgmajfault,
            "pgrefill" => &mut memory.pgrefill,
            "pgscan" => &mut memory.pgscan,
            "pgsteal" => &mut memory.pgsteal,
            "pgactivate" => &mut memory.pgactivate,
            "pgdeactivate" => &mut memory.pgdeactivate,
            "pglazyfree" => &mut memory.pglazyfree,
            "pglazyfreed" => &mut memory.pglazyfreed,
            "thp_fault_alloc" => &mut memory.thp_fault_alloc,
            "thp_collapse_alloc" => &mut memory.thp_collapse_alloc,
            _ => continue,
        };
        *field = value;
    }
    memory.usage = files.number("memory.current");
    memory.usage_limit = files.number("memory.max");
    memory.max_usage = files.number("memory.peak");
    memory.swap_usage = files.number("memory.swap.current");
    memory.swap_limit = files.number("memory.swap.max");
    memory
}

fn memory_events(files: &CgroupFiles) -> MemoryEvents {
    let of = |key| files.keyed("memory.events", key);
    let mut events = MemoryEvents::new();
    events.low = of("low");
    events.high = of("high");
    events.max = of("max");
    events.oom = of("oom");
    events.oom_kill = of("oom_kill");
    events.oom_group_kill = of("oom_group_kill");
    events
}

/// Lines like `253:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn io(files: &CgroupFiles) -> IOStat {
    let mut io = IOStat::new();
    io.usage = files.text("io.stat").lines().filter_map(device).collect();
    io
}

fn device(line: &str) -> Option<IOEntry> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut entry = IOEntry::new();
    entry.major = major.parse().ok()?;
    entry.minor = minor.parse().ok()?;
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let field = match key {
            "rbytes" => &mut entry.rbytes,
            "wbytes" => &mut entry.wbytes,
            "rios" => &mut entry.rios,
            "wios" => &mut entry.wios,
            _ => continue,
        };
        *field = value.parse().unwrap_or(0);
    }
    Some(entry)
}

fn network((name, passed): &(String, hull_runtime::container::NicTraffic)) -> NetworkStat {
    let mut network = NetworkStat::new();
    network.name.clone_from(name);
    network.rx_bytes = passed.received.bytes;
    network.rx_packets = passed.received.packets;
    network.rx_dropped = passed.received.dropped;
    network.tx_bytes = passed.sent.bytes;
    network.tx_packets = passed.sent.packets;
    network.tx_dropped = passed.sent.dropped;
    network
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_io_stat_is_read_and_nonsense_is_not() {
        let entry = device("253:1 rbytes=10 wbytes=20 rios=3 wios=x dbytes=0").unwrap();
        assert_eq!((entry.major, entry.minor), (253, 1));
        assert_eq!((entry.rbytes, entry.wbytes), (10, 20));
        assert_eq!((entry.rios, entry.wios), (3, 0));
        for line in ["", "rbytes=1", "a:b rbytes=1"] {
            assert!(device(line).is_none(), "{line}");
        }
    }
}
