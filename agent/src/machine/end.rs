//! The guest's end.

use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};
use tokio::time::{Instant, sleep};

use crate::process::Reaper;

/// How long killed processes may take to go.
const GOING: Duration = Duration::from_secs(3);

/// Kills every process but this one, and writes back and unmounts the file systems that outlive the guest.
pub async fn end(reaper: &Reaper) {
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::error!(%error, "killing all processes failed"),
    }
    let end = Instant::now() + GOING;
    loop {
        reaper.reap();
        if !reaper.has_children() || Instant::now() > end {
            break;
        }
        sleep(Duration::from_millis(1)).await;
    }
    sync();
    // The latest first: they may lie below earlier ones.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut words = line.split(' ').skip(1);
        let (Some(target), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        let outlives = matches!(kind, "virtiofs" | "ext4" | "xfs" | "btrfs");
        if outlives && let Err(error) = umount2(target, MntFlags::MNT_DETACH) {
            tracing::warn!(target, %error, "unmounting failed");
        }
    }
}

/// Resets the machine; the VMM takes it for the guest's clean end. Returns only when the kernel refuses.
///
/// # Errors
/// As reboot(2).
pub fn power_reset() -> nix::Result<std::convert::Infallible> {
    reboot(RebootMode::RB_AUTOBOOT)
}
