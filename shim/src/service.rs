//! The task service: each call is looked up, carried out by container.rs, and told containerd as an event, in the order
//! that its own shim keeps.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::events::task as event;
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::Task;
use hull_runtime::WindowSize;
use oci_spec::runtime::{LinuxResources, Process as Spec};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageFull};
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use ttrpc::r#async::TtrpcContext;

use crate::container::{Container, blocking};
use crate::error::Error;
use crate::events::Publisher;
use crate::metrics;
use crate::process::{Exit, Process, never, proxy_end, timestamp};
use crate::stdio::StreamNames;

/// How long the end of a process may be held back for what its terminal still says.
const OUTPUT_LIMIT: Duration = Duration::from_secs(2);
/// How long the end of a container may be held back for the ends of its other processes, which come first.
const OTHERS_LIMIT: Duration = Duration::from_secs(10);
/// What a guest says of its memory in this time is one event, for it may say more than there is.
const MEMORY_PAUSE: Duration = Duration::from_millis(100);
/// How long the proxy of a container that was deleted may take to be seen to end.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Serves the containers of a pod, or one.
#[derive(Debug)]
pub(crate) struct TaskService {
    namespace: String,
    events: Arc<Publisher>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// A pod of the sandbox service's needs this process, with containers or without.
    has_pod: AtomicBool,
    /// Told when containerd has no more use for this process.
    pub(crate) done: Notify,
}

impl TaskService {
    pub(crate) fn new(namespace: &str, events: Arc<Publisher>) -> Self {
        Self {
            namespace: namespace.into(),
            events,
            containers: Mutex::default(),
            has_pod: AtomicBool::new(false),
            done: Notify::new(),
        }
    }

    /// Whether there is a pod of the sandbox service's.
    pub(crate) fn set_pod(&self, has_pod: bool) {
        self.has_pod.store(has_pod, Ordering::Relaxed);
    }

