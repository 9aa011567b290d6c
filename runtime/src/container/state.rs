//! `state`: what a container is, as the specification has it (runtime.md "State"), told from what is kept of it and
//! from the processes that live.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::{ContainerError, ContainerId};
use crate::Runtime;
use crate::process_identity::ProcessIdentity;
use crate::store::{ContainerRecord, Lifecycle, Store};

/// A container's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is at work.
    Creating,
    /// `create` is done, `start` is not.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its process has ended, or its VM.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What `state` prints, and hooks get.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The version of the specification that the container was configured by.
    pub oci_version: String,
    /// Its id.
    pub id: ContainerId,
    /// Its process proxy's; 0 when it has stopped.
    pub pid: i32,
    /// Its state.
    pub status: Status,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// When it was created: RFC 3339.
    pub created: String,
    /// Annotations of its configuration.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
    /// The user who created it.
    pub owner: String,
}

/// The state of the container `id`.
///
/// # Errors
/// There is none.
pub fn state(runtime: &Runtime, id: &ContainerId) -> Result<State, crate::Error> {
    let record = runtime.store.container(id)?;
    Ok(State::of(&runtime.store, &record))
}

impl State {
    /// The state of a container of `store`.
    pub fn of(store: &Store, record: &ContainerRecord) -> Self {
        Self::with_status(record, status(store, record))
    }

    /// For hooks, which are told the state that the container is coming to.
    pub(super) fn with_status(record: &ContainerRecord, status: Status) -> Self {
        let pid = record
            .proxy
            .filter(|_| status != Status::Stopped)
            .map_or(0, |proxy| proxy.pid);
        Self {
            oci_version: record.oci_version.clone(),
            id: record.id.clone(),
            status,
            pid,
            bundle: record.bundle.clone(),
            rootfs: record.rootfs.clone(),
            created: record.created.clone(),
            annotations: record.annotations.clone(),
            owner: record.owner.clone(),
        }
    }

    /// As hooks get it.
    pub(super) fn to_json(&self) -> String {
        // Strings, numbers and a map with string keys: this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A container runs as long as its proxy and its VM do: neither of them outlives it, and it outlives neither.
pub(super) fn status(store: &Store, record: &ContainerRecord) -> Status {
    let is_alive =
        |process: Option<ProcessIdentity>| process.is_some_and(|process| process.is_alive());
    if record.lifecycle == Lifecycle::Creating {
        return if is_alive(record.creator) {
            Status::Creating
        } else {
            Status::Stopped
        };
    }
    let vmm = store
        .sandbox(&record.sandbox_id)
        .ok()
        .and_then(|sandbox| sandbox.vmm);
    if !is_alive(record.proxy) || !is_alive(vmm) {
        return Status::Stopped;
    }
    match record.lifecycle {
        Lifecycle::Creating | Lifecycle::Created => Status::Created,
        Lifecycle::Started => Status::Running,
        Lifecycle::Paused => Status::Paused,
    }
}

/// Checks that a container has processes.
///
/// # Errors
/// It has none yet, or none any more.
pub(super) fn check_live(store: &Store, record: &ContainerRecord) -> Result<(), ContainerError> {
    match status(store, record) {
        Status::Stopped | Status::Creating => Err(ContainerError::NotRunning),
        Status::Created | Status::Running | Status::Paused => Ok(()),
    }
}

/// Whether a container needs its sandbox's VM: it is being made, or its process has not ended.
pub fn in_use(record: &ContainerRecord) -> bool {
    let process = match record.lifecycle {
        Lifecycle::Creating => record.creator,
        _ => record.proxy,
    };
    process.is_some_and(|process| process.is_alive())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests_support::{record, sandbox_record};

    #[test]
    fn the_state_is_told_from_the_processes_that_live() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().into());
        let own = ProcessIdentity::own().unwrap();
        let gone = ProcessIdentity {
            start_time: own.start_time + 1,
            ..own
        };
        let id: ContainerId = "c1".parse().unwrap();
        let _lock = store.create_sandbox(&id).unwrap();
        for (lifecycle, creator, proxy, vmm, expected) in [
            (Lifecycle::Creating, Some(own), None, None, Status::Creating),
            (
                Lifecycle::Creating,
                Some(gone),
                Some(own),
                Some(own),
                Status::Stopped,
            ),
            (
                Lifecycle::Created,
                None,
                Some(own),
                Some(own),
                Status::Created,
            ),
            (
                Lifecycle::Started,
                None,
                Some(own),
                Some(own),
                Status::Running,
            ),
            (
                Lifecycle::Paused,
                None,
                Some(own),
                Some(own),
                Status::Paused,
            ),
            (
                Lifecycle::Started,
                None,
                Some(gone),
                Some(own),
                Status::Stopped,
            ),
            (
                Lifecycle::Started,
                None,
                Some(own),
                Some(gone),
                Status::Stopped,
            ),
            (Lifecycle::Started, None, Some(own), None, Status::Stopped),
        ] {
            let mut sandbox = sandbox_record(&id);
            sandbox.vmm = vmm;
            store.save_sandbox(&sandbox).unwrap();
            let mut record = record(&id);
            (record.lifecycle, record.creator, record.proxy) = (lifecycle, creator, proxy);
            let state = State::of(&store, &record);
            assert_eq!(state.status, expected);
            assert_eq!(
                state.pid == 0,
                expected == Status::Stopped || proxy.is_none()
            );
        }
    }

    #[test]
    fn the_state_is_written_as_the_specification_has_it() {
        let mut record = record(&"c1".parse().unwrap());
        record.annotations.insert("a".into(), "b".into());
        record.proxy = Some(ProcessIdentity::own().unwrap());
        let json = State::with_status(&record, Status::Created).to_json();
        let state: serde_json::Value = serde_json::from_str(&json).unwrap();
        for (name, value) in [
            ("ociVersion", "1.0.2"),
            ("id", "c1"),
            ("status", "created"),
            ("bundle", "/bundle"),
        ] {
            assert_eq!(state[name], value);
        }
        assert_eq!(state["pid"], std::process::id());
        assert_eq!(state["annotations"]["a"], "b");
    }
}
