//! Errors of the agent's modules as ttrpc statuses: a code that callers decide by, and a message with all causes.

use std::error::Error;

use ttrpc::Code;
use ttrpc::error::get_rpc_status;

use crate::container::helper::{Failure, HelperError};
use crate::container::{self, CgroupError, DeviceError};
use crate::error_text::with_causes;
use crate::mounts::MountError;
use crate::network::NetworkError;
use crate::stdio::ResizeError;

/// An error that callers may decide by.
pub(super) trait Coded: Error + 'static {
    /// Its code.
    fn code(&self) -> Code;
}

/// The status of an error.
pub(super) fn status(error: impl Coded) -> ttrpc::Error {
    get_rpc_status(error.code(), with_causes(&error))
}

/// The status of an error that the caller has no part in.
pub(super) fn internal(error: impl Error + 'static) -> ttrpc::Error {
    get_rpc_status(Code::INTERNAL, with_causes(&error))
}

/// The status of an error that comes from what the caller said.
pub(super) fn invalid(error: impl Error + 'static) -> ttrpc::Error {
    get_rpc_status(Code::INVALID_ARGUMENT, with_causes(&error))
}

impl Coded for container::Error {
    fn code(&self) -> Code {
        match self {
            Self::BadId(_)
            | Self::BadCgroup(_)
            | Self::Spec(_)
            | Self::Sysctl { .. }
            | Self::BadSignal(_) => Code::INVALID_ARGUMENT,
            Self::Exists(_) | Self::ProcessExists { .. } => Code::ALREADY_EXISTS,
            Self::NoContainer(_) | Self::NoProcess { .. } | Self::Ended => Code::NOT_FOUND,
            Self::State { .. } => Code::FAILED_PRECONDITION,
            Self::Helper(error) => error.code(),
            Self::Cgroup(error) => error.code(),
            Self::Devices(DeviceError::Rule { .. }) => Code::INVALID_ARGUMENT,
            Self::Devices(_)
            | Self::File { .. }
            | Self::Limit(_)
            | Self::Stdio(_)
            | Self::PodInit(_)
            | Self::Start(_)
            | Self::Signal(_)
            | Self::Mount(_)
            | Self::CopyUp(_) => Code::INTERNAL,
        }
    }
}

impl Coded for HelperError {
    fn code(&self) -> Code {
        match self {
            Self::Failed(Failure::NotFound(_)) => Code::NOT_FOUND,
            Self::Failed(Failure::NotExecutable(_)) => Code::PERMISSION_DENIED,
            _ => Code::INTERNAL,
        }
    }
}

impl Coded for CgroupError {
    fn code(&self) -> Code {
        Code::INTERNAL
    }
}

impl Coded for MountError {
    fn code(&self) -> Code {
        match self {
            Self::Target(_) | Self::NoType(_) => Code::INVALID_ARGUMENT,
            Self::File { .. } | Self::Mount { .. } | Self::Unmount { .. } => Code::INTERNAL,
        }
    }
}

impl Coded for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::Request(_) => Code::INVALID_ARGUMENT,
            Self::Netlink(_) => Code::INTERNAL,
        }
    }
}

impl Coded for ResizeError {
    fn code(&self) -> Code {
        match self {
            Self::NoTerminal => Code::FAILED_PRECONDITION,
            Self::Size { .. } => Code::INVALID_ARGUMENT,
            Self::Ioctl(_) => Code::INTERNAL,
        }
    }
}
