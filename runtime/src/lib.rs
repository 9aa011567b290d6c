//! The hull OCI runtime: containers, each pod of them in its own VM.
//!
//! [`container`] has one function for each verb of the command line; [`sandbox`] is the VM that a container is in;
//! [`process_proxy`] is the process of the host that stands for a process in the guest; [`network`] wires a network
//! namespace to a VM, and [`monitor`] is the process that follows its changes; [`rootfs`] turns a bundle's configuration
//! into the guest's. A program that uses the library calls [`own_program::enter`] first.

pub mod agent_client;
pub mod bundle;
pub mod cgroup;
pub mod config;
pub mod container;
pub mod error;
pub mod hooks;
pub mod logging;
pub mod metrics;
pub mod monitor;
mod mount_namespace;
pub mod network;
pub mod notify;
pub mod own_program;
mod pending_child;
pub mod process_identity;
pub mod process_proxy;
pub mod rootfs;
pub mod sandbox;
pub mod store;
mod sys;
pub mod timing;
pub mod vmm_process;

pub use error::{Error, ErrorKind};
pub use sys::{WindowSize, close_on_exec_from, set_window_size, take_inherited_fd};

use config::Config;
use logging::LogSettings;
use store::Store;

/// What every verb works with.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The state directory.
    pub store: Store,
    /// The configuration.
    pub config: Config,
    /// Whether systemd makes the cgroups of containers.
    pub systemd_cgroup: bool,
    /// Where messages go, also those of process proxies.
    pub log: LogSettings,
}
