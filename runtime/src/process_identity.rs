//! A process of the host as it can be named in a file: its pid and when it started, which no other process shares.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Names a process for as long as the machine is up, however often its pid is given to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The pid, in the pid namespace of whoever wrote it.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_time: u64,
}

impl ProcessIdentity {
    /// The process that has `pid` now.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
        let start_time = start_time(pid)?;
        Ok(Self { pid, start_time })
    }

    /// This process.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// A descriptor of the process; nothing if it has ended and was reaped. A zombie still has one.
    pub fn open(&self) -> Option<OwnedFd> {
        let pidfd = sys::pidfd_open(self.pid).ok()?;
        // Checked after opening: from here on the descriptor names one process, whatever becomes of its pid.
        (start_time(self.pid).ok()? == self.start_time).then_some(pidfd)
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        self.open()
            .is_some_and(|pidfd| !has_ended(&pidfd, Duration::ZERO))
    }

    /// Sends signal `number`; nothing happens if the process has ended.
    ///
    /// # Errors
    /// The number is not a signal, or this process may not send it.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        let Some(pidfd) = self.open() else {
            return Ok(());
        };
        match sys::pidfd_send_signal(pidfd.as_fd(), number) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            answer => answer,
        }
    }

    /// Waits for its end, at most `limit`; says whether it has ended.
    pub fn wait_end(&self, limit: Duration) -> bool {
        self.open().is_none_or(|pidfd| has_ended(&pidfd, limit))
    }
}

/// Waits until the process of `pidfd` has ended, at most `limit`; says whether it has.
pub(crate) fn has_ended(pidfd: &OwnedFd, limit: Duration) -> bool {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses that may itself hold spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    fields
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_alive_until_it_ends_even_while_it_is_a_zombie() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        assert!(identity.is_alive());
        assert!(!identity.wait_end(Duration::from_millis(5)));
        identity.signal(libc::SIGKILL).unwrap();
        assert!(identity.wait_end(Duration::from_secs(60)));
        assert!(!identity.is_alive());
        child.wait().unwrap();
        assert!(!identity.is_alive());
        identity.signal(libc::SIGTERM).unwrap();
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_it() {
        let own = ProcessIdentity::own().unwrap();
        assert!(own.is_alive());
        let other = ProcessIdentity {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(!other.is_alive());
    }
}
