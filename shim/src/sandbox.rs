//! The sandbox service of containerd 2 (its `api/runtime/sandbox/v1/sandbox.proto`), for pods that no container holds: the
//! VM is there before the first of them, and stays when they go. A shim that containerd starts for a pod serves that one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::Sandbox;
use hull_runtime::Runtime;
use hull_runtime::process_identity::ProcessIdentity;
use hull_runtime::sandbox::pod::{self as library, PodOptions};
use protobuf::well_known_types::any::Any;
use tokio::sync::watch;
use ttrpc::r#async::TtrpcContext;

use crate::container::blocking;
use crate::error::Error;
use crate::options::Options;
use crate::process::{Exit, KILLED, end_of, timestamp};
use crate::service::TaskService;
use crate::{metrics, pod, state};

/// Serves the pod.
#[derive(Debug)]
pub(crate) struct SandboxService {
    namespace: String,
    /// The runtime options that containerd has given to `start`.
    options: Option<Any>,
    tasks: Arc<TaskService>,
    pod: Mutex<Option<Arc<Pod>>>,
}

/// A pod.
#[derive(Debug)]
struct Pod {
    runtime: Runtime,
    options: PodOptions,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Created,
    Running {
        vmm: ProcessIdentity,
        since: SystemTime,
    },
    /// Running, and told to end.
    Stopping {
        vmm: ProcessIdentity,
        since: SystemTime,
    },
    Ended {
        exit: Exit,
        since: Option<SystemTime>,
    },
}

impl State {
    fn ended(self) -> Option<Exit> {
        match self {
            Self::Ended { exit, .. } => Some(exit),
            _ => None,
        }
    }
}

impl SandboxService {
    pub(crate) fn new(namespace: &str, options: Option<Any>, tasks: Arc<TaskService>) -> Self {
        Self {
            namespace: namespace.into(),
            options,
            tasks,
            pod: Mutex::default(),
        }
    }

    /// Nothing panics while it is held.
    fn held(&self) -> MutexGuard<'_, Option<Arc<Pod>>> {
        self.pod.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pod(&self, id: &str) -> Result<Arc<Pod>, Error> {
        let held = self.held();
        let found = held.as_ref().filter(|pod| pod.options.id.as_str() == id);
        found.cloned().ok_or_else(|| Error::NotFound {
            what: "sandbox",
            id: id.into(),
        })
    }

    fn create(&self, request: &api::CreateSandboxRequest) -> Result<(), Error> {
        let options = Options::of(self.options.as_ref())?;
        let config = options.config.as_deref();
        let created = Pod {
            runtime: state::runtime(&self.namespace, config, options.systemd_cgroup, None)?,
            options: pod::options(request)?,
            state: watch::Sender::new(State::Created),
        };
        let mut held = self.held();
        if let Some(pod) = &*held {
            return Err(Error::Exists {
                what: "sandbox",
                id: pod.options.id.to_string(),
            });
        }
        *held = Some(Arc::new(created));
        self.tasks.set_pod(true);
        Ok(())
    }

    /// Ends all of the pod, and this process.
    async fn shut_down(&self, id: &str) -> Result<(), Error> {
        if let Ok(pod) = self.pod(id) {
            pod.stop().await?;
            let ended = Arc::clone(&pod);
            blocking(move || Ok(library::remove(&ended.runtime, &ended.options.id)?)).await?;
            *self.held() = None;
        }
        self.tasks.set_pod(false);
        self.tasks.done.notify_one();
        Ok(())
    }
}

impl Pod {
    fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Gives the pid of the VMM, and when it was started.
    async fn start(self: &Arc<Self>) -> Result<(ProcessIdentity, SystemTime), Error> {
        if !matches!(self.state(), State::Created) {
            return Err(Error::WrongState {
                what: "start",
                id: self.options.id.to_string(),
                state: "started already",
            });
        }
        let pod = Arc::clone(self);
        let vmm = blocking(move || Ok(library::start(&pod.runtime, &pod.options)?)).await?;
        let since = SystemTime::now();
        self.state.send_replace(State::Running { vmm, since });
        let pod = Arc::clone(self);
        tokio::spawn(async move { pod.await_end(vmm, since).await });
        Ok((vmm, since))
    }

