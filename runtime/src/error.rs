//! The runtime's errors: each module's own, gathered, with a kind that callers can match and the exit code that each
//! kind means.

use crate::agent_client::AgentError;
use crate::bundle::BundleError;
use crate::cgroup::CgroupError;
use crate::config::ConfigError;
use crate::container::{ContainerError, IdError};
use crate::hooks::HookError;
use crate::metrics::MetricsError;
use crate::monitor::MonitorError;
use crate::network;
use crate::notify::NotifyError;
use crate::process_proxy::ProxyError;
use crate::rootfs::RootfsError;
use crate::sandbox::SandboxError;
use crate::sandbox::share::ShareError;
use crate::store::StoreError;
use crate::vmm_process::VmmError;

/// Any error of the runtime.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Network(Box<network::Error>),
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Notify(#[from] NotifyError),
}

impl From<network::Error> for Error {
    fn from(error: network::Error) -> Self {
        Self::Network(Box::new(error))
    }
}

/// What an error means to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's input is wrong.
    InvalidInput,
    /// The input is right, and asks for what hull does not do.
    Unsupported,
    /// There is no such container.
    NotFound,
    /// There is one already.
    AlreadyExists,
    /// The container is not in a state in which this can be done.
    WrongState,
    /// The container's program is not there.
    ProgramNotFound,
    /// The container's program is none.
    ProgramNotExecutable,
    /// A hook failed.
    Hook,
    /// The VM, or its agent, failed.
    Sandbox,
    /// The host refused something.
    Host,
}

impl Error {
    /// What it means.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Id(_) | Self::Config(_) => ErrorKind::InvalidInput,
            Self::Bundle(BundleError::Unsupported { .. }) => ErrorKind::Unsupported,
            Self::Bundle(_) => ErrorKind::InvalidInput,
            Self::Container(error) => error.kind(),
            Self::Store(StoreError::Exists { .. }) => ErrorKind::AlreadyExists,
            Self::Store(StoreError::NotFound { .. } | StoreError::NoSandbox { .. }) => {
                ErrorKind::NotFound
            }
            Self::Cgroup(_)
            | Self::Store(_)
            | Self::Share(_)
            | Self::Network(_)
            | Self::Metrics(_)
            | Self::Monitor(_)
            | Self::Notify(_)
            | Self::Proxy(_) => ErrorKind::Host,
            Self::Rootfs(error) => match error {
                RootfsError::NotInPath { .. } | RootfsError::NoProgram { .. } => {
                    ErrorKind::ProgramNotFound
                }
                RootfsError::NotExecutable { .. } => ErrorKind::ProgramNotExecutable,
                RootfsError::Device { .. } | RootfsError::Namespace { .. } => {
                    ErrorKind::Unsupported
                }
                RootfsError::Source { .. } | RootfsError::Mount { .. } | RootfsError::Encode(_) => {
                    ErrorKind::InvalidInput
                }
            },
            Self::Hook(_) => ErrorKind::Hook,
            Self::Agent(error) => match error.code() {
                Some(ttrpc::Code::NOT_FOUND) if error.runs_a_program() => {
                    ErrorKind::ProgramNotFound
                }
                Some(ttrpc::Code::PERMISSION_DENIED) if error.runs_a_program() => {
                    ErrorKind::ProgramNotExecutable
                }
                Some(ttrpc::Code::NOT_FOUND) => ErrorKind::NotFound,
                Some(ttrpc::Code::INVALID_ARGUMENT) => ErrorKind::InvalidInput,
                Some(ttrpc::Code::UNIMPLEMENTED) => ErrorKind::Unsupported,
                Some(ttrpc::Code::FAILED_PRECONDITION) => ErrorKind::WrongState,
                _ => ErrorKind::Sandbox,
            },
            Self::Sandbox(SandboxError::OtherModel { .. }) => ErrorKind::InvalidInput,
            Self::Sandbox(SandboxError::TooSmall { .. }) => ErrorKind::Unsupported,
            Self::Sandbox(_) | Self::Vmm(_) => ErrorKind::Sandbox,
        }
    }

    /// The exit code of a command that fails so, as shells have it: 127 and 126 for a program that cannot be run;
    /// otherwise `otherwise`, which is 1, and 255 for `exec`, as with runc.
    pub fn exit_code(&self, otherwise: u8) -> u8 {
        match self.kind() {
            ErrorKind::ProgramNotFound => 127,
            ErrorKind::ProgramNotExecutable => 126,
            _ => otherwise,
        }
    }

    /// What there is to say beyond the message and its causes: how a VM ended, and its console's last lines.
    pub fn details(&self) -> Option<&str> {
        match self {
            Self::Sandbox(
                SandboxError::NoAgent { description, .. } | SandboxError::Ended { description, .. },
            ) => Some(description),
            _ => None,
        }
    }

    /// The message, its causes, and the details, for people.
    pub fn report(&self) -> String {
        let details = self
            .details()
            .map(str::trim)
            .filter(|details| !details.is_empty());
        match details {
            Some(details) => format!("{}\n{details}", chain(self)),
            None => chain(self),
        }
    }
}

/// An error's message and those of its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ttrpc::Code) -> Error {
        AgentError::Refused {
            call: "StartContainer",
            code,
            message: "no".into(),
        }
        .into()
    }

    #[test]
    fn exit_codes_are_those_of_shells_and_runc() {
        let missing = Error::from(RootfsError::NotInPath {
            program: "x".into(),
        });
        let denied = Error::from(RootfsError::NotExecutable {
            program: "x".into(),
        });
        for (error, code) in [
            (missing, 127),
            (denied, 126),
            (refused(ttrpc::Code::NOT_FOUND), 127),
            (refused(ttrpc::Code::PERMISSION_DENIED), 126),
            (refused(ttrpc::Code::INTERNAL), 255),
            (IdError::Empty.into(), 255),
        ] {
            assert_eq!(error.exit_code(255), code, "{error}");
        }
        assert_eq!(Error::from(IdError::Empty).exit_code(1), 1);
    }

    #[test]
    fn a_report_has_the_causes_and_the_console() {
        let error = Error::from(SandboxError::NoAgent {
            description: "\n--- console ---\npanic".into(),
            source: AgentError::NoAnswer {
                call: "Health",
                limit: std::time::Duration::from_secs(60),
            },
        });
        assert_eq!(
            error.report(),
            "the agent in the VM did not come up: the agent did not answer the call Health within 60 s\n--- console ---\npanic"
        );
    }
}
