//! `hull create`.

use std::path::PathBuf;

use hull_runtime::Runtime;
use hull_runtime::container::{CreateOptions, create};

use super::inherited::Inherited;
use super::{console, container_id, service_manager};

/// Make a container, up to the point at which its program is about to run
#[derive(clap::Args)]
// `run` has them among its own, which are a group of this name too.
#[group(skip)]
pub(super) struct Arguments {
    /// The directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(super) bundle: PathBuf,
    /// Send the master of the container's terminal to this Unix socket
    #[arg(long, value_name = "SOCKET")]
    pub(super) console_socket: Option<PathBuf>,
    /// Write the pid of the container's process proxy to this file
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Taken for callers of runc: the guest's root file system is no RAM disk
    #[arg(long)]
    pub(super) no_pivot: bool,
    /// Taken for callers of runc: session keyrings are the guest's own
    #[arg(long)]
    pub(super) no_new_keyring: bool,
    /// Hand on so many open files, from number 3 on: pipes, stream sockets, and files that are only read or written
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// The container's id
    pub(super) id: String,
}

impl Arguments {
    pub(super) fn options(
        self,
        detach: bool,
        inherited: Inherited,
    ) -> anyhow::Result<CreateOptions> {
        Ok(CreateOptions {
            root_disk: None,
            id: container_id(&self.id)?,
            bundle: self.bundle,
            console: console(detach, self.console_socket)?,
            stdio: None,
            files: inherited.files,
            listening: inherited.listening,
            pid_file: self.pid_file,
            notifies: service_manager().is_some(),
        })
    }
}

pub(super) fn run(
    runtime: &Runtime,
    arguments: Arguments,
    inherited: Inherited,
) -> anyhow::Result<u8> {
    create(runtime, &arguments.options(true, inherited)?)?;
    Ok(0)
}
