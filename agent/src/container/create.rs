//! CreateContainer: from a specification to a process that waits for its start.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use oci_spec::runtime::Spec;

use super::cgroup::Cgroup;
use super::helper::{self, Request};
use super::spec::{self, GuestSpec};
use super::volumes::Volumes;
use super::{
    Container, Containers, Error, NotifySocket, OutOfMemory, ProcessEntry, SharedMemory, check_id,
    copy_up, devices, lock,
};
use crate::process::Process;
use crate::stdio::{InheritedFile, ProcessIo, make_files};

/// What a container has beside its specification.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Its process reads a stream.
    pub stdin: bool,
    /// It has a notification socket of this file name.
    pub notify_socket: Option<String>,
    /// The shared memory that its specification binds.
    pub shared_memory: Vec<SharedMemory>,
    /// Open files that its process has beside its stdio.
    pub files: Vec<InheritedFile>,
}

impl Containers {
    /// Makes the container `id` from a `config.json` whose paths are the guest's.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left of the container then.
    pub async fn create(
        &self,
        id: &str,
        config: &[u8],
        options: &CreateOptions,
    ) -> Result<Arc<Process>, Error> {
        check_id(id)?;
        let mut guest_spec = spec::for_guest(config, id, &self.guest())?;
        if let Some(namespace) = guest_spec.pod_processes() {
            let init = self.pod_init().await?;
            namespace.set_path(Some(format!("/proc/{init}/ns/pid").into()));
        }
        let shares_processes = guest_spec.shares_processes();
        {
            let mut table = lock(&self.table);
            if table.contains_key(id) {
                return Err(Error::Exists(id.to_owned()));
            }
            table.insert(id.to_owned(), None);
        }
        let cgroup = Cgroup::new(self.paths.cgroups.join(id));
        match self.make(id, guest_spec, &cgroup, options).await {
            Ok((container, process)) => {
                if shares_processes {
                    tokio::spawn(Arc::clone(&container).end_with_first(Arc::clone(&process)));
                }
                lock(&self.table).insert(id.to_owned(), Some(container));
                Ok(process)
            }
            Err(error) => {
                lock(&self.table).remove(id);
                self.clean_up(id, &cgroup, &options.shared_memory).await;
                Err(error)
            }
        }
    }

    async fn make(
        &self,
        id: &str,
        mut guest_spec: GuestSpec,
        cgroup: &Cgroup,
        options: &CreateOptions,
    ) -> Result<(Arc<Container>, Arc<Process>), Error> {
        for memory in &options.shared_memory {
            memory.mount(&self.paths.shared_memory, self.is_used(memory))?;
        }
        let notify = options
            .notify_socket
            .as_ref()
            .map(|name| NotifySocket::bind(&self.paths.notify.join(id), name))
            .transpose()?
            .map(Arc::new);
        for (name, value) in &guest_spec.network_sysctls {
            set_sysctl(name, value)?;
        }
        cgroup.make()?;
        devices::apply(&guest_spec.devices, cgroup.path())?;
        make_working_directory(&guest_spec.spec);
        let volumes = Volumes::of(&guest_spec.spec);
        let bundle = self.paths.bundles.join(id);
        let beside = bundle.clone();
        // Copying takes as long as there is to copy.
        let copied = tokio::task::spawn_blocking(move || {
            let filled = copy_up::fill(&mut guest_spec.spec, &beside)?;
            Ok::<_, Error>((filled, guest_spec))
        });
        let (_bound_until_made, guest_spec) = copied.await.map_err(Error::CopyUp)??;
        write_bundle(&bundle, &guest_spec)?;
        fs::create_dir_all(&self.paths.state).map_err(|source| Error::File {
            action: "make the directory",
            path: self.paths.state.clone(),
            source,
        })?;
        let seccomp = guest_spec.payload.seccomp.clone();
        let request = Request {
            container_id: id.to_owned(),
            state: self.paths.state.clone(),
            bundle,
            process: None,
            cgroup: PathBuf::new(),
            terminal: guest_spec.terminal,
            payload: guest_spec.payload,
        };
        let process = Arc::new(
            self.run_helper(&request, options.stdin, &options.files)
                .await?,
        );
        let first = ProcessEntry {
            process: Some(Arc::clone(&process)),
            added: Instant::now(),
        };
        let container = Container {
            id: id.to_owned(),
            cgroup: cgroup.clone(),
            seccomp,
            notify,
            out_of_memory: OutOfMemory::new(cgroup.clone()),
            shared_memory: options.shared_memory.clone(),
            volumes,
            started: Mutex::new(false),
            processes: Mutex::new(HashMap::from([(String::new(), first)])),
            adding: tokio::sync::Mutex::default(),
        };
        Ok((Arc::new(container), process))
    }

    /// Has a helper make a process with its stdio and further open files.
    pub(super) async fn run_helper(
        &self,
        request: &Request,
        stdin: bool,
        files: &[InheritedFile],
    ) -> Result<Process, Error> {
        let (pipes, stdio) = if request.terminal {
            (None, [Stdio::null(), Stdio::null(), Stdio::null()])
        } else {
            let (io, stdio) =
                ProcessIo::pipes(stdin, request.payload.user).map_err(Error::Stdio)?;
            (Some(io), stdio)
        };
        let (ends, files) = make_files(files).map_err(Error::Stdio)?;
        let made = helper::run(&self.paths.program, &self.reaper, request, stdio, files).await?;
        let io = match (pipes, made.terminal) {
            (Some(pipes), _) => pipes,
            (None, Some(master)) => {
                let io = ProcessIo::terminal(master).map_err(Error::Stdio)?;
                if let Some((rows, columns)) = request.payload.window {
                    // The executor sets it too, before the program can see another one.
                    if let Err(error) = io.resize(rows.into(), columns.into()) {
                        tracing::warn!(%error, "setting a new terminal's size failed");
                    }
                }
                io
            }
            (None, None) => return Err(helper::HelperError::NoTerminal.into()),
        };
        Ok(Process::new(made.watched, io.with_files(ends)))
    }
}

fn write_bundle(bundle: &Path, guest_spec: &GuestSpec) -> Result<(), Error> {
    fs::create_dir_all(bundle).map_err(|source| Error::File {
        action: "make the directory",
        path: bundle.to_owned(),
        source,
    })?;
    let path = bundle.join("config.json");
    let written = serde_json::to_vec(&guest_spec.spec)
        .map_err(std::io::Error::from)
        .and_then(|json| fs::write(&path, json));
    written.map_err(|source| Error::File {
        action: "write",
        path,
        source,
    })
}

/// Makes the process's working directory if it is not there, as runc does; inside the root file system, wherever links
/// in it point.
fn make_working_directory(spec: &Spec) {
    let (Some(root), Some(process)) = (spec.root(), spec.process()) else {
        return;
    };
    // What is wrong with the root file system itself, the helper will say.
    let Ok(root) = pathrs::Root::open(root.path()) else {
        return;
    };
    if root.resolve(process.cwd()).is_err()
        && let Err(error) = root.mkdir_all(process.cwd(), &Permissions::from_mode(0o755))
    {
        // It may come with the container's mounts; else entering it fails, and the helper says so.
        tracing::info!(cwd = ?process.cwd(), %error, "the working directory is not made");
    }
}

/// Sets a sysctl of the network namespace that all containers share. The name has been checked.
fn set_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::write(path, value).map_err(|source| Error::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}
