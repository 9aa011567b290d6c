//! The `hull-vmm` process as its maker sees it: it is started inside the sandbox's network namespace with nothing of
//! the caller's but three descriptors, says on one of them that its machine runs, takes control calls, and leaves a
//! file that tells how the machine ended.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hull_vmm_protocol::config::{BlkConfig, FsConfig, NetConfig, VmConfig};
use hull_vmm_protocol::control::{
    DeviceCounters, FailureKind, NicCounters, Request, Response, VmStatus,
};
use hull_vmm_protocol::outcome::{Cause, Outcome, Ready, StartFailure};
use hull_vmm_protocol::socket::{CallError, ControlClient};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::network::Netns;
use crate::pending_child::{PendingChild, SpawnError};
use crate::process_identity::ProcessIdentity;
use crate::store::write_atomic;

/// How long a control call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long a VMM that was told to stop may take before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long one that was killed may take to end: the kernel gives its guest's memory back.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// The most of a VMM's own messages and of its guest's console that goes into an error, in bytes.
const TAIL: usize = 4096;
/// The longest line that a VMM says when it is ready, in bytes.
const MAX_READY: u64 = 64 * 1024;

/// How a VMM fails.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// Its program cannot be run.
    #[error("cannot run {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of it cannot be made.
    #[error("write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It could not make its machine.
    #[error("the VM could not be started: {message}")]
    Start {
        /// Why, for callers to match.
        kind: StartFailure,
        /// Why, for people.
        message: String,
    },
    /// It ended before its machine ran.
    #[error("hull-vmm ended before its machine ran{}", block("its messages", log))]
    EndedEarly {
        /// The end of what it wrote to its standard error.
        log: String,
    },
    /// It did not say that its machine runs.
    #[error("hull-vmm did not make its machine within {} s", limit.as_secs())]
    NotReady {
        /// How long was waited.
        limit: Duration,
    },
    /// A control call failed.
    #[error("VMM: {call}")]
    Call {
        /// What was asked: `attach net0`.
        call: String,
        /// Why it failed.
        source: CallError,
    },
    /// It survived being killed.
    #[error("hull-vmm (pid {pid}) does not end")]
    Unkillable {
        /// Its pid.
        pid: i32,
    },
}

impl VmmError {
    /// The VMM has no device of that id.
    pub fn is_not_found(&self) -> bool {
        self.is_failure(FailureKind::NotFound)
    }

    /// The host refused something that a device needs.
    pub fn is_of_the_host(&self) -> bool {
        self.is_failure(FailureKind::Host)
    }

    fn is_failure(&self, kind: FailureKind) -> bool {
        let Self::Call { source, .. } = self else {
            return false;
        };
        matches!(source, CallError::Failed(failure) if failure.kind == kind)
    }
}

/// A VMM that has been started and has not said yet that its machine runs. Dropping it kills it.
#[derive(Debug)]
pub struct StartingVmm {
    child: PendingChild,
    directory: PathBuf,
    ready: OwnedFd,
}

impl StartingVmm {
    /// Starts `program` in `netns`. Its files are in `directory`: `vm.json` is written from `config`, `vmm.log` takes
    /// its standard error.
    ///
    /// # Errors
    /// The program or the files.
    pub fn spawn(
        program: &Path,
        netns: &Netns,
        directory: &Path,
        config: &VmConfig,
    ) -> Result<Self, VmmError> {
        let config_path = directory.join("vm.json");
        let written = serde_json::to_vec_pretty(config)
            .map_err(io::Error::from)
            .and_then(|bytes| write_atomic(&config_path, &bytes, 0o600));
        written.map_err(|source| VmmError::File {
            path: config_path.clone(),
            source,
        })?;
        let log_path = directory.join("vmm.log");
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(|source| VmmError::File {
                path: log_path.clone(),
                source,
            })?;
        let mut command = Command::new(program);
        command
            .arg("--config")
            .arg(&config_path)
            // The pipe on its standard output; nothing else goes there.
            .args(["--ready-fd", "1"])
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // A terminal's signals are for the container.
            .process_group(0);
        let fail = |source| VmmError::Spawn {
            program: program.into(),
            source,
        };
        let mut child =
            PendingChild::spawn(&mut command, Some(netns)).map_err(|error| match error {
                SpawnError::Netns(error) => fail(io::Error::other(error)),
                SpawnError::Host(error) => fail(error),
            })?;
        let ready = child
            .take_stdout()
            .ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        Ok(Self {
            child,
            directory: directory.into(),
            ready: ready.into(),
        })
    }