    /// Nothing panics while it is held.
    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let found = self.containers().get(id).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: "task",
            id: id.into(),
        })
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Process>), Error> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        Ok((container, process))
    }

    /// Tells when processes of the container are ended for want of memory, until the container's end.
    fn watch_memory(&self, container: &Container, stream: UnixStream) -> JoinHandle<()> {
        let events = Arc::clone(&self.events);
        let mut event = event::TaskOOM::new();
        event.container_id = container.id.to_string();
        tokio::spawn(async move {
            let mut stream = match tokio::net::UnixStream::from_std(stream) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "nobody tells of memory");
                    return;
                }
            };
            let mut bytes = [0; 4096];
            while matches!(stream.read(&mut bytes).await, Ok(1..)) {
                events.publish(&event);
                tokio::time::sleep(MEMORY_PAUSE).await;
            }
        })
    }

    /// Tells of the process's end, once its proxy has ended; after what is told of its memory.
    fn watch(
        &self,
        container: Arc<Container>,
        process: Arc<Process>,
        proxy: std::process::Child,
        memory: Option<JoinHandle<()>>,
    ) {
        let events = Arc::clone(&self.events);
        tokio::spawn(async move {
            let status = proxy_end(proxy).await;
            if let Some(end) = process.take_output_end() {
                // A client that does not read is not waited for.
                let _ = tokio::time::timeout(OUTPUT_LIMIT, end).await;
            }
            if process.exec_id.is_empty() {
                let _ = tokio::time::timeout(OTHERS_LIMIT, others_end(&container)).await;
            }
            if let Some(memory) = memory {
                let _ = tokio::time::timeout(OUTPUT_LIMIT, memory).await;
            }
            let _started = process.starting.lock().await;
            let exit = Exit {
                status,
                at: SystemTime::now(),
            };
            process.set_ended(exit);
            let mut event = event::TaskExit::new();
            event.container_id = container.id.to_string();
            event.id = if process.exec_id.is_empty() {
                container.id.to_string()
            } else {
                process.exec_id.clone()
            };
            event.pid = process.pid();
            event.exit_status = exit.status;
            event.exited_at = Some(timestamp(exit.at)).into();
            events.publish(&event);
        });
    }

    async fn create_task(&self, request: api::CreateTaskRequest) -> Result<u32, Error> {
        let namespace = self.namespace.clone();
        let (request, container, proxy, memory) = blocking(move || {
            let (container, proxy) = Container::create(&namespace, &request)?;
            let memory = container.out_of_memory();
            Ok((request, Arc::new(container), proxy, memory))
        })
        .await?;
        let pid = container.first.pid();
        let mut event = event::TaskCreate::new();
        event.container_id.clone_from(&request.id);
        event.bundle.clone_from(&request.bundle);
        event.rootfs.clone_from(&request.rootfs);
        let mut streams = event::TaskIO::new();
        streams.stdin.clone_from(&request.stdin);
        streams.stdout.clone_from(&request.stdout);
        streams.stderr.clone_from(&request.stderr);
        streams.terminal = request.terminal;
        event.io = Some(streams).into();
        event.pid = pid;
        self.containers().insert(request.id, Arc::clone(&container));
        self.events.publish(&event);
        let first = Arc::clone(&container.first);
        let memory = memory
            .inspect_err(|error| tracing::warn!(%error, "nobody tells of memory"))
            .ok()
            .map(|stream| self.watch_memory(&container, stream));
        self.watch(container, first, proxy, memory);
        Ok(pid)
    }

    async fn start_process(&self, id: &str, exec_id: &str) -> Result<u32, Error> {
        let (container, process) = self.process(id, exec_id)?;
        let starting = process.starting.lock().await;
        if exec_id.is_empty() {
            let own = Arc::clone(&container);
            blocking(move || own.start()).await?;
            let mut event = event::TaskStart::new();
            event.container_id = id.into();
            event.pid = process.pid();
            self.events.publish(&event);
        } else {
            let (own, started) = (Arc::clone(&container), Arc::clone(&process));
            let proxy = blocking(move || own.start_exec(&started)).await?;
            let mut event = event::TaskExecStarted::new();
            event.container_id = id.into();
            event.exec_id = exec_id.into();
            event.pid = process.pid();
            self.events.publish(&event);
            self.watch(container, Arc::clone(&process), proxy, None);
        }
        drop(starting);
        Ok(process.pid())
    }

    async fn delete_process(&self, id: &str, exec_id: &str) -> Result<api::DeleteResponse, Error> {
        let (container, process) = self.process(id, exec_id)?;
        let exit = if exec_id.is_empty() {
            let own = Arc::clone(&container);
            blocking(move || own.delete()).await?;
            let ended = tokio::time::timeout(END_LIMIT, process.end()).await;
            ended.map_err(|_| Error::WrongState {
                what: "delete",
                id: id.into(),
                state: "still ending",
            })?
        } else {
            match process.ended() {
                Some(exit) => exit,
                // It was never started.
                None if process.pid() == 0 => Exit {
                    status: 0,
                    at: SystemTime::UNIX_EPOCH,
                },
                None => {
                    return Err(Error::WrongState {
                        what: "delete",
                        id: exec_id.into(),
                        state: "running",
                    });
                }
            }
        };
        let mut response = api::DeleteResponse::new();
        response.pid = process.pid();
        response.exit_status = exit.status;
        response.exited_at = Some(timestamp(exit.at)).into();
        if exec_id.is_empty() {
            self.containers().remove(id);
            let mut event = event::TaskDelete::new();
            event.container_id = id.into();
            event.pid = response.pid;
            event.exit_status = response.exit_status;
            event.exited_at = response.exited_at.clone();
            self.events.publish(&event);
        } else {
            process.release();
            container.forget(exec_id);
        }
        Ok(response)
    }

    fn add_exec(&self, request: api::ExecProcessRequest) -> Result<(), Error> {
        let container = self.container(&request.id)?;
        if request.exec_id.is_empty() {
            return Err(Error::Invalid {
                what: "exec",
                problem: "it has no id".into(),
            });
        }
        let mut spec: Spec = parse("process", request.spec.as_ref())?;
        spec.set_terminal(Some(request.terminal));
        let names = StreamNames {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let process = Process::exec(request.exec_id.clone(), names, Box::new(spec));
        container.add(process)?;
        let mut event = event::TaskExecAdded::new();
        event.container_id = request.id;
        event.exec_id = request.exec_id;
        self.events.publish(&event);
        Ok(())
    }

    async fn list_pids(&self, id: &str) -> Result<Vec<api::ProcessInfo>, Error> {
        let container = self.container(id)?;
        // containerd 1.7 asks after it was restarted, and deletes a task without pids, with its exit code.
        if container.first.ended().is_some() {
            let mut info = api::ProcessInfo::new();
            info.pid = container.first.pid();
            return Ok(vec![info]);
        }
        let added: HashMap<u32, String> = container
            .added()
            .iter()
            .map(|process| (process.pid(), process.exec_id.clone()))
            .collect();
        let pids = blocking(move || container.pids()).await?;
        let describe = |pid: u32| {
            let mut info = api::ProcessInfo::new();
            info.pid = pid;
            if let Some(exec_id) = added.get(&pid) {
                let mut details = ProcessDetails::new();
                details.exec_id.clone_from(exec_id);
                let mut any = Any::new();
                any.type_url = ProcessDetails::descriptor().full_name().into();
                any.value = details.write_to_bytes().unwrap_or_default();
                info.info = Some(any).into();
            }
            info
        };
        Ok(pids.into_iter().map(describe).collect())
    }
}

