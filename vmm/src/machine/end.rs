//! How the end of a machine is told: by whoever sees it first, from any thread, to the main thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hull_vmm_protocol::outcome::Cause;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::kvm::vcpu::RunEnd;

/// How long a kernel that has told of its panic may go on, to print why and to reset.
const PANIC_GRACE: Duration = Duration::from_secs(2);

/// The end of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Why it ended.
    pub cause: Cause,
    /// The same, for people.
    pub message: String,
}

impl End {
    /// An end for which the cause says it all.
    #[must_use]
    pub fn new(cause: Cause, message: &str) -> Self {
        Self {
            cause,
            message: message.to_owned(),
        }
    }

    /// The end that a vCPU has met; none if it was only told to stop.
    #[must_use]
    pub fn of_vcpu(end: &RunEnd) -> Option<Self> {
        let cause = match end {
            RunEnd::Stopped => return None,
            RunEnd::TripleFault => Cause::TripleFault,
            RunEnd::CannotEmulate { .. }
            | RunEnd::InternalError { .. }
            | RunEnd::EntryFailed { .. } => Cause::KvmCannotRun,
            RunEnd::Unexpected { .. } | RunEnd::Failed(_) => Cause::VmmError,
        };
        let message = match end {
            RunEnd::TripleFault => "a vCPU met a triple fault".to_owned(),
            RunEnd::CannotEmulate { .. } => format!(
                "{end} (internal error, suberror 1): this host's KVM starts virtual CPUs but emulates the guest's \
                 kernel in software, and its emulator cannot run Linux. Use a host whose CPU has hardware \
                 virtualisation, or a virtual machine with nested virtualisation switched on"
            ),
            RunEnd::InternalError { .. } | RunEnd::EntryFailed { .. } => format!(
                "{end}: this host's KVM starts virtual CPUs and cannot go on running this guest. Use a host \
                 whose CPU has hardware virtualisation, or a virtual machine with nested virtualisation switched on"
            ),
            RunEnd::Failed(source) => format!("{end}: {source}"),
            RunEnd::Stopped | RunEnd::Unexpected { .. } => end.to_string(),
        };
        Some(Self { cause, message })
    }
}

/// A handle to tell of the end, and to wait for it.
#[derive(Clone, Debug)]
pub struct EndReport {
    state: Arc<Mutex<State>>,
    event: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct State {
    panicked: Option<Instant>,
    end: Option<End>,
}

impl EndReport {
    /// No end yet.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Arc::default(),
            event: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
        })
    }

    /// The machine has ended. Only the first call counts.
    pub fn tell(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.wake();
    }

    /// The guest's kernel panics: it has a moment to print why and to reset.
    pub fn tell_panic(&self) {
        self.lock().panicked.get_or_insert_with(Instant::now);
        self.wake();
    }

    /// The end, if it has come at `now`; else how long to wait at most before asking again.
    ///
    /// # Errors
    /// Not an error: it has not ended yet.
    pub fn at(&self, now: Instant) -> Result<End, Option<Duration>> {
        // What woke the caller is taken; an eventfd that counts nothing says so.
        let _ = self.event.read();
        let state = self.lock();
        let panic = End::new(Cause::GuestPanic, "the guest's kernel panicked");
        match (&state.end, state.panicked) {
            (None, None) => Err(None),
            (None, Some(since)) => match (since + PANIC_GRACE).checked_duration_since(now) {
                Some(wait) if !wait.is_zero() => Err(Some(wait)),
                _ => Ok(panic),
            },
            // The reset after a panic is its end; a KVM that fails, or a caller that stops it, is not.
            (Some(end), Some(_)) if matches!(end.cause, Cause::GuestReset | Cause::TripleFault) => {
                Ok(panic)
            }
            (Some(end), _) => Ok(end.clone()),
        }
    }

    fn wake(&self) {
        // It fails when the counter is full: then the main thread wakes as it is.
        let _ = self.event.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRawFd for EndReport {
    /// Readable when there may be an end.
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        let report = EndReport::new().unwrap();
        assert_eq!(report.at(Instant::now()), Err(None));
        report.tell(End::new(Cause::GuestReset, "reset"));
        report.tell(End::new(Cause::VmmError, "late"));
        assert_eq!(report.at(Instant::now()).unwrap().cause, Cause::GuestReset);
    }

    #[test]
    fn a_panic_ends_with_the_reset_or_when_its_time_is_over() {
        let report = EndReport::new().unwrap();
        report.tell_panic();
        let now = Instant::now();
        assert!(matches!(report.at(now), Err(Some(wait)) if wait <= PANIC_GRACE));
        assert_eq!(
            report.at(now + PANIC_GRACE).unwrap().cause,
            Cause::GuestPanic
        );
        report.tell(End::new(Cause::GuestReset, "reset"));
        assert_eq!(report.at(now).unwrap().cause, Cause::GuestPanic);
    }

    #[test]
    fn a_kvm_that_cannot_run_linux_is_told_in_words() {
        let end = RunEnd::CannotEmulate {
            instruction: "cc".to_owned(),
            address: 0x1000,
        };
        let end = End::of_vcpu(&end).unwrap();
        assert_eq!(end.cause, Cause::KvmCannotRun);
        assert!(
            end.message.contains("at 0x1000 (bytes cc)")
                && end.message.contains("cannot run Linux")
        );
        assert_eq!(End::of_vcpu(&RunEnd::Stopped), None);
    }
}
