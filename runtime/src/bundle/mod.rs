//! A bundle: `config.json` and the root file system that it names, read once and checked before anything is done
//! with them (OCI runtime specification, bundle.md and config.md).

mod validate;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, Hooks, Process, Spec};
use serde_json::Value;

pub(crate) use validate::HOST_NETWORK;
pub use validate::{NEWEST_OCI_VERSION, OLDEST_OCI_VERSION, validate_process};

/// How a bundle fails.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file of the bundle cannot be read.
    #[error("bundle: {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// config.json (or a process file) is not one.
    #[error("{} is not valid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The version is none that hull knows.
    #[error("config.json: ociVersion {version:?} is not supported: {oldest} to {newest} are", oldest = OLDEST_OCI_VERSION, newest = NEWEST_OCI_VERSION)]
    Version {
        /// What config.json says.
        version: String,
    },
    /// A value is missing or wrong.
    #[error("config.json: {field}: {problem}")]
    Field {
        /// Which: `process.args`.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Something that a VM cannot give a container.
    #[error("config.json: {field}: {reason}")]
    Unsupported {
        /// What is asked for.
        field: String,
        /// Why it cannot be had.
        reason: &'static str,
    },
    /// The root file system is not there.
    #[error("rootfs {} is missing", path.display())]
    NoRootfs {
        /// Where it should be.
        path: PathBuf,
        /// What is there instead.
        source: io::Error,
    },
}

/// A bundle that can be run.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Its directory: absolute, without symbolic links.
    pub directory: PathBuf,
    /// The root file system: absolute, without symbolic links.
    pub rootfs: PathBuf,
    /// Its config.json.
    pub spec: Spec,
    /// `process` of it.
    pub process: Process,
}

impl Bundle {
    /// Reads the bundle in `directory` and checks what can be checked without running it.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn load(directory: &Path) -> Result<Self, BundleError> {
        let directory = std::fs::canonicalize(directory).map_err(|source| BundleError::Read {
            path: directory.into(),
            source,
        })?;
        let mut spec: Spec = read_json(&directory.join("config.json"))?;
        for mount in spec.mounts_mut().iter_mut().flatten() {
            // One that is relative is so to `/` (config.md "Mounts").
            let destination = Path::new("/").join(mount.destination());
            mount.set_destination(destination);
        }
        let process = validate::validate(&spec)?;
        let root = validate::root(&spec)?;
        let path = directory.join(root.path());
        let rootfs = std::fs::canonicalize(&path)
            .and_then(|rootfs| {
                if rootfs.is_dir() {
                    Ok(rootfs)
                } else {
                    Err(io::ErrorKind::NotADirectory.into())
                }
            })
            .map_err(|source| BundleError::NoRootfs { path, source })?;
        Ok(Self {
            directory,
            rootfs,
            spec,
            process,
        })
    }

    /// Its annotations.
    pub fn annotations(&self) -> HashMap<String, String> {
        self.spec.annotations().clone().unwrap_or_default()
    }

    /// Where its cgroup is to be, if it says so.
    pub fn cgroups_path(&self) -> Option<&Path> {
        let linux = self.spec.linux().as_ref()?;
        linux.cgroups_path().as_deref()
    }

    /// Its hooks.
    pub fn hooks(&self) -> Hooks {
        self.spec.hooks().clone().unwrap_or_default()
    }

    /// Whether its process has a terminal.
    pub fn terminal(&self) -> bool {
        self.process.terminal().unwrap_or(false)
    }
}

/// Reads the configuration of a bundle whose container runs.
///
/// # Errors
/// See [`BundleError`].
pub fn read_spec(directory: &Path) -> Result<Spec, BundleError> {
    read_json(&directory.join("config.json"))
}

/// Reads a process object, as `exec --process` takes it.
///
/// # Errors
/// See [`BundleError`].
pub fn read_process(path: &Path) -> Result<Process, BundleError> {
    let mut json: Value = read_json(path)?;
    name_user(&mut json);
    drop_unknown_capabilities(&mut json);
    let process = serde_json::from_value(json).map_err(|source| BundleError::Parse {
        path: path.into(),
        source,
    })?;
    validate_process(&process)?;
    Ok(process)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, BundleError> {
    let bytes = std::fs::read(path).map_err(|source| BundleError::Read {
        path: path.into(),
        source,
    })?;
    let parsed = serde_json::from_slice(&bytes).or_else(|error| {
        let mut json: Value = serde_json::from_slice(&bytes)?;
        if let Some(process) = json.get_mut("process") {
            name_user(process);
        }
        drop_unknown_capabilities(&mut json);
        serde_json::from_value(json).map_err(|_| error)
    });
    parsed.map_err(|source| BundleError::Parse {
        path: path.into(),
        source,
    })
}

/// As with runc, where nobody is named it is root.
fn name_user(process: &mut Value) {
    if let Some(fields) = process.as_object_mut() {
        let user = fields.entry("user");
        user.or_insert_with(|| serde_json::json!({ "uid": 0, "gid": 0 }));
    }
}

/// Leaves capabilities out of a configuration, or a process, that nobody here knows: one that cannot be granted is told of,
/// and no failure (config.md "Linux Process").
fn drop_unknown_capabilities(json: &mut Value) {
    for place in ["/process/capabilities", "/capabilities"] {
        let sets = json.pointer_mut(place).and_then(Value::as_object_mut);
        for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
            let Some(names) = set.as_array_mut() else {
                continue;
            };
            names.retain(|name| {
                let is_known = serde_json::from_value::<Capability>(name.clone()).is_ok();
                if !is_known {
                    tracing::warn!(capability = %name, "ignoring an unknown capability");
                }
                is_known
            });
        }
    }
}

#[cfg(test)]
mod tests;