/// Waits for the ends of all processes that were added to a container and started.
async fn others_end(container: &Container) {
    for process in container.added() {
        // One that ends its container may be there before its start is told.
        drop(process.starting.lock().await);
        if process.pid() != 0 {
            process.end().await;
        }
    }
}

/// A part of a call that is JSON in an Any.
fn parse<T: serde::de::DeserializeOwned>(
    what: &'static str,
    any: Option<&Any>,
) -> Result<T, Error> {
    let invalid = |problem| Error::Invalid { what, problem };
    let any = any.ok_or_else(|| invalid("it is missing".into()))?;
    serde_json::from_slice(&any.value).map_err(|error| invalid(error.to_string()))
}

#[async_trait]
impl Task for TaskService {
    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let mut response = api::StateResponse::new();
        response.id = if request.exec_id.is_empty() {
            request.id
        } else {
            request.exec_id.clone()
        };
        response.exec_id = request.exec_id;
        response.bundle = container.bundle.display().to_string();
        response.pid = process.pid();
        response.status = process.status().into();
        response.stdin.clone_from(&process.names.stdin);
        response.stdout.clone_from(&process.names.stdout);
        response.stderr.clone_from(&process.names.stderr);
        response.terminal = process.names.terminal;
        response.exited_at = Some(never()).into();
        if let Some(exit) = process.ended() {
            response.exit_status = exit.status;
            response.exited_at = Some(timestamp(exit.at)).into();
        }
        Ok(response)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let mut response = api::CreateTaskResponse::new();
        response.pid = self.create_task(request).await?;
        Ok(response)
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let mut response = api::StartResponse::new();
        response.pid = self.start_process(&request.id, &request.exec_id).await?;
        Ok(response)
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        Ok(self.delete_process(&request.id, &request.exec_id).await?)
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let mut response = api::PidsResponse::new();
        response.processes = self.list_pids(&request.id).await?;
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        blocking(move || container.pause()).await?;
        let mut event = event::TaskPaused::new();
        event.container_id = request.id;
        self.events.publish(&event);
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        blocking(move || container.resume()).await?;
        let mut event = event::TaskResumed::new();
        event.container_id = request.id;
        self.events.publish(&event);
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        _: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let what = "a checkpoint of the programs in a VM";
        Err(Error::Unsupported(what.into()).into())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        blocking(move || container.kill(&process, request.signal, request.all)).await?;
        Ok(Empty::new())
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        self.add_exec(request)?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let cells = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        process.resize(WindowSize {
            rows: cells(request.height),
            columns: cells(request.width),
        })?;
        Ok(Empty::new())
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    /// Annotations, which may come with the limits, change nothing of a container that runs.
    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        let resources: LinuxResources = parse("resources", request.resources.as_ref())?;
        blocking(move || container.update(&resources)).await?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let exit = process.end().await;
        let mut response = api::WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = Some(timestamp(exit.at)).into();
        Ok(response)
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let container = self.container(&request.id)?;
        let reading = blocking(move || container.read()).await?;
        let mut response = api::StatsResponse::new();
        response.stats = Some(metrics::encode(&reading)?).into();
        Ok(response)
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let mut response = api::ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = self
            .container(&request.id)
            .map_or(0, |container| container.first.pid());
        response.version = env!("CARGO_PKG_VERSION").into();
        Ok(response)
    }

    /// With containers or a pod left there is still something to serve.
    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        if self.containers().is_empty() && !self.has_pod.load(Ordering::Relaxed) {
            self.done.notify_one();
        }
        Ok(Empty::new())
    }
}
