//! A sandbox is kept monitored: who kills its monitor ends no more than one life of it.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::container::ContainerId;
use crate::error::chain;
use crate::process_identity::ProcessIdentity;
use crate::sandbox::ensure_monitor;
use crate::store::{Store, StoreError};

/// A monitor that lived for so long did not fail by what it found at its start.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long the next one is waited with after one that did not, each time twice as long, at most [`PAUSE_MOST`].
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MOST: Duration = Duration::from_secs(60);
/// How long it is waited for the end of a monitor at a time.
const LOOK: Duration = Duration::from_secs(3600);

/// Starts a thread that makes the sandbox's monitor anew whenever that ends before the VM. It sleeps meanwhile.
///
/// A process proxy of each container has it: the proxy is there as long as the container is, and when it is killed the
/// container is over. Several of one sandbox agree by the sandbox's lock, under which only the first finds a monitor
/// missing.
///
/// # Errors
/// There can be no thread.
pub(crate) fn guard(store: Store, sandbox: ContainerId) -> io::Result<()> {
    thread::Builder::new()
        .name("monitor-guard".into())
        .spawn(move || watch_over(&store, &sandbox))
        .map(drop)
}

fn watch_over(store: &Store, sandbox: &ContainerId) {
    let mut pause = PauseAfterFailures::default();
    loop {
        let started = Instant::now();
        match await_end(store, sandbox) {
            Ok(true) => {}
            Ok(false) | Err(StoreError::NoSandbox { .. }) => return,
            Err(error) => tracing::warn!(%sandbox, error = %chain(&error), "its monitor"),
        }
        thread::sleep(pause.after(started.elapsed()));
        // While the sandbox is being ended, this waits for its lock, and then finds no VM.
        if let Err(error) = ensure_monitor(store, sandbox) {
            tracing::warn!(%sandbox, error = %chain(&error), "its monitor has ended");
        }
    }
}

/// Waits until the sandbox has no monitor; says whether its VM runs on.
fn await_end(store: &Store, sandbox: &ContainerId) -> Result<bool, StoreError> {
    let record = store.sandbox(sandbox)?;
    if let Some(monitor) = record.monitor {
        await_end_of(monitor);
    }
    Ok(record.vmm.is_some_and(|vmm| vmm.is_alive()))
}

fn await_end_of(monitor: ProcessIdentity) {
    while !monitor.wait_end(LOOK) {}
    // One that this process has made stays a zombie else. Others are not its children, which is no failure.
    let _ = waitpid(Pid::from_raw(monitor.pid), Some(WaitPidFlag::WNOHANG));
}

/// How long to wait with the next monitor.
#[derive(Debug, Default)]
struct PauseAfterFailures {
    last: Option<Duration>,
}

impl PauseAfterFailures {
    /// After a monitor that `lived` so long: nothing, if it did for long, or was the first that did not.
    fn after(&mut self, lived: Duration) -> Duration {
        let pause = match self.last {
            _ if lived >= HEALTHY => None,
            None => Some(Duration::ZERO),
            Some(last) => Some((last * 2).clamp(PAUSE_FIRST, PAUSE_MOST)),
        };
        self.last = pause;
        pause.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_is_made_anew_at_once_and_one_that_fails_again_and_again_ever_more_seldom() {
        let mut pause = PauseAfterFailures::default();
        assert_eq!(pause.after(HEALTHY), Duration::ZERO);
        let short = Duration::from_millis(50);
        let pauses: Vec<Duration> = (0..40).map(|_| pause.after(short)).collect();
        assert_eq!(
            pauses[..4],
            [
                Duration::ZERO,
                PAUSE_FIRST,
                PAUSE_FIRST * 2,
                PAUSE_FIRST * 4
            ]
        );
        assert_eq!(pauses.last(), Some(&PAUSE_MOST));
        assert_eq!(pause.after(HEALTHY), Duration::ZERO);
        assert_eq!(pause.after(short), Duration::ZERO);
    }
}
