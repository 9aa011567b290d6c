//! Containers: one file and one function for each verb of the command line (OCI runtime specification, runtime.md
//! "Operations"). Each runs in a process of its own that ends with the verb; what they share is in [`crate::store`].

mod create;
mod delete;
mod events;
mod exec;
mod id;
mod kill;
mod list;
mod out_of_memory;
mod pause;
mod placement;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod streams;
mod update;

use std::path::PathBuf;

use crate::error::ErrorKind;

pub use create::{CreateOptions, Created, create};
pub use delete::delete;
pub use events::{CgroupFiles, Event, NicTraffic, Reading, Stats, events, read};
pub use exec::{ExecOptions, ExecProcess, Executed, exec, exec_detached, parse_capability};
pub use id::{ContainerId, IdError};
pub use kill::{kill, kill_exec, parse_signal};
pub use list::list;
pub use out_of_memory::out_of_memory;
pub use pause::{pause, resume};
pub use placement::PinnedNamespace;
pub(crate) use placement::open_unused;
pub use ps::{host_pids, ps};
pub use run::{RunOptions, run};
pub use spec::default_spec;
pub use start::start;
pub use state::{State, Status, in_use, state};
pub use streams::Console;
pub use update::update;

/// How a verb fails for reasons of its own.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The container is in another state.
    #[error("{problem}: {id} is {status}")]
    WrongState {
        /// The container.
        id: ContainerId,
        /// The state it is in.
        status: Status,
        /// What cannot be done: `cannot start a container`.
        problem: &'static str,
    },
    /// A signal was to be sent to a container that has ended. The words are runc's, which callers match.
    #[error("container not running")]
    NotRunning,
    /// The words are no signal.
    #[error("unknown signal {0:?}")]
    Signal(String),
    /// The word is no capability.
    #[error("unknown capability {0:?}")]
    Capability(String),
    /// Options that do not go together, or that a VM cannot serve.
    #[error("{0}")]
    Options(&'static str),
    /// A file that the caller named cannot be written.
    #[error("write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A container does not end though it was killed.
    #[error("container {id} does not end")]
    Unkillable {
        /// The container.
        id: ContainerId,
    },
    /// The network namespace is that of a container that no VM of hull's is for.
    #[error(
        "the network namespace {} is in use by a container that is not in a VM of hull (pid {pid}, {command:?}), \
         so its network cannot be shared",
        path.display()
    )]
    ForeignNetns {
        /// The namespace.
        path: PathBuf,
        /// A process of that container.
        pid: i32,
        /// Its name.
        command: String,
    },
    /// The network namespace is that of another sandbox.
    #[error("the network namespace {} is that of sandbox {sandbox}", path.display())]
    TakenNetns {
        /// The namespace.
        path: PathBuf,
        /// The sandbox.
        sandbox: ContainerId,
    },
    /// The host's name cannot be read.
    #[error("the host's name")]
    Hostname(#[source] std::io::Error),
    /// A process of the host cannot be named.
    #[error("own process")]
    OwnProcess(#[source] std::io::Error),
}

impl ContainerError {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::WrongState { .. } | Self::NotRunning => ErrorKind::WrongState,
            Self::Signal(_) | Self::Capability(_) | Self::Options(_) => ErrorKind::InvalidInput,
            Self::ForeignNetns { .. } | Self::TakenNetns { .. } => ErrorKind::Unsupported,
            Self::File { .. }
            | Self::Unkillable { .. }
            | Self::Hostname(_)
            | Self::OwnProcess(_) => ErrorKind::Host,
        }
    }
}

/// Writes a pid file: whole or not at all, and last of all, for callers wait for it.
fn write_pid_file(path: &std::path::Path, pid: i32) -> Result<(), ContainerError> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    crate::store::write_unnamed(&path, pid.to_string().as_bytes(), 0o644)
        .map_err(|source| ContainerError::File { path, source })
}
