//! Every message between a process proxy and its maker, each a packet of JSON on a pair of sockets, in this order:
//!
//! ```text
//! maker -> proxy   Setup     what the proxy is to hold
//! proxy -> maker   Ready     it holds it; its pid can be told to hooks
//! maker -> proxy   Attach    the process is in the guest: connect to it
//! proxy -> maker   Attached
//! maker -> proxy   Commit    the proxy is on its own
//! ```
//!
//! Instead of an answer the proxy may say `Failed`. When the maker ends before `Commit`, so does the proxy.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::FileKind;
use crate::container::ContainerId;
use crate::logging::LogSettings;
use crate::sandbox::share::Share;
use crate::timing::Moment;

/// To the proxy.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToProxy {
    /// See [`Setup`].
    Setup(Setup),
    /// See [`Attach`].
    Attach(Attach),
    /// The proxy lives on without its maker.
    Commit,
}

/// From the proxy.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromProxy {
    /// `Setup` is done.
    Ready,
    /// `Attach` is done.
    Attached,
    /// What was told last cannot be done; the proxy ends.
    Failed {
        /// Why, with the whole chain of causes.
        message: String,
    },
}

/// What a proxy is to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The process's streams on the host.
    pub streams: Streams,
    /// Whether it leaves its maker's session, so that the maker's terminal does not reach it.
    pub own_session: bool,
    /// Where its messages go.
    pub log: LogSettings,
    /// When the command that made it began.
    pub origin: Moment,
    /// Whether hooks are to find a mount namespace of its own, so that what they mount there does not show on the host.
    pub own_mounts: bool,
    /// The process's open files beside its stdio, which come with the message.
    pub files: Vec<FileKind>,
}

/// A process's streams on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Streams {
    /// No terminal: the standard streams that the proxy inherits, each for itself.
    Standard,
    /// A terminal, whose other end is the proxy's own standard input and output.
    Terminal,
    /// A terminal, made on the host, whose master goes to whoever listens on a socket.
    Console {
        /// The socket.
        socket: PathBuf,
        /// Its size at first, rows and columns.
        size: Option<(u16, u16)>,
    },
}

/// The process that a proxy stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The state directory.
    pub root: PathBuf,
    /// The sandbox.
    pub sandbox_id: ContainerId,
    /// The container.
    pub container_id: ContainerId,
    /// The process; empty for the container's first, with whose end the sandbox's may come.
    pub exec_id: String,
    /// The container's files, its root first, that the proxy shows; none if the host has none of them. That of a process
    /// of exec shows nothing.
    pub files: Vec<Share>,
    /// Whether it shows the container's processes among them.
    pub shows_processes: bool,
    /// The engine's socket that hears the container's notifications ([`crate::notify`]).
    pub notify: Option<OsString>,
}
