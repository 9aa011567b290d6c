//! How wiring a network namespace fails.

use std::io;
use std::path::PathBuf;

/// An error of this module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network namespace cannot be opened. [`Error::is_gone`] tells whether it is there at all.
    #[error("network namespace {}", path.display())]
    OpenNetns {
        /// What was to be opened.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a network namespace.
    #[error("{} is not a network namespace", path.display())]
    NotANetns {
        /// What was opened.
        path: PathBuf,
    },
    /// The thread that is to work in the namespace cannot be made, or cannot make or enter the namespace.
    #[error("{operation}")]
    Enter {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// No netlink socket can be made.
    #[error("netlink socket")]
    NetlinkSocket(#[source] io::Error),
    /// The kernel refused a change or a question.
    #[error("{operation} {object}")]
    Netlink {
        /// What was asked for: `set the MAC address of`.
        operation: &'static str,
        /// The link, route or table that it was asked of.
        object: String,
        /// Why it failed.
        source: NetlinkError,
    },
    /// `getifaddrs` failed.
    #[error("getifaddrs")]
    Getifaddrs(#[source] io::Error),
    /// The kernel's table of UDP sockets cannot be read.
    #[error("/proc/thread-self/net/udp")]
    Sockets(#[source] io::Error),
    /// A link that should be there is not.
    #[error("link {name} is gone")]
    LinkGone {
        /// The link.
        name: String,
    },
    /// A tap cannot be made.
    #[error("tap {name}: {operation}")]
    Tap {
        /// The tap.
        name: String,
        /// The call or ioctl.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A value below `/proc/sys` cannot be read or written.
    #[error("sysctl {}", path.display())]
    Sysctl {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The state could not be kept.
    #[error("keeping the network's state")]
    Persist(#[source] io::Error),
    /// All 2^16 interfaces of the namespace are in use.
    #[error("no interface index is left in the network namespace")]
    Exhausted,
    /// The state belongs to another network namespace.
    #[error("the sandbox was wired in another network namespace")]
    OtherNetns,
    /// A step failed, and then so did undoing what went before it. The state still names what is left.
    #[error("{failure}; undoing what went before failed as well")]
    Undo {
        /// The first failure.
        failure: Box<Error>,
        /// Why it could not be undone.
        source: Box<Error>,
    },
}

impl Error {
    /// Whether the error says that the network namespace is not there any more, so that nothing is left to undo.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::OpenNetns { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR)
            ),
            // What `ip netns add` leaves behind when its mount has gone is an empty file.
            Self::NotANetns { .. } => true,
            _ => false,
        }
    }
}

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel's answer.
    #[error(transparent)]
    Kernel(io::Error),
    /// The answer made no sense, or there was none.
    #[error(transparent)]
    Protocol(rtnetlink::Error),
}

impl NetlinkError {
    /// The kernel's error number.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel(error) => error.raw_os_error(),
            Self::Protocol(_) => None,
        }
    }
}

impl From<rtnetlink::Error> for NetlinkError {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) if message.code.is_some() => {
                Self::Kernel(message.to_io())
            }
            other => Self::Protocol(other),
        }
    }
}
