//! The state directory: what commands know of each other. Every `hull` command is stateless, so whatever outlives one
//! is a file here, and a file is either there whole or not at all.
//!
//! ```text
//! <root>/containers/<id>/state.json               a container (records.rs)
//! <root>/sandboxes/<id>/sandbox.json              a sandbox: its VM, its network (records.rs)
//! <root>/sandboxes/<id>/lock                      held by whoever changes the sandbox or its containers
//! <root>/sandboxes/<id>/{vm.json, control.sock, vsock/, console.log, vmm.log, outcome.json}   of hull-vmm
//! <root>/sandboxes/<id>/monitor.log               of its monitor
//! <root>/metrics/<id>.sock                        the sandbox's metrics, of its monitor too
//! ```
//!
//! A container's directory is made before anything else, which reserves its id, and removed after everything else. It is
//! itself the lock of whoever deletes the container.

mod file;
mod lock;
mod records;
#[cfg(test)]
mod tests;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub use file::{write_atomic, write_unnamed};
pub use lock::Lock;
pub use records::{ContainerRecord, Lifecycle, SandboxRecord};

use crate::container::ContainerId;

/// How the state directory fails.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The id is in use.
    #[error("container with given ID already exists: {id}")]
    Exists {
        /// The id.
        id: ContainerId,
    },
    /// No container has that id.
    #[error("container does not exist: {id}")]
    NotFound {
        /// The id.
        id: ContainerId,
    },
    /// The container's sandbox is gone.
    #[error("sandbox does not exist: {id}")]
    NoSandbox {
        /// The sandbox's id.
        id: ContainerId,
    },
    /// A file or directory could not be read, made or removed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried: `write`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A record is not one.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl StoreError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}