    /// Tells of the VMM's end, once what it leaves behind is seen to.
    async fn await_end(self: Arc<Self>, vmm: ProcessIdentity, since: SystemTime) {
        end_of(vmm).await;
        let at = SystemTime::now();
        let pod = Arc::clone(&self);
        let stopped =
            blocking(move || Ok(library::stop(&pod.runtime.store, &pod.options.id)?)).await;
        if let Err(error) = stopped {
            // It is come to again when the pod is removed.
            tracing::warn!(sandbox = %self.options.id, %error, "a VM that has ended");
        }
        self.state.send_modify(|state| {
            let status = match state {
                State::Stopping { .. } => 0,
                _ => KILLED,
            };
            let exit = Exit { status, at };
            *state = State::Ended {
                exit,
                since: Some(since),
            };
        });
    }

    /// Ends it, if it has not ended.
    async fn stop(self: &Arc<Self>) -> Result<(), Error> {
        self.state.send_modify(|state| {
            *state = match *state {
                State::Created => State::Ended {
                    exit: Exit {
                        status: 0,
                        at: SystemTime::now(),
                    },
                    since: None,
                },
                State::Running { vmm, since } => State::Stopping { vmm, since },
                other => other,
            };
        });
        if self.state().ended().is_none() {
            let pod = Arc::clone(self);
            blocking(move || Ok(library::stop(&pod.runtime.store, &pod.options.id)?)).await?;
            self.end().await;
        }
        Ok(())
    }

    /// Waits for its end.
    async fn end(&self) -> Exit {
        let mut receiver = self.state.subscribe();
        let ended = receiver.wait_for(|state| state.ended().is_some()).await;
        // The sender is in this process, so it cannot have gone.
        ended.ok().and_then(|state| state.ended()).unwrap_or(Exit {
            status: KILLED,
            at: SystemTime::now(),
        })
    }
}

/// As containerd has it.
fn pid(vmm: ProcessIdentity) -> u32 {
    u32::try_from(vmm.pid).unwrap_or(0)
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        self.create(&request)?;
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        let (vmm, since) = self.pod(&request.sandbox_id)?.start().await?;
        let mut response = api::StartSandboxResponse::new();
        response.pid = pid(vmm);
        response.created_at = Some(timestamp(since)).into();
        Ok(response)
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: api::PlatformRequest,
    ) -> ttrpc::Result<api::PlatformResponse> {
        self.pod(&request.sandbox_id)?;
        let mut response = api::PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".into();
        // By its name in Go.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            other => other,
        }
        .into();
        Ok(response)
    }

    /// The guest is given its time to end by the library, whatever containerd would wait.
    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> ttrpc::Result<api::StopSandboxResponse> {
        self.pod(&request.sandbox_id)?.stop().await?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        let exit = self.pod(&request.sandbox_id)?.end().await;
        let mut response = api::WaitSandboxResponse::new();
        response.exit_status = exit.status;
        response.exited_at = Some(timestamp(exit.at)).into();
        Ok(response)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        let mut response = api::SandboxStatusResponse::new();
        let state = self.pod(&request.sandbox_id)?.state();
        response.sandbox_id = request.sandbox_id;
        response.state = "SANDBOX_NOTREADY".into();
        match state {
            State::Created => {}
            State::Running { vmm, since } => {
                response.state = "SANDBOX_READY".into();
                response.pid = pid(vmm);
                response.created_at = Some(timestamp(since)).into();
            }
            State::Stopping { vmm, since } => {
                response.pid = pid(vmm);
                response.created_at = Some(timestamp(since)).into();
            }
            State::Ended { exit, since } => {
                response.created_at = since.map(timestamp).into();
                response.exited_at = Some(timestamp(exit.at)).into();
            }
        }
        Ok(response)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PingRequest,
    ) -> ttrpc::Result<api::PingResponse> {
        self.pod(&request.sandbox_id)?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        self.shut_down(&request.sandbox_id).await?;
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: api::SandboxMetricsRequest,
    ) -> ttrpc::Result<api::SandboxMetricsResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        let reading =
            blocking(move || Ok(library::read(&pod.runtime.store, &pod.options.id)?)).await?;
        let mut response = api::SandboxMetricsResponse::new();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = Some(timestamp(SystemTime::now())).into();
        metrics.id = request.sandbox_id;
        metrics.data = Some(metrics::encode(&reading)?).into();
        Ok(response)
    }
}
