//! A command that stays in the foreground while its process runs: it hands on the signals that it gets, and ends as
//! the process does.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::signals::is_for_process;
use super::{ProxyError, Streams};
use crate::process_identity::ProcessIdentity;
use crate::sys::{self, WindowSize};

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

/// The terminal at which a command runs in the foreground: the one that standard error, output or input is, or, with all of
/// them redirected, the controlling one, as with runc.
#[derive(Debug)]
pub struct HostTerminal {
    terminal: OwnedFd,
}

impl HostTerminal {
    /// The one that `streams` are connected to, if they are to one.
    ///
    /// # Errors
    /// There is none.
    pub fn of(streams: &Streams) -> Result<Option<Self>, ProxyError> {
        (*streams == Streams::Terminal).then(Self::find).transpose()
    }

    /// Looks for it.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn find() -> Result<Self, ProxyError> {
        let (error, output, input) = (io::stderr(), io::stdout(), io::stdin());
        let streams = [error.as_fd(), output.as_fd(), input.as_fd()];
        let terminal = match streams.into_iter().find(IsTerminal::is_terminal) {
            Some(stream) => stream.try_clone_to_owned(),
            None => File::open("/dev/tty").map(OwnedFd::from),
        };
        let terminal = terminal.map_err(ProxyError::NoTerminal)?;
        Ok(Self { terminal })
    }

    /// Its size, if it has one.
    pub fn size(&self) -> Option<WindowSize> {
        let size = sys::window_size(self.terminal.as_fd()).ok()?;
        (size != WindowSize::default()).then_some(size)
    }

    /// Makes it raw, until what this gives is dropped.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn make_raw(self) -> Result<RawTerminal, ProxyError> {
        let fail = |errno: Errno| ProxyError::host("make the terminal raw")(errno.into());
        let before = tcgetattr(&self.terminal).map_err(fail)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&self.terminal, SetArg::TCSADRAIN, &raw).map_err(fail)?;
        Ok(RawTerminal {
            terminal: self.terminal,
            before,
        })
    }
}

impl From<HostTerminal> for OwnedFd {
    fn from(host: HostTerminal) -> Self {
        host.terminal
    }
}

/// A terminal in raw mode, until this is dropped.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before) {
            tracing::warn!(%error, "the terminal stays raw");
        }
    }
}
