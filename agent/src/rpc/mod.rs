//! The calls of `agent.proto`: each is one call of the module that does it, with its answer turned into a message.
//!
//! ttrpc runs every call as a task of the agent's event loop. What blocks goes to a thread; what must not be left half
//! done when a caller goes away is a task of its own.

mod latency;
mod status;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hull_agent_protocol::agent::inherited_file::Kind;
use hull_agent_protocol::agent::{
    self, ContainerRequest, CreateContainerRequest, DescribeProcessesResponse, Empty,
    ExecProcessRequest, HealthRequest, HealthResponse, ListProcessesResponse, MountStorageRequest,
    OnlineCpusRequest, OnlineCpusResponse, ProcessRequest, ProcessResponse, ReseedEntropyRequest,
    ResizeTerminalRequest, SetClockRequest, SetDnsRequest, SetHostnameRequest, SetNetworkRequest,
    SetNetworkResponse, SignalProcessRequest, StatsContainerResponse, UnmountStorageRequest,
    UpdateContainerRequest, WaitProcessResponse,
};
use hull_agent_protocol::agent_ttrpc::{Agent, create_agent};
use ttrpc::r#async::{Server, TtrpcContext};

use crate::container::{Containers, CreateOptions, SharedMemory};
use crate::mounts::{self, Storage};
use crate::network::{self, Network};
use crate::stdio::InheritedFile;
use crate::{machine, process::Process};
use latency::{Latency, timed};
use status::{internal, invalid, status};

/// How long the answer to Shutdown may take to leave the machine.
const LAST_ANSWER: Duration = Duration::from_millis(5);

/// Serves the calls.
pub struct Service {
    containers: Arc<Containers>,
    network: Arc<Network>,
    latency: Arc<Latency>,
}

impl Service {
    /// Serves calls on these containers and this network.
    pub fn new(containers: Arc<Containers>, network: Network) -> Self {
        Self {
            containers,
            network: Arc::new(network),
            latency: Arc::default(),
        }
    }

    fn process(
        &self,
        container: &str,
        exec: &str,
    ) -> Result<Arc<Process>, crate::container::Error> {
        self.containers.get(container)?.process(exec)
    }
}

/// A server of the calls, which still needs an address.
pub fn server(service: Service) -> Server {
    let latency = Arc::clone(&service.latency);
    Server::new().register_service(timed(create_agent(Arc::new(service)), &latency))
}

/// Runs `work` to its end, whether or not the caller stays.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, crate::container::Error>> + Send + 'static,
) -> ttrpc::Result<T> {
    tokio::spawn(work).await.map_err(internal)?.map_err(status)
}

/// Runs on a thread what would block the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> ttrpc::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(internal)
}

fn shared_memory(memory: hull_agent_protocol::agent::SharedMemory) -> SharedMemory {
    SharedMemory {
        name: memory.name,
        size: memory.size,
    }
}

fn inherited_files(
    files: &[hull_agent_protocol::agent::InheritedFile],
) -> ttrpc::Result<Vec<InheritedFile>> {
    let files = files.iter().map(|file| {
        let port = || u16::try_from(file.port).map_err(invalid);
        Ok(match file.kind.enum_value_or_default() {
            Kind::INPUT => InheritedFile::Input,
            Kind::OUTPUT => InheritedFile::Output,
            Kind::SOCKET => InheritedFile::Socket,
            Kind::UNIX_LISTENER => InheritedFile::UnixListener,
            Kind::TCP4_LISTENER => InheritedFile::tcp_listener(false, port()?),
            Kind::TCP6_LISTENER => InheritedFile::tcp_listener(true, port()?),
            Kind::NULL => InheritedFile::Null,
            Kind::UNKNOWN => {
                return Err(invalid(std::io::Error::other("an open file has no kind")));
            }
        })
    });
    files.collect()
}

