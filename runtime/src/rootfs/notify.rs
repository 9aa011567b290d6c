//! The notification socket of a container (sd_notify(3)): a socket of the host connects nobody in a VM, so the guest gets
//! one of its own in its place, whose messages [`crate::notify`] carries.

use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use hull_agent_protocol::notify::DIRECTORY;
use oci_spec::runtime::{Mount, Spec};

use super::mounts::is_bind;
use crate::bundle::Bundle;
use crate::container::ContainerId;
use crate::notify::VARIABLE;

/// Where runc has it in the container.
const RUNC_DIRECTORY: &str = "/run/notify";
const RUNC_NAME: &str = "notify.sock";

/// The socket that a guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifySocket {
    /// Its file name.
    pub name: String,
    /// The socket of the host whose place it takes; none if the caller is the service manager's, who says so at `start`.
    pub host: Option<OsString>,
}

impl NotifySocket {
    /// The guest's socket for a container whose caller is a service: adds the mount and the variable that runc adds.
    pub(super) fn of_caller(id: &ContainerId, spec: &mut Spec) -> Self {
        let mut mount = Mount::default();
        mount
            .set_destination(RUNC_DIRECTORY.into())
            .set_typ(Some("bind".into()))
            .set_source(Some(directory(id)))
            .set_options(Some(
                ["bind", "nosuid", "noexec", "nodev", "ro"]
                    .map(str::to_owned)
                    .into(),
            ));
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
        if let Some(process) = spec.process_mut() {
            let mut env = process.env().clone().unwrap_or_default();
            env.push(format!("{VARIABLE}={RUNC_DIRECTORY}/{RUNC_NAME}"));
            process.set_env(Some(env));
        }
        Self {
            name: RUNC_NAME.into(),
            host: None,
        }
    }
}

/// A mount by which an engine gives a container a notification socket of the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EngineMount {
    /// The mount's destination.
    pub(super) destination: PathBuf,
    /// What the guest has to mount there.
    pub(super) source: PathBuf,
    /// The socket.
    pub(super) socket: NotifySocket,
}

/// Finds the mount: of the socket that the process's environment names, or of its directory if that holds nothing else.
pub(super) fn of_engine(id: &ContainerId, bundle: &Bundle) -> Option<EngineMount> {
    let env = bundle.process.env().as_deref().unwrap_or_default();
    let value = |entry: &String| Some(entry.strip_prefix(VARIABLE)?.strip_prefix('=')?.to_owned());
    let socket = PathBuf::from(env.iter().filter_map(value).next_back()?);
    let parent = socket.parent()?;
    let name = socket.file_name()?.to_str()?;
    let mounts = bundle.spec.mounts().iter().flatten();
    let mount = mounts.rev().find(|mount| {
        let destination = mount.destination();
        is_bind(mount) && (destination == parent || *destination == socket)
    })?;
    let source = bundle.directory.join(mount.source().as_ref()?);
    let is_directory = mount.destination() == parent;
    let host = if is_directory {
        source.join(name)
    } else {
        source.clone()
    };
    if !is_socket(&host) || (is_directory && !holds_nothing_else(&source)) {
        return None;
    }
    let guest = directory(id);
    Some(EngineMount {
        destination: mount.destination().clone(),
        source: if is_directory {
            guest
        } else {
            guest.join(name)
        },
        socket: NotifySocket {
            name: name.into(),
            host: Some(host.into()),
        },
    })
}

/// The socket's directory in the guest.
fn directory(id: &ContainerId) -> PathBuf {
    Path::new(DIRECTORY).join(id.as_str())
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn holds_nothing_else(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| entries.count() == 1)
}
