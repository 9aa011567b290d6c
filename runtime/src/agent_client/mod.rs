//! The agent's calls from the host's side: ttrpc over one connection of the hybrid vsock (vsock.rs, transport.rs).
//!
//! A client is a single blocking connection that makes one call at a time, without threads: commands make a few calls
//! and end, and a process proxy waits in one for as long as its process lives. Every answer comes from the guest and
//! is untrusted: its length is bounded, it is waited for no longer than its call's limit, and it can be nothing worse
//! than an error.

mod transport;
pub(crate) mod vsock;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hull_agent_protocol::agent::{
    ContainerRequest, CreateContainerRequest, DescribeProcessesResponse, Empty, ExecProcessRequest,
    HealthRequest, HealthResponse, ListProcessesResponse, MountStorageRequest, OnlineCpusRequest,
    OnlineCpusResponse, ProcessRequest, ProcessResponse, ReseedEntropyRequest,
    ResizeTerminalRequest, SetClockRequest, SetHostnameRequest, SetNetworkRequest,
    SetNetworkResponse, SharedMemory, SignalProcessRequest, StatsContainerResponse,
    UnmountStorageRequest, UpdateContainerRequest, WaitProcessResponse,
};
use hull_agent_protocol::ports;

use crate::container::ContainerId;
use crate::process_proxy::FileKind;
use crate::rootfs::GuestContainer;
use transport::Transport;
use vsock::VsockError;

/// How long an ordinary call may take. Guests on slow machines are slow; this only ends what hangs.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// How a call of the agent fails.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The guest cannot be connected to.
    #[error("cannot reach the agent in the guest")]
    Connect(#[source] VsockError),
    /// The VM ended, or let the connection go, during the call.
    #[error("the connection to the agent was lost in the call {call}")]
    Lost {
        /// The call.
        call: &'static str,
        /// How.
        source: std::io::Error,
    },
    /// No answer within the limit.
    #[error("the agent did not answer the call {call} within {} s", limit.as_secs())]
    NoAnswer {
        /// The call.
        call: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// An answer that is none.
    #[error("the agent's answer to the call {call} makes no sense: {what}")]
    Malformed {
        /// The call.
        call: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The request is larger than ttrpc carries.
    #[error("the call {call} is too large: {length} bytes")]
    TooLarge {
        /// The call.
        call: &'static str,
        /// Its length.
        length: usize,
    },
    /// The agent refused. Its sentence is for people; it may name what the user wrote.
    #[error("{message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// The status it gave.
        code: ttrpc::Code,
        /// Why.
        message: String,
    },
}

impl AgentError {
    /// The status that the agent gave, if it answered.
    pub fn code(&self) -> Option<ttrpc::Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether it was asked to run a program of a container, so that "not found" is about that program.
    pub fn runs_a_program(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                call: "CreateContainer" | "StartContainer" | "ExecProcess",
                ..
            }
        )
    }
}

/// A connection to the agent of a sandbox.
#[derive(Debug)]
pub struct AgentClient {
    transport: Transport,
    /// How long an ordinary call may take.
    limit: Duration,
}

impl AgentClient {
    /// Connects to an agent that is up, through the hybrid vsock's Unix socket.
    ///
    /// # Errors
    /// The VM is gone, or the agent is.
    pub fn connect(socket: &Path) -> Result<Self, AgentError> {
        Self::connect_within(socket, CALL_LIMIT)
    }

    /// The same, with a limit of the caller's choice for the connection and for each call.
    ///
    /// # Errors
    /// As [`AgentClient::connect`].
    pub fn connect_within(socket: &Path, limit: Duration) -> Result<Self, AgentError> {
        let stream = vsock::connect(socket, ports::RPC, limit).map_err(AgentError::Connect)?;
        Ok(Self {
            transport: Transport::new(stream),
            limit,
        })
    }

    /// From now on no ordinary call takes longer than until `deadline`.
    pub fn limit_calls(&mut self, deadline: Instant) {
        self.limit = deadline.saturating_duration_since(Instant::now());
    }

    /// Connects to the agent of a VM that is booting: tries until it answers, `limit` is over, or `alive` says that
    /// the VM has ended.
    ///
    /// # Errors
    /// It never answered.
    pub fn await_boot(
        socket: &Path,
        limit: Duration,
        alive: impl Fn() -> bool,
    ) -> Result<Self, AgentError> {
        let stream =
            vsock::await_port(socket, ports::RPC, limit, alive).map_err(AgentError::Connect)?;
        Ok(Self {
            transport: Transport::new(stream),
            limit: CALL_LIMIT,
        })
    }

