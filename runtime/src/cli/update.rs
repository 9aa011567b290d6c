//! `hull update`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use hull_runtime::Runtime;
use hull_runtime::container::update;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::{container_id, refuse};

/// Change the limits of a container
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Take the limits from this file, or with "-" from standard input, which holds an OCI resources object; the other
    /// options are not looked at then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of block I/O on the host, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Microseconds in which the quota may be used up
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPU time in each period, in microseconds; -1 for no limit
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// What may be used in a period beyond the quota, from periods before
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_burst: Option<u64>,
    /// Weight of CPU time
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// 1 for a container that gets CPU time only when nothing else wants it
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// The CPUs of the guest that may be used
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory, in bytes or with a unit (b, k, m, g); -1 for no limit
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = bytes)]
    memory: Option<i64>,
    /// Memory that is not to be taken away
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = bytes)]
    memory_reservation: Option<i64>,
    /// Memory and swap together
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = bytes)]
    memory_swap: Option<i64>,
    /// Processes and threads; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Refused: a guest has one memory node
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Refused: cgroups of version 2 have no real-time limits
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<u64>,
    /// Refused: cgroups of version 2 have no real-time limits
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_runtime: Option<i64>,
    /// Refused: Intel RDT is the host's
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Refused: Intel RDT is the host's
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// The container's id
    id: String,
}

pub(super) fn run(runtime: &Runtime, arguments: Arguments) -> anyhow::Result<u8> {
    let id = container_id(&arguments.id)?;
    let resources = match &arguments.resources {
        Some(path) => read(path)?,
        None => arguments.resources()?,
    };
    update(runtime, &id, &resources)?;
    Ok(0)
}

fn read(path: &Path) -> anyhow::Result<LinuxResources> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut text)
            .context("standard input")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    }
    serde_json::from_str(&text).with_context(|| format!("--resources {}", path.display()))
}

impl Arguments {
    fn resources(self) -> anyhow::Result<LinuxResources> {
        refuse(&[
            (
                "--cpuset-mems",
                self.cpuset_mems.is_some(),
                "a guest has one memory node",
            ),
            (
                "--cpu-rt-period",
                self.cpu_rt_period.is_some(),
                "cgroups of version 2 have no real-time limits",
            ),
            (
                "--cpu-rt-runtime",
                self.cpu_rt_runtime.is_some(),
                "cgroups of version 2 have no real-time limits",
            ),
            (
                "--l3-cache-schema",
                self.l3_cache_schema.is_some(),
                "Intel RDT is the host's",
            ),
            (
                "--mem-bw-schema",
                self.mem_bw_schema.is_some(),
                "Intel RDT is the host's",
            ),
        ])?;
        let mut cpu = LinuxCpu::default();
        cpu.set_period(self.cpu_period)
            .set_quota(self.cpu_quota)
            .set_burst(self.cpu_burst)
            .set_shares(self.cpu_share)
            .set_idle(self.cpu_idle)
            .set_cpus(self.cpuset_cpus);
        let mut memory = LinuxMemory::default();
        memory
            .set_limit(self.memory)
            .set_reservation(self.memory_reservation)
            .set_swap(self.memory_swap);
        let mut resources = LinuxResources::default();
        resources
            .set_devices(None)
            .set_cpu(Some(cpu))
            .set_memory(Some(memory))
            .set_pids(self.pids_limit.map(|limit| {
                let mut pids = LinuxPids::default();
                pids.set_limit(limit);
                pids
            }))
            .set_block_io(self.blkio_weight.map(|weight| {
                let mut block_io = LinuxBlockIo::default();
                block_io.set_weight(Some(weight));
                block_io
            }));
        Ok(resources)
    }
}

/// `512m`, `1g`, `1048576`, `-1`: units are powers of 1024, as runc has them.
fn bytes(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let lower = lower.strip_suffix('i').unwrap_or(lower);
    let (number, shift) = match lower.char_indices().last() {
        Some((at, 'k')) => (&lower[..at], 10),
        Some((at, 'm')) => (&lower[..at], 20),
        Some((at, 'g')) => (&lower[..at], 30),
        Some((at, 't')) => (&lower[..at], 40),
        _ => (lower, 0),
    };
    let number: i64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no number of bytes"))?;
    if number < -1 || (number < 0 && shift > 0) {
        return Err(format!("{text:?} is less than nothing"));
    }
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_of_1024() {
        for (text, number) in [
            ("0", 0),
            ("-1", -1),
            ("1048576", 1 << 20),
            ("512m", 512 << 20),
            ("1GB", 1 << 30),
            ("64MiB", 64 << 20),
            ("7k", 7 << 10),
            ("9b", 9),
        ] {
            assert_eq!(bytes(text), Ok(number), "{text}");
        }
        for text in ["", "m", "-2", "-1k", "1x", "1.5g", "9999999999g"] {
            bytes(text).unwrap_err();
        }
    }
}
