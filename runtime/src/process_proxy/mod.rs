//! The process proxy: the process of the host that stands for a process in the guest. It is its maker's program, started
//! with [`CONTROL_FD`] in its environment; its pid is the one that callers see, it lives in the sandbox's network namespace,
//! holds the process's standard streams or terminal, forwards the signals that it gets, and exits with the process's
//! exit code.
//!
//! Its maker ([`spawn`]) starts it before there is a VM, for hooks want a pid, and then tells it what to do, message by
//! message (messages.rs). Until it is told [`messages::ToProxy::Commit`] it ends with its maker; afterwards it lives as
//! long as the process in the guest does, or its VM.
//!
//! In the proxy (serve.rs) the first thread (first_thread.rs) shows the container's files to who looks at the proxy
//! (files.rs), one waits for the end of the process, one for signals (signals.rs), and one for each stream carries bytes
//! (stdio.rs, inherited.rs). In the proxy of a container's own process one shows the guest's processes to who looks for them (processes.rs), and one waits
//! for the end of the sandbox's monitor, to make another ([`crate::monitor::guard`]). All of them block, so that an idle
//! process costs nothing.

mod console;
mod files;
mod first_thread;
pub mod foreground;
mod inherited;
mod messages;
mod processes;
mod serve;
mod signals;
mod spawn;
mod stdio;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use crate::agent_client::AgentError;
use crate::agent_client::vsock::VsockError;
use crate::network;
use crate::sandbox::share::ShareError;

pub use inherited::{FileKind, InheritError, InheritedFile};
pub use messages::{Attach, Setup, Streams};
pub(crate) use serve::serve;
pub use spawn::{NewProxy, StandardStreams};

/// The variable of the environment that makes a process a proxy: the number of the descriptor that is its
/// maker's socket. Its arguments are those of the process that it stands for.
pub const CONTROL_FD: &str = "HULL_PROCESS_PROXY_CONTROL_FD";

/// How a process proxy fails.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It cannot be started, or something of it cannot be made.
    #[error("process proxy: {operation}")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// It cannot be born in the network namespace.
    #[error("process proxy")]
    Netns(#[source] Box<network::Error>),
    /// It said that it cannot do what it was told.
    #[error("process proxy: {message}")]
    Failed {
        /// With the whole chain of causes.
        message: String,
    },
    /// It ended, or does not answer.
    #[error("the process proxy ended or does not answer")]
    Lost(#[source] io::Error),
    /// A command in the foreground has no terminal to give to its process.
    #[error("open /dev/tty")]
    NoTerminal(#[source] io::Error),
    /// The receiver of a terminal does not take it.
    #[error("console socket {}: {operation}", path.display())]
    ConsoleSocket {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A stream of the process cannot be opened.
    #[error("streams of the process")]
    Stream(#[from] VsockError),
    /// The container's files cannot be shown.
    #[error("process proxy")]
    Files(#[from] ShareError),
    /// The agent does not tell of the container's processes.
    #[error("the container's processes")]
    Processes(#[source] AgentError),
    /// The agent cannot be asked for the end of the process.
    #[error("the end of the process")]
    Agent(#[from] AgentError),
}

impl ProxyError {
    fn host(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { operation, source }
    }
}
