//! The monitor: the process of the host that keeps a sandbox's network up to date while the sandbox lives. It is
//! its maker's program, started with [`SETTINGS`] in its environment, one for each sandbox, and lives in the sandbox's
//! network namespace.
//!
//! It hears of every change of the namespace ([`crate::network::Watch`]), waits until a burst of changes is over
//! (pace.rs), takes the sandbox's lock, and makes VM and guest equal to the namespace, as `create` and `start` do
//! ([`Sandbox::follow_network`](crate::sandbox::Sandbox::follow_network)). What an event says is not looked at, so that
//! none has to be seen: a monitor that was killed is made anew by the process proxies of the sandbox's containers
//! (guard.rs), or by the next command that needs the sandbox, and finds by its first look what has changed meanwhile.
//!
//! Its maker ([`StartingMonitor`]) waits until it listens. From then on nothing reaches it but the kernel's events; it
//! ends with the VM, is killed when the sandbox ends, and one that the sandbox's record does not name ends by itself.
//! It has one thread for that, which sleeps when nothing changes, one that carries the guest's DNS queries to a server
//! in the namespace ([`crate::network::embedded_dns`]), one for those who dial a pod's localhost
//! ([`crate::network::localhost`]), and some for who asks for metrics ([`crate::metrics`]). Its messages go to `monitor.log` in the sandbox's directory.

mod guard;
mod pace;
mod serve;
mod spawn;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::ContainerId;
use crate::logging::LogSettings;
use crate::network;
use crate::network::embedded_dns::EmbeddedDnsError;

pub(crate) use guard::guard;
pub(crate) use serve::serve;
pub use spawn::StartingMonitor;

/// The variable of the environment that makes a process a monitor: its [`Settings`] as JSON.
pub(crate) const SETTINGS: &str = "HULL_MONITOR";

/// What a monitor is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// The state directory.
    pub(crate) root: PathBuf,
    /// The sandbox.
    pub(crate) sandbox: ContainerId,
    /// Where its messages go.
    pub(crate) log: LogSettings,
}

/// How a monitor fails.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// It cannot be started.
    #[error("monitor: {operation}")]
    Start {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// It cannot be born in the network namespace.
    #[error("monitor")]
    Netns(#[source] Box<network::Error>),
    /// It said that it cannot listen.
    #[error("monitor: {message}")]
    Failed {
        /// With the whole chain of causes.
        message: String,
    },
    /// It ended, or does not say that it listens.
    #[error("the monitor ended or does not answer")]
    Lost(#[source] io::Error),
    /// It survives being killed.
    #[error("the monitor (pid {pid}) does not end")]
    Unkillable {
        /// Its pid.
        pid: i32,
    },
    /// The VM that it is to watch over, or the kernel's events, cannot be waited for.
    #[error("monitor: {0}")]
    Wait(&'static str, #[source] io::Error),
    /// The guest's DNS queries cannot be listened for.
    #[error("monitor")]
    EmbeddedDns(#[source] EmbeddedDnsError),
    /// There is no VM to watch over.
    #[error("the sandbox has no VM")]
    NoVm,
}

/// What a monitor says to its maker: one line of JSON on its standard output.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum FromMonitor {
    /// It listens: no change from now on is missed.
    Listening,
    /// It cannot, and ends.
    Failed {
        /// With the whole chain of causes.
        message: String,
    },
}
