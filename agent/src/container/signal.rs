//! SignalProcess, PauseContainer and ResumeContainer, and the end of those that share their processes.

use std::sync::Arc;

use nix::errno::Errno;

use super::{Container, Error};
use crate::process::Process;
use crate::sys;

impl Container {
    /// Sends a signal to a process, or to every process of the container.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn signal(&self, exec_id: &str, number: u32, all: bool) -> Result<(), Error> {
        let signal = i32::try_from(number)
            .ok()
            .filter(|signal| (0..=libc::SIGRTMAX()).contains(signal))
            .ok_or(Error::BadSignal(number))?;
        if all {
            return self.signal_all(signal);
        }
        match self.process(exec_id)?.signal(signal) {
            Ok(true) => Ok(()),
            Ok(false) | Err(Errno::ESRCH) => Err(Error::Ended),
            Err(error) => Err(Error::Signal(error)),
        }
    }

    fn signal_all(&self, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            return Ok(self.cgroup.kill()?);
        }
        for pid in self.cgroup.processes()? {
            match sys::send_signal(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(Error::Signal(error)),
            }
        }
        Ok(())
    }

    /// Ends what is left of it when its first process has ended, as the kernel does where that is the init of its pid
    /// namespace.
    pub(super) async fn end_with_first(self: Arc<Self>, first: Arc<Process>) {
        first.wait().await;
        let _adding_none = self.adding.lock().await;
        // It may have been removed.
        if self.cgroup.path().exists()
            && let Err(error) = self.cgroup.kill()
        {
            tracing::error!(id = self.id, %error, "processes of a container that has ended stay");
        }
    }

    /// Stops all its processes, or lets them go on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn freeze(&self, frozen: bool) -> Result<(), Error> {
        if self.process("")?.exit().is_some() {
            return Err(self.state("stopped"));
        }
        Ok(self.cgroup.freeze(frozen).await?)
    }
}
