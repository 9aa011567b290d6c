//! What is known of a container, and what is done with it: each function is one call of the runtime library, in a thread
//! that may block, and what is of containerd's world around it.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api::CreateTaskRequest;
use hull_runtime::Runtime;
use hull_runtime::container::{
    self, ContainerId, CreateOptions, ExecOptions, ExecProcess, Executed, Reading,
};
use hull_runtime::sandbox::disk::RootDisk;
use oci_spec::runtime::LinuxResources;

use crate::error::Error;
use crate::options::Options;
use crate::process::{Phase, Process};
use crate::stdio::{OpenStreams, Owner, StreamNames};
use crate::{rootfs, state};

/// A file of the bundle in which process proxies tell what goes wrong.
const LOG: &str = "hull.log";

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) bundle: PathBuf,
    pub(crate) namespace: String,
    runtime: Runtime,
    /// Its first process.
    pub(crate) first: Arc<Process>,
    execs: Mutex<BTreeMap<String, Arc<Process>>>,
}

/// Runs what may block in a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await?
}

impl Container {
    /// Makes it, and gives its process proxy. What was done is undone when that fails.
    pub(crate) fn create(
        namespace: &str,
        request: &CreateTaskRequest,
    ) -> Result<(Self, Child), Error> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Unsupported("restoring a checkpoint".into()));
        }
        let id: ContainerId = request.id.parse().map_err(hull_runtime::Error::from)?;
        let bundle = PathBuf::from(&request.bundle);
        let options = Options::of(request.options.as_ref())?;
        let log = Some(bundle.join(LOG));
        let config = options.config.as_deref();
        let runtime = state::runtime(namespace, config, options.systemd_cgroup, log)?;
        let names = StreamNames {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let owner = Owner {
            namespace,
            id: &request.id,
        };
        let streams = OpenStreams::open(&names, owner, &state::root(namespace))?;
        let mounted = bundle.join(rootfs::DIRECTORY);
        let root_disk = rootfs::disk(&request.rootfs);
        if root_disk.is_none() {
            rootfs::mount_all(&request.rootfs, &mounted)?;
        }
        let made = Self::make(&runtime, &id, &bundle, root_disk, streams);
        let (proxy, held) = made.inspect_err(|_| {
            if !request.rootfs.is_empty()
                && let Err(error) = rootfs::unmount(&mounted)
            {
                tracing::warn!(container = %id, %error, "unmount the root file system");
            }
        })?;
        let container = Self {
            first: Arc::new(Process::first(names, proxy.id(), held)),
            id,
            bundle,
            namespace: namespace.into(),
            runtime,
            execs: Mutex::default(),
        };
        Ok((container, proxy))
    }

    fn make(
        runtime: &Runtime,
        id: &ContainerId,
        bundle: &std::path::Path,
        root_disk: Option<RootDisk>,
        streams: OpenStreams,
    ) -> Result<(Child, crate::stdio::Held), Error> {
        let options = CreateOptions {
            id: id.clone(),
            bundle: bundle.into(),
            root_disk,
            console: streams.console(),
            stdio: Some(streams.standard()),
            files: Vec::new(),
            listening: 0,
            pid_file: None,
            notifies: false,
        };
        let created = container::create(runtime, &options)?;
        // The proxy has its own copies.
        drop(options);
        match streams.connect() {
            Ok(held) => Ok((created.proxy, held)),
            Err(error) => {
                if let Err(error) = container::delete(runtime, id, true) {
                    tracing::warn!(container = %id, error = error.report(), "delete");
                }
                Err(error)
            }
        }
    }

    /// Lets its program run.
    pub(crate) fn start(&self) -> Result<(), Error> {
        // containerd is no service manager to report to.
        let _ = container::start(&self.runtime, &self.id, None)?;
        self.first.set_phase(Phase::Running);
        Ok(())
    }

    /// Starts a process that was added, and gives its process proxy.
    pub(crate) fn start_exec(&self, process: &Process) -> Result<Child, Error> {
        let spec = process.take_spec().ok_or_else(|| Error::WrongState {
            what: "start",
            id: process.exec_id.clone(),
            state: "started already",
        })?;
        let owner = Owner {
            namespace: &self.namespace,
            id: self.id.as_str(),
        };
        let directory = state::root(&self.namespace);
        let streams = OpenStreams::open(&process.names, owner, &directory)?;
        let options = ExecOptions {
            id: self.id.clone(),
            process: ExecProcess::Given(spec),
            console: streams.console(),
            stdio: Some(streams.standard()),
            files: Vec::new(),
            pid_file: None,
            ignore_paused: false,
            cgroup: None,
        };
        let Executed { proxy, exec_id } = container::exec_detached(&self.runtime, &options)?;
        drop(options);
        let held = streams.connect().inspect_err(|_| {
            let kill = libc::SIGKILL.unsigned_abs();
            if let Err(error) = container::kill_exec(&self.runtime, &self.id, &exec_id, kill) {
                tracing::warn!(container = %self.id, error = error.report(), "kill");
            }
        })?;
        process.set_started(proxy.id(), exec_id, held);
        Ok(proxy)
    }

    /// Adds a process.
    pub(crate) fn add(&self, process: Process) -> Result<(), Error> {
        let mut execs = self.execs();
        if execs.contains_key(&process.exec_id) {
            return Err(Error::Exists {
                what: "exec",
                id: process.exec_id,
            });
        }
        execs.insert(process.exec_id.clone(), Arc::new(process));
        Ok(())
    }

    /// A process by its id; the first if that is empty.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.first));
        }
        let found = self.execs().get(exec_id).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: "exec",
            id: exec_id.into(),
        })
    }

    /// Those that Exec has added.
    pub(crate) fn added(&self) -> Vec<Arc<Process>> {
        self.execs().values().cloned().collect()
    }

    /// Forgets a process that was added.
    pub(crate) fn forget(&self, exec_id: &str) {
        self.execs().remove(exec_id);
    }

    /// Nothing panics while it is held.
    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a signal to a process, or to all of them.
    pub(crate) fn kill(&self, process: &Process, signal: u32, all: bool) -> Result<(), Error> {
        if process.ended().is_some() {
            return Err(Error::Finished);
        }
        if process.exec_id.is_empty() {
            return Ok(container::kill(&self.runtime, &self.id, signal, all)?);
        }
        if process.pid() == 0 {
            return Err(Error::WrongState {
                what: "kill",
                id: process.exec_id.clone(),
                state: "not started",
            });
        }
        let guest_id = process.guest_id();
        Ok(container::kill_exec(
            &self.runtime,
            &self.id,
            &guest_id,
            signal,
        )?)
    }

    pub(crate) fn pause(&self) -> Result<(), Error> {
        container::pause(&self.runtime, &self.id)?;
        self.first.set_phase(Phase::Paused);
        Ok(())
    }

    pub(crate) fn resume(&self) -> Result<(), Error> {
        container::resume(&self.runtime, &self.id)?;
        self.first.set_phase(Phase::Running);
        Ok(())
    }

    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        Ok(container::update(&self.runtime, &self.id, resources)?)
    }

    /// The pids of its processes' proxies.
    pub(crate) fn pids(&self) -> Result<Vec<u32>, Error> {
        let pids = container::host_pids(&self.runtime, &self.id)?;
        Ok(pids
            .into_iter()
            .filter_map(|pid| u32::try_from(pid).ok())
            .collect())
    }

    /// Where a byte comes each time that the guest's kernel has ended processes of it for want of memory.
    pub(crate) fn out_of_memory(&self) -> Result<UnixStream, Error> {
        let stream = container::out_of_memory(&self.runtime, &self.id)?;
        let watched = stream.set_nonblocking(true);
        watched.map_err(Error::io("watch the memory of", self.id.as_str()))?;
        Ok(stream)
    }

    pub(crate) fn read(&self) -> Result<Reading, Error> {
        Ok(container::read(&self.runtime, &self.id)?)
    }

    /// Deletes it, if it does not run, and takes its root file system off.
    pub(crate) fn delete(&self) -> Result<(), Error> {
        container::delete(&self.runtime, &self.id, false)?;
        let mounted = self.bundle.join(rootfs::DIRECTORY);
        rootfs::unmount(&mounted).map_err(Error::io("unmount", &mounted))?;
        self.first.release();
        Ok(())
    }
}
