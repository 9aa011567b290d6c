//! How calls fail, as containerd is told: a code that its clients match, and words for people.

use std::io;
use std::path::PathBuf;

use hull_runtime::ErrorKind;
use hull_runtime::container::ContainerError;
use ttrpc::Code;

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The runtime library says so.
    #[error("{}", .0.report())]
    Runtime(#[from] hull_runtime::Error),
    /// There is no such task or process.
    #[error("{what} {id}: not found")]
    NotFound {
        /// `task`, `exec`.
        what: &'static str,
        /// What was asked for.
        id: String,
    },
    /// There is one already.
    #[error("{what} {id}: already exists")]
    Exists {
        /// See `NotFound`.
        what: &'static str,
        /// See `NotFound`.
        id: String,
    },
    /// The process is not in a state in which this can be done.
    #[error("{what}: process {id} is {state}")]
    WrongState {
        /// What cannot be done.
        what: &'static str,
        /// The process.
        id: String,
        /// What it is.
        state: &'static str,
    },
    /// The process has ended. The words are those of containerd's own shim, which clients match.
    #[error("process already finished: not found")]
    Finished,
    /// A part of the call cannot be understood.
    #[error("{what}: {problem}")]
    Invalid {
        /// The part.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// What is asked for is not there.
    #[error("{0} is not supported by hull")]
    Unsupported(String),
    /// A file or a descriptor.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A thread of the shim's own ended early.
    #[error("the call was given up")]
    Lost(#[from] tokio::task::JoinError),
}

impl Error {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    fn code(&self) -> Code {
        match self {
            // Whoever kills what has just ended has what was wanted.
            Self::Runtime(hull_runtime::Error::Container(ContainerError::NotRunning)) => {
                Code::NOT_FOUND
            }
            Self::Runtime(error) => match error.kind() {
                ErrorKind::InvalidInput => Code::INVALID_ARGUMENT,
                ErrorKind::Unsupported => Code::UNIMPLEMENTED,
                ErrorKind::NotFound => Code::NOT_FOUND,
                ErrorKind::AlreadyExists => Code::ALREADY_EXISTS,
                ErrorKind::WrongState => Code::FAILED_PRECONDITION,
                ErrorKind::ProgramNotFound
                | ErrorKind::ProgramNotExecutable
                | ErrorKind::Hook
                | ErrorKind::Sandbox
                | ErrorKind::Host => Code::UNKNOWN,
            },
            Self::NotFound { .. } | Self::Finished => Code::NOT_FOUND,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::WrongState { .. } => Code::FAILED_PRECONDITION,
            Self::Invalid { .. } => Code::INVALID_ARGUMENT,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Io { .. } | Self::Lost(_) => Code::UNKNOWN,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}
