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

use crate::network::{self, Netns};

/// A kind of hook that runs on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// At `create`, before `createRuntime`; deprecated and still used.
    Prestart,
    /// At `create`, while the VM boots, before the network is looked at.
    CreateRuntime,
    /// At `create`, before the container is made in the guest.
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
    /// The sandbox's network namespace, and otherwise those of the `hull` command: the container's other namespaces
    /// are in the guest, where programs of the host cannot run.
    Sandbox,
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
            HookNamespaces::Sandbox,
        ),
        (Self::Poststart, "poststart", HookNamespaces::Runtime),
        (Self::Poststop, "poststop", HookNamespaces::Runtime),
    ];

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
    /// The sandbox's network namespace cannot be entered.
    #[error("error running {kind} hooks")]
    Enter {
        /// Which kind.
        kind: &'static str,
        /// Why not.
        source: Box<network::Error>,
    },
}

/// Runs `hooks`, which are of one kind, one after the other, each with `state` on its standard input and `bundle` as its working directory;
/// the first that fails is the last that runs. `netns` is the sandbox's.
///
/// # Errors
/// A hook failed.
pub fn run(
    kind: HookKind,
    hooks: &[Hook],
    state: &str,
    bundle: &Path,
    netns: Option<&Netns>,
) -> Result<(), HookError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let run_all = || {
        for (index, hook) in hooks.iter().enumerate() {
            tracing::debug!(kind = kind.name(), index, path = %hook.path().display(), "hook");
            command::run(kind, index, hook, state, bundle)?;
        }
        Ok(())
    };
    match (kind.namespaces(), netns) {
        (HookNamespaces::Sandbox, Some(netns)) => {
            netns.run(run_all).map_err(|source| HookError::Enter {
                kind: kind.name(),
                source: Box::new(source),
            })?
        }
        _ => run_all(),
    }
}
