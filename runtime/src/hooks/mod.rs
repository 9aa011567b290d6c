//! Hooks that run on the host (OCI runtime specification, config.md "POSIX-platform Hooks"): programs of the host that
//! get the container's state on their standard input. `startContainer` hooks are programs of the container; the agent
//! runs those.

mod command;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks};

use crate::mount_namespace;
use crate::network::{self, Netns};
use crate::process_identity::ProcessIdentity;

/// A kind of hook that runs on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// At `create`, before `createRuntime`; deprecated and still used.
    Prestart,
    /// At `create`, while the VM boots, before the network is looked at.
    CreateRuntime,
    /// At `create`, before the guest gets the container's files.
    CreateContainer,
    /// At `start`, once the program runs.
    Poststart,
    /// At `delete`, once everything is undone.
    Poststop,
}

/// In which namespaces a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookNamespaces {
    /// Those of the `hull` command.
    Runtime,
    /// Those of the container's process proxy: the container's own are in the guest, where programs of the host cannot run.
    Proxy,
}

impl HookKind {
    const TABLE: [(Self, &'static str, HookNamespaces); 5] = [
        (Self::Prestart, "prestart", HookNamespaces::Runtime),
        (
            Self::CreateRuntime,
            "createRuntime",
            HookNamespaces::Runtime,
        ),
        (
            Self::CreateContainer,
            "createContainer",
            HookNamespaces::Proxy,
        ),
        (Self::Poststart, "poststart", HookNamespaces::Runtime),
        (Self::Poststop, "poststop", HookNamespaces::Runtime),
    ];

    /// Those that run at `create`.
    pub const OF_CREATE: [Self; 3] = [Self::Prestart, Self::CreateRuntime, Self::CreateContainer];

    /// Its name in config.json.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Where it runs.
    pub fn namespaces(self) -> HookNamespaces {
        self.row().2
    }

    /// The hooks of this kind.
    #[allow(deprecated)]
    pub fn of(self, hooks: &Hooks) -> &[Hook] {
        let hooks = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        hooks.as_deref().unwrap_or_default()
    }

    fn row(self) -> &'static (Self, &'static str, HookNamespaces) {
        // The table has a row for each kind, in their order.
        &Self::TABLE[self as usize]
    }
}

/// How a hook fails.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be run.
    #[error("error running {kind} hook #{index}: {}", path.display())]
    Run {
        /// Which kind.
        kind: &'static str,
        /// Which of that kind, from 0.
        index: usize,
        /// Its program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It says that it failed.
    #[error("error running {kind} hook #{index}: {status}, stdout: {stdout}, stderr: {stderr}")]
    Failed {
        /// Which kind.
        kind: &'static str,
        /// Which of that kind, from 0.
        index: usize,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote, cut short.
        stdout: String,
        /// What it wrote, cut short.
        stderr: String,
    },
    /// It took longer than its `timeout`, and was killed with all of its process group.
    #[error(
        "error running {kind} hook #{index}: hook ran past specified timeout of {} s, stdout: {stdout}, stderr: {stderr}",
        timeout.as_secs()
    )]
    TimedOut {
        /// Which kind.
        kind: &'static str,
        /// Which of that kind, from 0.
        index: usize,
        /// Its timeout.
        timeout: Duration,
        /// What it wrote, cut short.
        stdout: String,
        /// What it wrote, cut short.
        stderr: String,
    },
    /// The network namespace cannot be entered.
    #[error("error running {kind} hooks")]
    Netns {
        /// Which kind.
        kind: &'static str,
        /// Why not.
        source: Box<network::Error>,
    },
    /// The mount namespace cannot be entered.
    #[error("error running {kind} hooks: enter the mount namespace of the process proxy")]
    Mounts {
        /// Which kind.
        kind: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Runs `hooks`, which are of one kind, one after the other, each with `state` on its standard input and `directory` as
/// its working directory; the first that fails is the last that runs. `proxy` is the container's, with its network namespace.
///
/// # Errors
/// A hook failed.
pub fn run(
    kind: HookKind,
    hooks: &[Hook],
    state: &str,
    directory: &Path,
    proxy: Option<(&ProcessIdentity, &Netns)>,
) -> Result<(), HookError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let run_all = || {
        for (index, hook) in hooks.iter().enumerate() {
            tracing::debug!(kind = kind.name(), index, path = %hook.path().display(), "hook");
            command::run(kind, index, hook, state, directory)?;
        }
        Ok(())
    };
    let (HookNamespaces::Proxy, Some((proxy, netns))) = (kind.namespaces(), proxy) else {
        return run_all();
    };
    let kind = kind.name();
    netns
        .run(|| mount_namespace::run_in(proxy, run_all))
        .map_err(|error| HookError::Netns {
            kind,
            source: Box::new(error),
        })?
        .map_err(|source| HookError::Mounts { kind, source })?
}
