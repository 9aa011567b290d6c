//! A command that stays in the foreground while its process runs: it hands on the signals that it gets, and ends as
//! the process does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::ProxyError;
use super::signals::is_for_process;
use crate::process_identity::ProcessIdentity;

/// Signals held back from the time a command begins to make a process until that has ended, so that none ends the
/// command half-way.
#[derive(Debug)]
pub struct HeldSignals {
    signals: SignalFd,
}

impl HeldSignals {
    /// Holds all signals back from now on, in all threads made from now on.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn hold() -> Result<Self, ProxyError> {
        let all = SigSet::all();
        let signals = all
            .thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            })
            .map_err(|errno| ProxyError::host("hold signals back")(errno.into()))?;
        Ok(Self { signals })
    }

    /// Waits for the end of a proxy, which gets the signals that this process was sent. Gives its exit code, or 128
    /// and the number of the signal that ended it.
    ///
    /// # Errors
    /// It is no child of this process.
    pub fn wait(&self, proxy: &mut Child) -> Result<u8, ProxyError> {
        let fail = || ProxyError::host("wait for it");
        let identity = ProcessIdentity::of(proxy.id()).map_err(fail())?;
        let pidfd = identity
            .open()
            .ok_or_else(|| fail()(io::ErrorKind::NotFound.into()))?;
        while !self.forward_until_end(&pidfd, &identity).map_err(fail())? {}
        let status = proxy.wait().map_err(fail())?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        let code = status.code().or(signal.map(|number| 128 + number));
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))
    }

    /// Waits for one event, and says whether it was the end.
    fn forward_until_end(&self, pidfd: &OwnedFd, proxy: &ProcessIdentity) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        if fds[0].any() == Some(true) {
            return Ok(true);
        }
        while let Some(info) = self.signals.read_signal()? {
            if let Some(number) = to_forward(&info) {
                proxy.signal(number)?;
            }
        }
        Ok(false)
    }
}

/// The kernel sends a terminal's signals to the whole process group, so the proxy has those already.
fn to_forward(info: &siginfo) -> Option<i32> {
    let number = i32::try_from(info.ssi_signo).ok()?;
    let sent_by_process = info.ssi_code <= 0;
    (sent_by_process && is_for_process(number)).then_some(number)
}

/// The terminal of this process in raw mode, until this is dropped. Without a terminal it is nothing.
#[derive(Debug)]
pub struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    /// Makes standard input raw, if it is a terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter() -> Result<Self, ProxyError> {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(stdin.as_fd()) else {
            return Ok(Self { before: None });
        };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw)
            .map_err(|errno| ProxyError::host("make the terminal raw")(errno.into()))?;
        Ok(Self {
            before: Some(before),
        })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, before)
        {
            tracing::warn!(%error, "the terminal stays raw");
        }
    }
}
