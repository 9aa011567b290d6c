//! Signals that a process proxy gets are for the process that it stands for; a change of the terminal's size is told to
//! the terminal in the guest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::agent_client::{AgentClient, AgentError};
use crate::container::ContainerId;
use crate::sys;

/// Blocks all signals in the calling thread and those that it makes, and gives a descriptor to read them from.
pub(super) fn block_all() -> io::Result<SignalFd> {
    let all = SigSet::all();
    all.thread_block()?;
    Ok(SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC)?)
}

/// Whether a signal is for the process: the rest are about the proxy itself, or about its terminal.
pub(super) fn is_for_process(number: i32) -> bool {
    !matches!(
        number,
        libc::SIGCHLD | libc::SIGPIPE | libc::SIGURG | libc::SIGWINCH
    )
}

/// Forwards signals in a thread of its own, for as long as the proxy lives.
pub(super) struct Forwarder {
    pub(super) signals: SignalFd,
    pub(super) socket: PathBuf,
    pub(super) container_id: ContainerId,
    pub(super) exec_id: String,
    /// The terminal on the host, if the process has one.
    pub(super) terminal: Option<OwnedFd>,
}

impl Forwarder {
    pub(super) fn start(self) -> io::Result<()> {
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || self.run())
            .map(drop)
    }

    fn run(self) {
        // The terminal may have got its size before there was anything to tell.
        self.resize();
        while let Ok(Some(info)) = self.signals.read_signal() {
            let Ok(number) = i32::try_from(info.ssi_signo) else {
                continue;
            };
            if number == libc::SIGWINCH {
                self.resize();
            } else if is_for_process(number) {
                self.forward(info.ssi_signo);
            }
        }
    }

    fn forward(&self, number: u32) {
        let sent = AgentClient::connect(&self.socket)
            .and_then(|mut agent| agent.signal(&self.container_id, &self.exec_id, number, false));
        self.report("forwarding a signal", sent);
    }

    fn resize(&self) {
        let Some(terminal) = &self.terminal else {
            return;
        };
        let Ok(size) = sys::window_size(terminal.as_fd()) else {
            return;
        };
        if size == sys::WindowSize::default() {
            return;
        }
        let told = AgentClient::connect(&self.socket).and_then(|mut agent| {
            agent.resize_terminal(&self.container_id, &self.exec_id, size.rows, size.columns)
        });
        self.report("resizing the terminal", told);
    }

    /// The process may have ended in the meantime, and the VM too.
    fn report(&self, what: &str, answer: Result<(), AgentError>) {
        if let Err(error) = answer {
            tracing::debug!(
                container = %self.container_id,
                error = %crate::error::chain(&error),
                "{what}"
            );
        }
    }
}
