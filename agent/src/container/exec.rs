//! ExecProcess: adds a process to a running container.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::helper::Request;
use super::{Container, Containers, Error, ProcessEntry, REMEMBERED, check_id, lock, spec};
use crate::process::Process;
use crate::stdio::InheritedFile;

/// How long the streams of a process that has ended wait for their connections.
const STREAMS_KEPT: Duration = Duration::from_secs(60);

impl Containers {
    /// Runs the process of a JSON process object in a container. `stdin`: it reads a stream. `files`: open files that it has
    /// beside its stdio. `cgroup`: one below the container's, if it is to be in another than the container's.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        process: &[u8],
        stdin: bool,
        files: &[InheritedFile],
        cgroup: &str,
    ) -> Result<Arc<Process>, Error> {
        check_id(exec_id)?;
        if Path::new(cgroup)
            .components()
            .any(|part| part == Component::ParentDir)
        {
            return Err(Error::BadCgroup(cgroup.to_owned()));
        }
        // Callers tell a program that is not there by "not found".
        let container = self.get(id).map_err(|_| Error::State {
            container: id.to_owned(),
            state: "not there",
        })?;
        let (process, payload) = spec::for_exec(process, container.seccomp.clone())?;
        let terminal = process.terminal().unwrap_or(false);
        container.reserve(exec_id)?;
        container.volumes.refresh().await;
        let mut request = Request {
            container_id: id.to_owned(),
            state: self.paths.state.clone(),
            bundle: self.paths.bundles.join(id),
            process: Some(process),
            cgroup: PathBuf::new(),
            payload,
            terminal,
        };
        let made = {
            let _one_at_a_time = container.adding.lock().await;
            match container
                .check_running()
                .and_then(|()| container.cgroup_of_added(cgroup))
            {
                Ok(cgroup) => {
                    request.cgroup = cgroup;
                    self.run_helper(&request, stdin, files).await
                }
                Err(error) => Err(error),
            }
        };
        let mut processes = lock(&container.processes);
        let process = match made {
            Ok(process) => Arc::new(process),
            Err(error) => {
                processes.remove(exec_id);
                return Err(error);
            }
        };
        if let Some(entry) = processes.get_mut(exec_id) {
            entry.process = Some(Arc::clone(&process));
        }
        drop(processes);
        tokio::spawn(close_streams_after(Arc::clone(&process)));
        Ok(process)
    }
}

impl Container {
    fn check_running(&self) -> Result<(), Error> {
        if !*lock(&self.started) {
            return Err(self.state("not started"));
        }
        if self.process("")?.exit().is_some() {
            return Err(self.state("stopped"));
        }
        // A process that joined it would stop before it is made.
        if self.cgroup.is_frozen()? {
            return Err(self.state("paused"));
        }
        Ok(())
    }

    /// The cgroup of a process that is added, as a path from the container's.
    fn cgroup_of_added(&self, wanted: &str) -> Result<PathBuf, Error> {
        Ok(match wanted {
            "" => self.cgroup.joined(self.process("")?.pid())?,
            wanted => self.cgroup.below(Path::new(wanted))?,
        })
    }

    /// Takes the id, and forgets processes that ended long ago: a container may see one every second for years.
    fn reserve(&self, exec_id: &str) -> Result<(), Error> {
        let mut processes = lock(&self.processes);
        let now = Instant::now();
        processes.retain(|id, entry| {
            let ended = entry
                .process
                .as_ref()
                .is_some_and(|process| process.exit().is_some());
            id.is_empty() || !ended || now.duration_since(entry.added) < REMEMBERED
        });
        if processes.contains_key(exec_id) {
            return Err(Error::ProcessExists {
                container: self.id.clone(),
                exec: exec_id.to_owned(),
            });
        }
        let entry = ProcessEntry {
            process: None,
            added: now,
        };
        processes.insert(exec_id.to_owned(), entry);
        Ok(())
    }
}

/// Frees what nobody fetched.
async fn close_streams_after(process: Arc<Process>) {
    process.wait().await;
    tokio::time::sleep(STREAMS_KEPT).await;
    process.io.close_unconnected();
}