    /// The agent's version, and that it answers.
    ///
    /// # Errors
    /// See [`AgentError`]; so for all calls.
    pub fn health(&mut self) -> Result<HealthResponse, AgentError> {
        self.call("Health", &HealthRequest::new())
    }

    /// Gives the guest randomness of the host, and the host's time.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn seed(&mut self, entropy: Vec<u8>) -> Result<(), AgentError> {
        let mut request = ReseedEntropyRequest::new();
        request.data = entropy;
        let _: Empty = self.call("ReseedEntropy", &request)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut request = SetClockRequest::new();
        request.realtime = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        let _: Empty = self.call("SetClock", &request)?;
        Ok(())
    }

    /// Names the guest.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn set_hostname(&mut self, hostname: &str) -> Result<(), AgentError> {
        let mut request = SetHostnameRequest::new();
        request.hostname = hostname.into();
        let _: Empty = self.call("SetHostname", &request)?;
        Ok(())
    }

    /// Makes a mount in the guest, outside all containers.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn mount_storage(
        &mut self,
        fstype: &str,
        source: &str,
        target: &Path,
        options: &[String],
    ) -> Result<(), AgentError> {
        let mut request = MountStorageRequest::new();
        request.fstype = fstype.into();
        request.source = source.into();
        request.target = target.to_string_lossy().into_owned();
        request.options = options.to_vec();
        let _: Empty = self.call("MountStorage", &request)?;
        Ok(())
    }

    /// Undoes a mount in the guest; nothing happens where there is none.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn unmount_storage(&mut self, target: &Path) -> Result<(), AgentError> {
        let mut request = UnmountStorageRequest::new();
        request.target = target.to_string_lossy().into_owned();
        let _: Empty = self.call("UnmountStorage", &request)?;
        Ok(())
    }

    /// Gives the guest its network. The answer names what could not be applied.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn set_network(&mut self, network: &SetNetworkRequest) -> Result<Vec<String>, AgentError> {
        let answer: SetNetworkResponse = self.call("SetNetwork", network)?;
        Ok(answer.failures)
    }

    /// Makes a container, up to the point at which its program is about to run. Gives its pid in the guest.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn create_container(
        &mut self,
        id: &ContainerId,
        container: &GuestContainer,
    ) -> Result<u32, AgentError> {
        let mut request = CreateContainerRequest::new();
        request.container_id = id.to_string();
        request.spec = container.spec.clone();
        request.stdin = true;
        if let Some(socket) = &container.notify {
            request.notify_socket = socket.name.clone();
        }
        for memory in &container.shared_memory {
            let mut shared = SharedMemory::new();
            shared.name = memory.name.clone();
            shared.size = memory.size;
            request.shared_memory.push(shared);
        }
        request.files = to_agent(&container.files);
        let answer: ProcessResponse = self.call("CreateContainer", &request)?;
        Ok(answer.pid)
    }

    /// Lets a container's program run.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn start_container(&mut self, id: &ContainerId) -> Result<(), AgentError> {
        self.container_call("StartContainer", id)
    }

    /// Starts one more process in a container. Gives its pid in the guest.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn exec_process(
        &mut self,
        id: &ContainerId,
        exec_id: &str,
        process: Vec<u8>,
        files: &[FileKind],
        cgroup: Option<&str>,
    ) -> Result<u32, AgentError> {
        let mut request = ExecProcessRequest::new();
        request.container_id = id.to_string();
        request.exec_id = exec_id.into();
        request.process = process;
        request.stdin = true;
        request.files = to_agent(files);
        request.cgroup = cgroup.unwrap_or_default().into();
        let answer: ProcessResponse = self.call("ExecProcess", &request)?;
        Ok(answer.pid)
    }

    /// Sends a signal to a process of a container, or to all of them.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn signal(
        &mut self,
        id: &ContainerId,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), AgentError> {
        let mut request = SignalProcessRequest::new();
        request.container_id = id.to_string();
        request.exec_id = exec_id.into();
        request.signal = signal;
        request.all = all;
        let _: Empty = self.call("SignalProcess", &request)?;
        Ok(())
    }

    /// Asks for the end of a process, without waiting for the answer: [`AgentClient::process_ended`] does.
    ///
    /// # Errors
    /// The VM is gone.
    pub fn await_process(&mut self, id: &ContainerId, exec_id: &str) -> Result<(), AgentError> {
        let mut request = ProcessRequest::new();
        request.container_id = id.to_string();
        request.exec_id = exec_id.into();
        self.transport.send("WaitProcess", &request, None)
    }

    /// Waits, for as long as it takes, for the answer to [`AgentClient::await_process`].
    ///
    /// # Errors
    /// See [`AgentError`]: the VM ended, for one.
    pub fn process_ended(&mut self) -> Result<WaitProcessResponse, AgentError> {
        self.transport.receive("WaitProcess", None)
    }

    /// The processes of a container.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn list_processes(
        &mut self,
        id: &ContainerId,
    ) -> Result<ListProcessesResponse, AgentError> {
        self.call("ListProcesses", &container_request(id))
    }

    /// The same with all that ps(1) wants to know.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn describe_processes(
        &mut self,
        id: &ContainerId,
    ) -> Result<DescribeProcessesResponse, AgentError> {
        self.call("DescribeProcesses", &container_request(id))
    }

    /// Removes a container whose processes have ended.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn remove_container(&mut self, id: &ContainerId) -> Result<(), AgentError> {
        self.container_call("RemoveContainer", id)
    }

    /// Freezes a container's processes.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn pause_container(&mut self, id: &ContainerId) -> Result<(), AgentError> {
        self.container_call("PauseContainer", id)
    }

    /// Thaws a container's processes.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn resume_container(&mut self, id: &ContainerId) -> Result<(), AgentError> {
        self.container_call("ResumeContainer", id)
    }

    /// Sets limits of a container anew; those that `resources` does not name stay.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn update_container(
        &mut self,
        id: &ContainerId,
        resources: Vec<u8>,
    ) -> Result<(), AgentError> {
        let request = UpdateContainerRequest {
            container_id: id.to_string(),
            resources,
            ..Default::default()
        };
        let _: Empty = self.call("UpdateContainer", &request)?;
        Ok(())
    }

    /// What a container uses.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn stats_container(
        &mut self,
        id: &ContainerId,
    ) -> Result<StatsContainerResponse, AgentError> {
        self.call("StatsContainer", &container_request(id))
    }

    /// Tells a process's terminal its size, in characters.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn resize_terminal(
        &mut self,
        id: &ContainerId,
        exec_id: &str,
        rows: u16,
        columns: u16,
    ) -> Result<(), AgentError> {
        let mut request = ResizeTerminalRequest::new();
        request.container_id = id.to_string();
        request.exec_id = exec_id.into();
        request.rows = rows.into();
        request.columns = columns.into();
        let _: Empty = self.call("ResizeTerminal", &request)?;
        Ok(())
    }

    /// Brings CPUs online until there are `count`; gives how many there are.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn online_cpus(&mut self, count: u8) -> Result<u32, AgentError> {
        let mut request = OnlineCpusRequest::new();
        request.count = count.into();
        let answer: OnlineCpusResponse = self.call("OnlineCpus", &request)?;
        Ok(answer.online)
    }

    /// Has the guest look for devices that it does not know yet; their drivers have them when this returns.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn rescan_devices(&mut self) -> Result<(), AgentError> {
        let _: Empty = self.call("RescanDevices", &Empty::new())?;
        Ok(())
    }

    /// Asks the guest to write everything out and end.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn shutdown(&mut self, limit: Duration) -> Result<(), AgentError> {
        let _: Empty = self.call_within("Shutdown", &Empty::new(), limit)?;
        Ok(())
    }

    fn container_call(&mut self, call: &'static str, id: &ContainerId) -> Result<(), AgentError> {
        let _: Empty = self.call(call, &container_request(id))?;
        Ok(())
    }

    fn call<Q: protobuf::Message, A: protobuf::Message>(
        &mut self,
        call: &'static str,
        request: &Q,
    ) -> Result<A, AgentError> {
        self.call_within(call, request, self.limit)
    }

    fn call_within<Q: protobuf::Message, A: protobuf::Message>(
        &mut self,
        call: &'static str,
        request: &Q,
        limit: Duration,
    ) -> Result<A, AgentError> {
        self.transport.send(call, request, Some(limit))?;
        self.transport.receive(call, Some(limit))
    }
}

fn to_agent(files: &[FileKind]) -> Vec<hull_agent_protocol::agent::InheritedFile> {
    files.iter().map(|file| file.to_agent()).collect()
}

fn container_request(id: &ContainerId) -> ContainerRequest {
    let mut request = ContainerRequest::new();
    request.container_id = id.to_string();
    request
}