/// A state directory. It need not exist before the first container does.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The state directory at `root`, an absolute path.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the id for a container that is about to be made. Dropping the reservation frees it again.
    ///
    /// # Errors
    /// The id is taken, or the directory cannot be made.
    pub fn reserve(&self, id: &ContainerId) -> Result<Reservation, StoreError> {
        let parent = self.root.join("containers");
        make_directories(&parent)?;
        let directory = self.container_directory(id);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => Ok(Reservation {
                directory,
                kept: false,
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(StoreError::Exists { id: id.clone() })
            }
            Err(error) => Err(StoreError::io("make", &directory)(error)),
        }
    }

    /// Reads a container's record.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn container(&self, id: &ContainerId) -> Result<ContainerRecord, StoreError> {
        let path = self.container_directory(id).join("state.json");
        file::read_json(&path)?.ok_or_else(|| StoreError::NotFound { id: id.clone() })
    }

    /// Writes a container's record; its id must be reserved.
    ///
    /// # Errors
    /// The disk is full, for one; the record that was there before then still is.
    pub fn save_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        file::write_json(
            &self.container_directory(&record.id).join("state.json"),
            record,
        )
    }

    /// All containers, in order of their ids. Directories without a record are left out: their container is just
    /// being made or removed.
    ///
    /// # Errors
    /// The directory cannot be read, or a record is damaged.
    pub fn containers(&self) -> Result<Vec<ContainerRecord>, StoreError> {
        let mut records = Vec::new();
        for id in self.ids("containers")? {
            match self.container(&id) {
                Ok(record) => records.push(record),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Takes the turn to delete a container, once whoever has it is done; nothing if the container is gone then.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn lock_container(&self, id: &ContainerId) -> Result<Option<Lock>, StoreError> {
        Lock::of_directory(&self.container_directory(id))
    }

    /// Removes a container's directory; nothing happens if there is none.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_container(&self, id: &ContainerId) -> Result<(), StoreError> {
        file::remove_directory(&self.container_directory(id))
    }

    /// Where a sandbox's files are.
    pub fn sandbox_directory(&self, id: &ContainerId) -> PathBuf {
        self.root.join("sandboxes").join(id.as_str())
    }

    /// Makes the directory of a new sandbox, with its lock, which is taken.
    ///
    /// # Errors
    /// There is one already, or it cannot be made.
    pub fn create_sandbox(&self, id: &ContainerId) -> Result<Lock, StoreError> {
        make_directories(&self.root.join("sandboxes"))?;
        let directory = self.sandbox_directory(id);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(StoreError::io("make", &directory))?;
        let vsock = directory.join("vsock");
        let lock = DirBuilder::new()
            .mode(0o700)
            .create(&vsock)
            .map_err(StoreError::io("make", &vsock))
            .and_then(|()| Lock::create(&directory.join("lock")));
        if lock.is_err()
            && let Err(error) = file::remove_directory(&directory)
        {
            tracing::warn!(%error, "a directory is left behind");
        }
        lock
    }

    /// Takes the lock of a sandbox, once whoever has it lets go of it.
    ///
    /// # Errors
    /// The sandbox is gone, perhaps just now.
    pub fn lock_sandbox(&self, id: &ContainerId) -> Result<Lock, StoreError> {
        Lock::acquire(&self.sandbox_directory(id).join("lock"))?
            .ok_or_else(|| StoreError::NoSandbox { id: id.clone() })
    }

    /// Reads a sandbox's record.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn sandbox(&self, id: &ContainerId) -> Result<SandboxRecord, StoreError> {
        let path = self.sandbox_directory(id).join("sandbox.json");
        file::read_json(&path)?.ok_or_else(|| StoreError::NoSandbox { id: id.clone() })
    }

    /// Writes a sandbox's record; the caller holds its lock.
    ///
    /// # Errors
    /// As [`Store::save_container`].
    pub fn save_sandbox(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        file::write_json(
            &self.sandbox_directory(&record.id).join("sandbox.json"),
            record,
        )
    }

    /// All sandboxes that have a record, in order of their ids.
    ///
    /// # Errors
    /// As [`Store::containers`].
    pub fn sandboxes(&self) -> Result<Vec<SandboxRecord>, StoreError> {
        let mut records = Vec::new();
        for id in self.ids("sandboxes")? {
            match self.sandbox(&id) {
                Ok(record) => records.push(record),
                Err(StoreError::NoSandbox { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Where a sandbox's metrics are asked for. The path is short, for others are to connect to it: with the id of a pod
    /// of Kubernetes there are few of the 107 bytes left that an address of a socket holds.
    pub fn metrics_socket(&self, id: &ContainerId) -> PathBuf {
        self.root.join("metrics").join(format!("{id}.sock"))
    }

    /// Removes all of a sandbox; the caller holds its lock.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_sandbox(&self, id: &ContainerId) -> Result<(), StoreError> {
        let socket = self.metrics_socket(id);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &socket)(error));
            }
            _ => {}
        }
        file::remove_directory(&self.sandbox_directory(id))
    }

    fn container_directory(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(id.as_str())
    }

    fn ids(&self, kind: &str) -> Result<Vec<ContainerId>, StoreError> {
        let directory = self.root.join(kind);
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("read", &directory)(error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("read", &directory))?;
            // A name that is no id was not made by hull.
            if let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

/// An id that is taken for a container which is not made yet.
#[derive(Debug)]
pub struct Reservation {
    directory: PathBuf,
    kept: bool,
}

impl Reservation {
    /// The container has been made.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = file::remove_directory(&self.directory)
        {
            tracing::warn!(%error, "a directory is left behind");
        }
    }
}

fn make_directories(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
        .map_err(StoreError::io("make", path))
}

/// Records for the tests of other modules.
#[cfg(test)]
pub(crate) mod tests_support {
    use super::{ContainerRecord, Lifecycle, SandboxRecord};
    use crate::container::ContainerId;
    use crate::network::{NetworkState, Options};
    use crate::process_identity::ProcessIdentity;

    pub(crate) fn record(id: &ContainerId) -> ContainerRecord {
        ContainerRecord {
            id: id.clone(),
            sandbox_id: id.clone(),
            oci_version: "1.0.2".into(),
            bundle: "/bundle".into(),
            rootfs: "/bundle/rootfs".into(),
            created: "2026-01-01T00:00:00Z".into(),
            owner: "root".into(),
            annotations: std::collections::HashMap::new(),
            resolver_file: None,
            notifies: false,
            pinned_namespaces: vec![],
            lifecycle: Lifecycle::Creating,
            creator: None,
            proxy: None,
            cgroup: None,
            limits: crate::config::VmSize::default(),
            guest_pid: None,
            poststart: vec![],
            poststop: vec![],
            timings: vec![],
        }
    }

    pub(crate) fn sandbox_record(id: &ContainerId) -> SandboxRecord {
        SandboxRecord {
            id: id.clone(),
            pod: None,
            netns_path: None,
            netns_holder: Some(ProcessIdentity {
                pid: 1,
                start_time: u64::MAX,
            }),
            network_options: Options::default(),
            network: NetworkState::default(),
            nics: crate::config::NicSettings::default(),
            size: crate::config::VmSize {
                vcpus: 1,
                memory_mib: 64,
            },
            most: crate::config::VmSize::default(),
            cgroup: None,
            vmm: None,
            monitor: None,
            guest_network: None,
            disks: Vec::new(),
        }
    }
}
