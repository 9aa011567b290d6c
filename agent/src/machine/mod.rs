//! The guest as a whole: its clock, entropy, CPUs, name, and its end.

mod cpus;
mod end;

pub use cpus::{CpuError, bring_online};
pub use end::{end, power_reset};

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::sys;

/// Sets CLOCK_REALTIME to nanoseconds since the epoch.
///
/// # Errors
/// As clock_settime(2); EINVAL for a time before the epoch.
pub fn set_clock(realtime: i64) -> nix::Result<()> {
    let since = u64::try_from(realtime).map_err(|_| nix::errno::Errno::EINVAL)?;
    let time = TimeSpec::from_duration(Duration::from_nanos(since));
    clock_settime(ClockId::CLOCK_REALTIME, time)
}

/// Adds entropy to the kernel's pool, and has its generator use it at once.
///
/// # Errors
/// When the device cannot be opened or refuses.
pub fn reseed(data: &[u8]) -> io::Result<()> {
    let random = File::options().write(true).open("/dev/urandom")?;
    Ok(sys::add_entropy(random.as_fd(), data)?)
}

/// The kernel's release, as `uname -r` has it.
///
/// # Errors
/// When it cannot be read.
pub fn kernel_release() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim_end()
        .to_owned())
}

/// Seconds since boot.
///
/// # Errors
/// When it cannot be read.
pub fn uptime() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/uptime")?;
    text.split_whitespace()
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// When it booted, in seconds since the epoch.
///
/// # Errors
/// When it cannot be read.
pub fn boot_time() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    text.lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The guest's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What the kernel has.
    pub total: u64,
    /// What programs could still have.
    pub available: u64,
}

/// How much memory there is.
///
/// # Errors
/// When it cannot be read.
pub fn memory() -> io::Result<Memory> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name| -> io::Result<u64> {
        text.lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .map(|kib: u64| kib * 1024)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    };
    Ok(Memory {
        total: field("MemTotal:")?,
        available: field("MemAvailable:")?,
    })
}

/// Sets the guest's host name, which containers start with unless they set one.
///
/// # Errors
/// As sethostname(2).
pub fn set_hostname(name: &str) -> nix::Result<()> {
    nix::unistd::sethostname(name)
}