    /// Names the process.
    pub fn identity(&self) -> ProcessIdentity {
        self.child.identity()
    }

    /// Waits until the machine runs, at most `limit`. The process then lives on its own.
    ///
    /// # Errors
    /// It does not, and why; the process is gone then.
    pub fn wait_running(mut self, limit: Duration) -> Result<(), VmmError> {
        let line = read_line(self.ready.as_fd(), limit)
            .map_err(|_| VmmError::EndedEarly { log: String::new() })?
            .ok_or(VmmError::NotReady { limit })?;
        match serde_json::from_str(&line) {
            Ok(Ready::Running) => {
                self.child.let_go();
                Ok(())
            }
            Ok(Ready::Failed { kind, message }) => Err(VmmError::Start { kind, message }),
            Err(_) => Err(VmmError::EndedEarly {
                log: tail(&self.directory.join("vmm.log")),
            }),
        }
    }
}

/// A line, or what came before the end; nothing when the limit is over.
fn read_line(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<Option<String>> {
    let deadline = Instant::now() + limit;
    let mut pipe = File::from(fd.try_clone_to_owned()?).take(MAX_READY);
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return Ok(None),
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut chunk = [0; 4096];
        let count = pipe.read(&mut chunk)?;
        line.extend_from_slice(&chunk[..count]);
        if count == 0 || line.ends_with(b"\n") {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

/// Control calls to the VMM whose files are in a directory.
#[derive(Debug)]
pub struct Control {
    client: ControlClient,
}

impl Control {
    /// Connects to it.
    ///
    /// # Errors
    /// It is gone.
    pub fn connect(directory: &Path) -> Result<Self, VmmError> {
        Self::connect_within(directory, CALL_LIMIT)
    }

    /// The same, with a limit of the caller's choice for each call.
    ///
    /// # Errors
    /// It is gone.
    pub fn connect_within(directory: &Path, limit: Duration) -> Result<Self, VmmError> {
        let client = ControlClient::connect(&control_socket(directory), limit)
            .map_err(|error| call_error("connect", error.into()))?;
        Ok(Self { client })
    }

    /// Adds a NIC on a tap with one descriptor for each queue pair.
    ///
    /// # Errors
    /// See [`VmmError::Call`]; so for all calls.
    pub fn attach_net(&self, nic: &NetConfig, taps: &[OwnedFd]) -> Result<(), VmmError> {
        let taps: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
        self.call(
            &format!("attach {}", nic.id),
            &Request::AttachNet(nic.clone()),
            &taps,
        )
    }

    /// The same for a NIC whose packets the host's kernel shall move: with a descriptor of vhost-net for each queue pair.
    /// Where the host does not let it, the VMM moves them after all.
    ///
    /// # Errors
    /// See [`VmmError::Call`].
    pub fn attach_net_with_vhost(
        &self,
        nic: &NetConfig,
        taps: &[OwnedFd],
        vhosts: &[OwnedFd],
    ) -> Result<(), VmmError> {
        let config = NetConfig {
            vhost: true,
            ..nic.clone()
        };
        let descriptors: Vec<_> = taps.iter().chain(vhosts).map(AsFd::as_fd).collect();
        let call = format!("attach {}", nic.id);
        match self.call(&call, &Request::AttachNet(config), &descriptors) {
            Err(error) if error.is_of_the_host() => {
                let error = crate::error::chain(&error);
                tracing::warn!(%error, "without vhost-net");
                self.attach_net(nic, taps)
            }
            answer => answer,
        }
    }

    /// Adds a file system.
    ///
    /// # Errors
    /// See [`VmmError::Call`].
    pub fn attach_fs(&self, fs: FsConfig) -> Result<(), VmmError> {
        self.call(&format!("attach {}", fs.id), &Request::AttachFs(fs), &[])
    }

    /// Adds a disk; says where on its PCI bus the guest has it.
    ///
    /// # Errors
    /// See [`VmmError::Call`].
    pub fn attach_blk(&self, blk: BlkConfig, disk: File) -> Result<String, VmmError> {
        let call = format!("attach {}", blk.id);
        let request = Request::AttachBlk(blk);
        self.ask_with(&call, &request, &[disk.as_fd()], |answer| match answer {
            Response::Attached { pci_address } => Some(pci_address),
            _ => None,
        })
    }

    /// What has passed through the NICs, as far as the VMM sees it.
    ///
    /// # Errors
    /// See [`VmmError::Call`].
    pub fn net_counters(&self) -> Result<Vec<NicCounters>, VmmError> {
        let counters = |answer| match answer {
            Response::NetCounters { nics } => Some(nics),
            _ => None,
        };
        self.ask("counters of NICs", &Request::NetCounters, counters)
    }

    /// What the disks, the file systems and the socket device have moved.
    ///
    /// # Errors
    /// See [`VmmError::Call`].
    pub fn device_counters(&self) -> Result<Vec<DeviceCounters>, VmmError> {
        let counters = |answer| match answer {
            Response::DeviceCounters { devices } => Some(devices),
            _ => None,
        };
        self.ask("counters of devices", &Request::DeviceCounters, counters)
    }

    /// Asks the guest to have so much memory.
    ///
    /// # Errors
    /// See [`VmmError::Call`].
    pub fn resize_memory(&self, memory_mib: u32) -> Result<(), VmmError> {
        let call = format!("resize memory to {memory_mib} MiB");
        self.call(&call, &Request::ResizeMemory { memory_mib }, &[])
    }

    /// What KVM has counted of the vCPUs, by its names.
    ///
    /// # Errors
    /// See [`VmmError::Call`].
    pub fn vcpu_counters(&self) -> Result<BTreeMap<String, u64>, VmmError> {
        let counters = |answer| match answer {
            Response::VcpuCounters { counters } => Some(counters),
            _ => None,
        };
        self.ask("counters of vCPUs", &Request::VcpuCounters, counters)
    }

    /// How the machine is.
    ///
    /// # Errors
    /// See [`VmmError::Call`].
    pub fn status(&self) -> Result<VmStatus, VmmError> {
        self.ask("status", &Request::Status, |answer| match answer {
            Response::Status(status) => Some(status),
            _ => None,
        })
    }

    /// Takes a device away.
    ///
    /// # Errors
    /// See [`VmmError::Call`].
    pub fn detach(&self, id: &str) -> Result<(), VmmError> {
        self.call(
            &format!("detach {id}"),
            &Request::Detach { id: id.into() },
            &[],
        )
    }

    /// Makes a call whose answer is what `answer` takes out of it.
    fn ask<A>(
        &self,
        call: &str,
        request: &Request,
        answer: impl FnOnce(Response) -> Option<A>,
    ) -> Result<A, VmmError> {
        self.ask_with(call, request, &[], answer)
    }

    /// The same with descriptors beside the call.
    fn ask_with<A>(
        &self,
        call: &str,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        answer: impl FnOnce(Response) -> Option<A>,
    ) -> Result<A, VmmError> {
        let response = self.client.call(request, fds);
        match response.map_err(|error| call_error(call, error))? {
            Response::Failed(failure) => Err(call_error(call, failure.into())),
            response => answer(response).ok_or_else(|| {
                call_error(call, io::Error::from(io::ErrorKind::InvalidData).into())
            }),
        }
    }

    fn call(&self, call: &str, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), VmmError> {
        let answer = self
            .client
            .call(request, fds)
            .map_err(|error| call_error(call, error))?;
        match answer {
            Response::Attached { pci_address } => tracing::debug!(call, pci_address, "device"),
            Response::Done
            | Response::NetCounters { .. }
            | Response::DeviceCounters { .. }
            | Response::VcpuCounters { .. }
            | Response::Status(_)
            | Response::ConsoleTail { .. } => {}
            Response::Failed(failure) => return Err(call_error(call, failure.into())),
        }
        Ok(())
    }
}

fn call_error(call: &str, source: CallError) -> VmmError {
    VmmError::Call {
        call: call.into(),
        source,
    }
}

/// The control socket of the VMM whose files are in `directory`.
pub fn control_socket(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

/// The hybrid vsock's Unix socket of the VMM whose files are in `directory`.
pub fn vsock_socket(directory: &Path) -> PathBuf {
    directory.join("vsock/agent.sock")
}

/// The VMM whose files are in `directory`, if it takes calls. Its maker may have been killed before it noted it.
pub fn listening(directory: &Path) -> Option<ProcessIdentity> {
    let client = ControlClient::connect(&control_socket(directory), CALL_LIMIT).ok()?;
    ProcessIdentity::of(client.server_pid().ok()?).ok()
}

/// Ends a VMM, whatever it is doing; nothing happens if it has ended.
///
/// # Errors
/// It cannot be killed.
pub fn stop(process: &ProcessIdentity, directory: &Path) -> Result<(), VmmError> {
    if !process.is_alive() {
        return Ok(());
    }
    let asked = ControlClient::connect(&control_socket(directory), CALL_LIMIT)
        .map_err(CallError::from)
        .and_then(|client| client.call(&Request::Stop, &[]));
    // It may end before it answers; and one that does not listen is killed.
    if let Err(error) = asked {
        tracing::debug!(error = %crate::error::chain(&error), "VMM: stop");
    } else if process.wait_end(STOP_LIMIT) {
        return Ok(());
    }
    let fail = || VmmError::Unkillable { pid: process.pid };
    process.signal(libc::SIGKILL).map_err(|_| fail())?;
    if process.wait_end(KILL_LIMIT) {
        Ok(())
    } else {
        Err(fail())
    }
}

/// Whether the machine of the VMM whose files are in `directory` has ended, though the process may still be about to.
pub fn has_ended(process: &ProcessIdentity, directory: &Path) -> bool {
    read_outcome(directory).is_some() || !process.is_alive()
}

/// How a machine ended that did not end in order, for people; nothing while it lives and for one that did.
pub fn describe_crash(directory: &Path) -> Option<String> {
    let outcome = read_outcome(directory)?;
    match outcome.cause {
        Cause::Stopped | Cause::GuestReset => None,
        Cause::GuestPanic | Cause::TripleFault | Cause::KvmCannotRun | Cause::VmmError => {
            Some(describe_end(directory))
        }
    }
}

/// Nothing before the end, and after the end of a VMM that was killed.
fn read_outcome(directory: &Path) -> Option<Outcome> {
    let bytes = std::fs::read(directory.join("outcome.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// What is known of a machine that does not answer, for people: how it ended, if it has, and its console's last lines.
pub fn describe_end(directory: &Path) -> String {
    match read_outcome(directory) {
        Some(outcome) => {
            let console = printable(&outcome.console_tail);
            let console = if console.is_empty() {
                tail(&directory.join("console.log"))
            } else {
                console
            };
            format!("{}{}", outcome.message, block("console", &console))
        }
        None => {
            let console = tail(&directory.join("console.log"));
            let messages = tail(&directory.join("vmm.log"));
            format!(
                "{}{}",
                block("console", &console),
                block("messages of hull-vmm", &messages)
            )
        }
    }
}

fn block(title: &str, text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("\n--- {title} ---\n{text}")
    }
}

/// The last [`TAIL`] bytes of a text file of whatever a guest wrote, fit to be shown; empty if there is none.
fn tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL as u64)))?;
        let mut bytes = Vec::new();
        file.take(TAIL as u64).read_to_end(&mut bytes)?;
        Ok(printable(&String::from_utf8_lossy(&bytes)))
    };
    read().unwrap_or_default()
}

/// Without what could drive a terminal, and without empty lines at the end.
fn printable(text: &str) -> String {
    let text: String = text
        .chars()
        .filter(|character| !character.is_control() || matches!(character, '\n' | '\t'))
        .collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests;