fn pid(process: &Process) -> ttrpc::Result<ProcessResponse> {
    Ok(ProcessResponse {
        pid: u32::try_from(process.pid()).map_err(internal)?,
        ..Default::default()
    })
}

#[async_trait]
impl Agent for Service {
    async fn health(&self, _: &TtrpcContext, _: HealthRequest) -> ttrpc::Result<HealthResponse> {
        let memory = machine::memory().map_err(internal)?;
        Ok(HealthResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: machine::kernel_release().map_err(internal)?,
            uptime: machine::uptime().map_err(internal)?,
            memory_total: memory.total,
            memory_available: memory.available,
            call_counts: self.latency.counts(),
            call_time_us: self.latency.sum_us(),
            ..Default::default()
        })
    }

    async fn set_network(
        &self,
        _: &TtrpcContext,
        request: SetNetworkRequest,
    ) -> ttrpc::Result<SetNetworkResponse> {
        let network = Arc::clone(&self.network);
        // A network half set would be taken for the one before.
        let failures = tokio::spawn(async move { network.set(&request).await })
            .await
            .map_err(internal)?
            .map_err(status)?;
        Ok(SetNetworkResponse {
            failures,
            ..Default::default()
        })
    }

    async fn set_hostname(
        &self,
        _: &TtrpcContext,
        request: SetHostnameRequest,
    ) -> ttrpc::Result<Empty> {
        machine::set_hostname(&request.hostname).map_err(invalid)?;
        Ok(Empty::new())
    }

    async fn set_dns(&self, _: &TtrpcContext, request: SetDnsRequest) -> ttrpc::Result<Empty> {
        let path = Path::new("/etc/resolv.conf");
        network::write_resolv_conf(path, &request.servers, &request.searches, &request.options)
            .map_err(invalid)?;
        Ok(Empty::new())
    }

    async fn mount_storage(
        &self,
        _: &TtrpcContext,
        request: MountStorageRequest,
    ) -> ttrpc::Result<Empty> {
        let storage = Storage {
            kind: request.fstype,
            source: request.source,
            target: request.target.into(),
            options: request.options,
        };
        let rescan = self.network.pci_rescan().to_owned();
        blocking(move || storage.mount(|| network::rescan_pci(&rescan)))
            .await?
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn unmount_storage(
        &self,
        _: &TtrpcContext,
        request: UnmountStorageRequest,
    ) -> ttrpc::Result<Empty> {
        blocking(move || mounts::unmount(Path::new(&request.target)))
            .await?
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<ProcessResponse> {
        let containers = Arc::clone(&self.containers);
        let options = CreateOptions {
            stdin: request.stdin,
            notify_socket: Some(request.notify_socket).filter(|name| !name.is_empty()),
            shared_memory: request
                .shared_memory
                .into_iter()
                .map(shared_memory)
                .collect(),
            files: inherited_files(&request.files)?,
        };
        let process = to_the_end(async move {
            containers
                .create(&request.container_id, &request.spec, &options)
                .await
        });
        let process = process.await?;
        pid(&process)
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.containers
            .start(&request.container_id)
            .await
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<ProcessResponse> {
        let containers = Arc::clone(&self.containers);
        let files = inherited_files(&request.files)?;
        let process = to_the_end(async move {
            let ExecProcessRequest {
                container_id,
                exec_id,
                process,
                stdin,
                cgroup,
                ..
            } = request;
            containers
                .exec(&container_id, &exec_id, &process, stdin, &files, &cgroup)
                .await
        });
        let process = process.await?;
        pid(&process)
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        self.containers
            .get(&request.container_id)
            .and_then(|container| container.signal(&request.exec_id, request.signal, request.all))
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let container = self.containers.get(&request.container_id).map_err(status)?;
        let process = container.process(&request.exec_id).map_err(status)?;
        let exit = process.wait().await;
        if request.exec_id.is_empty() {
            container.out_of_memory.told().await;
        }
        Ok(WaitProcessResponse {
            exit_status: exit.status.into(),
            exited_at: exit.at,
            oom_killed: container.oom_killed(),
            ..Default::default()
        })
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let container = self.containers.get(&request.container_id).map_err(status)?;
        let processes = container.list().map_err(status)?;
        let processes = processes
            .into_iter()
            .map(|one| agent::list_processes_response::Process {
                pid: one.pid,
                ppid: one.ppid,
                uid: one.uid,
                command: one.command,
                ..Default::default()
            });
        Ok(ListProcessesResponse {
            processes: processes.collect(),
            ..Default::default()
        })
    }

    async fn describe_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<DescribeProcessesResponse> {
        let container = self.containers.get(&request.container_id).map_err(status)?;
        let processes = container.describe().map_err(status)?;
        let processes =
            processes
                .into_iter()
                .map(|one| agent::describe_processes_response::Process {
                    pid: one.pid,
                    stat: one.stat,
                    status: one.status,
                    cmdline: one.cmdline,
                    ..Default::default()
                });
        Ok(DescribeProcessesResponse {
            processes: processes.collect(),
            boot_time: machine::boot_time().map_err(internal)?,
            ..Default::default()
        })
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let containers = Arc::clone(&self.containers);
        to_the_end(async move { containers.remove(&request.container_id).await }).await?;
        Ok(Empty::new())
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id).map_err(status)?;
        container.freeze(true).await.map_err(status)?;
        Ok(Empty::new())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.containers.get(&request.container_id).map_err(status)?;
        container.freeze(false).await.map_err(status)?;
        Ok(Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.containers
            .update(&request.container_id, &request.resources)
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        let container = self.containers.get(&request.container_id).map_err(status)?;
        Ok(StatsContainerResponse {
            files: container.stats(),
            network: std::fs::read_to_string("/proc/net/dev").map_err(internal)?,
            ..Default::default()
        })
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<Empty> {
        let process = self
            .process(&request.container_id, &request.exec_id)
            .map_err(status)?;
        process
            .io
            .resize(request.rows, request.columns)
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        let process = self
            .process(&request.container_id, &request.exec_id)
            .map_err(status)?;
        process.io.close_stdin();
        Ok(Empty::new())
    }

    async fn reseed_entropy(
        &self,
        _: &TtrpcContext,
        request: ReseedEntropyRequest,
    ) -> ttrpc::Result<Empty> {
        machine::reseed(&request.data).map_err(internal)?;
        Ok(Empty::new())
    }

    async fn set_clock(&self, _: &TtrpcContext, request: SetClockRequest) -> ttrpc::Result<Empty> {
        machine::set_clock(request.realtime).map_err(invalid)?;
        Ok(Empty::new())
    }

    async fn online_cpus(
        &self,
        _: &TtrpcContext,
        request: OnlineCpusRequest,
    ) -> ttrpc::Result<OnlineCpusResponse> {
        let root = Path::new("/sys/devices/system/cpu");
        let online = blocking(move || machine::bring_online(root, request.count))
            .await?
            .map_err(internal)?;
        let interfaces = self.network.interfaces().to_owned();
        let queues = blocking(move || network::use_queue_pairs(&interfaces, online)).await?;
        // The network works with fewer.
        match queues {
            Ok(failures) => failures
                .iter()
                .for_each(|failure| tracing::warn!("{failure}")),
            Err(error) => tracing::warn!(%error, "queues of NICs"),
        }
        Ok(OnlineCpusResponse {
            online,
            ..Default::default()
        })
    }

    async fn rescan_devices(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.network.rescan().await.map_err(internal)?;
        Ok(Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        machine::end(self.containers.reaper()).await;
        tokio::spawn(async {
            tokio::time::sleep(LAST_ANSWER).await;
            let Err(error) = machine::power_reset();
            tracing::error!(%error, "the kernel does not reset the machine");
        });
        Ok(Empty::new())
    }
}
