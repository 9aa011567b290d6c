//! SignalProcess, PauseContainer and ResumeContainer.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Container, Error};

impl Container {
    /// Sends a signal to a process, or to every process of the container.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn signal(&self, exec_id: &str, number: u32, all: bool) -> Result<(), Error> {
        let signal = i32::try_from(number)
            .ok()
            .and_then(|number| Signal::try_from(number).ok())
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

    fn signal_all(&self, signal: Signal) -> Result<(), Error> {
        if signal == Signal::SIGKILL {
            return Ok(self.cgroup.kill()?);
        }
        for pid in self.cgroup.processes()? {
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(Error::Signal(error)),
            }
        }
        Ok(())
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
