//! The proxy itself: what runs in the process that is a proxy.

use std::ffi::OsString;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use hull_agent_protocol::stdio::{StreamKind, StreamRequest};
use hull_vmm_protocol::socket::{parse, receive, send};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::first_thread::{FirstThread, run_beside};
use super::foreground::HostTerminal;
use super::inherited::{FileKind, Inherited};
use super::messages::{Attach, FromProxy, Setup, Streams, ToProxy};
use super::processes::Processes;
use super::signals::{Forwarder, block_all};
use super::stdio::{Output, Untaken, carry_input};
use super::{ProxyError, console, files};
use crate::agent_client::{AgentClient, vsock};
use crate::monitor::guard;
use crate::notify;
use crate::sandbox::Sandbox;
use crate::store::Store;
use crate::timing::{Moment, Stopwatch};
use crate::vmm_process::vsock_socket;

/// What a process exits with whose VM went away: as if it had been killed, which it was.
const KILLED: u8 = 137;
/// The exit code of a process that a signal ended is this and the signal's number.
const FIRST_SIGNAL: u8 = 128;
/// How long an engine may take to hear the last notifications of a container.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What the proxy exits with when it never stood for a process.
const NOTHING: u8 = 1;

/// Does what its maker says on `control`, and then stands for a process until that ends. Gives the exit code.
pub(crate) fn serve(control: OwnedFd) -> u8 {
    // Here, so that they are blocked in all threads.
    let signals = block_all();
    match run_beside(|first| stand_for_process(&control, signals, first)) {
        Ok(code) => code.unwrap_or(KILLED),
        Err(error) => fail(&control, &ProxyError::host("start its session")(error)),
    }
}

fn stand_for_process(control: &OwnedFd, signals: io::Result<SignalFd>, first: &FirstThread) -> u8 {
    match prepare(control, signals, first) {
        Ok(Some((session, processes))) => session.run(processes),
        // The maker has ended, or given up.
        Ok(None) => NOTHING,
        Err(error) => fail(control, &error),
    }
}

fn fail(control: &OwnedFd, error: &ProxyError) -> u8 {
    let message = crate::error::chain(error);
    // Without a maker nobody wants to know.
    let _ = send(control, &FromProxy::Failed { message }, &[]);
    NOTHING
}

fn prepare(
    control: &OwnedFd,
    signals: io::Result<SignalFd>,
    first: &FirstThread,
) -> Result<Option<(Session, Option<Processes>)>, ProxyError> {
    let signals = signals.map_err(ProxyError::host("block signals"))?;
    let Some((ToProxy::Setup(setup), files)) = next_with_files(control)? else {
        return Ok(None);
    };
    let held = Held::set_up(&setup, files, signals)?;
    if setup.own_mounts {
        first.run(files::part)?;
    }
    answer(control, &FromProxy::Ready)?;
    let Some(ToProxy::Attach(attach)) = next(control)? else {
        return Ok(None);
    };
    let of_container = attach.exec_id.is_empty();
    let (shares, shows_processes) = (attach.files.clone(), attach.shows_processes);
    let session = held.attach(attach)?;
    let show_files = move || {
        if !setup.own_mounts {
            files::part()?;
        }
        files::enter(&shares, shows_processes)
    };
    let processes = if of_container {
        first.run(show_files)?
    } else {
        None
    };
    answer(control, &FromProxy::Attached)?;
    match next(control)? {
        Some(ToProxy::Commit) => Ok(Some((session, processes))),
        _ => Ok(None),
    }
}

fn next(control: &OwnedFd) -> Result<Option<ToProxy>, ProxyError> {
    Ok(next_with_files(control)?.map(|(message, _)| message))
}

fn next_with_files(control: &OwnedFd) -> Result<Option<(ToProxy, Vec<OwnedFd>)>, ProxyError> {
    let Some((packet, files)) = receive(control).map_err(ProxyError::Lost)? else {
        return Ok(None);
    };
    let message = parse(&packet).map_err(|error| ProxyError::Lost(error.into()))?;
    Ok(Some((message, files)))
}

fn answer(control: &OwnedFd, answer: &FromProxy) -> Result<(), ProxyError> {
    send(control, answer, &[]).map_err(ProxyError::Lost)
}

/// What the proxy holds before there is a process.
struct Held {
    signals: SignalFd,
    streams: HostStreams,
    files: Vec<(FileKind, OwnedFd)>,
    origin: Moment,
}

/// The process's streams on the host, open.
enum HostStreams {
    Standard,
    Terminal(Terminal),
}

/// A terminal in the guest, as the host has it.
struct Terminal {
    input: OwnedFd,
    output: OwnedFd,
    /// Asked for its size.
    host: OwnedFd,
}

impl Held {
    fn set_up(setup: &Setup, files: Vec<OwnedFd>, signals: SignalFd) -> Result<Self, ProxyError> {
        let kinds = setup.files.iter().copied();
        // Its standard error is the process's, and nothing of hull's goes there.
        if setup.log.path.is_some() {
            setup.log.init().map_err(ProxyError::host("open its log"))?;
        }
        std::env::set_current_dir("/").map_err(ProxyError::host("leave its directory"))?;
        if setup.own_session {
            nix::unistd::setsid()
                .map_err(|errno| ProxyError::host("make a session")(errno.into()))?;
        }
        let streams = match &setup.streams {
            Streams::Standard => HostStreams::Standard,
            Streams::Terminal => HostStreams::Terminal(Terminal {
                input: duplicate(io::stdin().as_fd())?,
                output: duplicate(io::stdout().as_fd())?,
                host: HostTerminal::find()?.into(),
            }),
            Streams::Console { socket, size } => {
                let slave = console::open(socket, *size)?;
                take_for_standard(slave.as_fd())?;
                HostStreams::Terminal(Terminal {
                    input: duplicate(slave.as_fd())?,
                    output: duplicate(slave.as_fd())?,
                    host: slave,
                })
            }
        };
        Ok(Self {
            signals,
            streams,
            files: kinds.zip(files).collect(),
            origin: setup.origin,
        })
    }

    fn attach(self, attach: Attach) -> Result<Session, ProxyError> {
        let store = Store::new(attach.root.clone());
        let socket = vsock_socket(&store.sandbox_directory(&attach.sandbox_id));
        let request = StreamRequest {
            kind: StreamKind::Lease,
            container_id: attach.container_id.to_string(),
            exec_id: attach.exec_id.clone(),
        };
        let open = {
            let socket = socket.clone();
            move |kind| {
                let request = StreamRequest {
                    kind,
                    ..request.clone()
                };
                vsock::open_stream(&socket, &request)
            }
        };
        let streams = match self.streams {
            HostStreams::Standard => Connected::Standard {
                stdin: open(StreamKind::Stdin)?,
                stdout: open(StreamKind::Stdout)?,
                stderr: open(StreamKind::Stderr)?,
            },
            HostStreams::Terminal(terminal) => Connected::Terminal {
                terminal,
                stream: open(StreamKind::Terminal)?,
            },
        };
        let lease = open(StreamKind::Lease)?;
        let files = Inherited::connect(self.files, {
            let open = open.clone();
            Arc::new(move |number| open(StreamKind::File(number)))
        })?;
        let notifications = attach
            .notify
            .clone()
            .map(|address| open(StreamKind::Notify).map(|stream| (stream, address)))
            .transpose()?;
        let mut agent = AgentClient::connect(&socket)?;
        agent.await_process(&attach.container_id, &attach.exec_id)?;
        Ok(Session {
            attach,
            store,
            agent,
            streams,
            files,
            lease,
            notifications,
            signals: self.signals,
            origin: self.origin,
        })
    }
}

/// Puts the terminal in the place of the standard streams, as it is with runc: those belong to the maker, whose caller
/// may read them to their end.
fn take_for_standard(terminal: BorrowedFd<'_>) -> Result<(), ProxyError> {
    dup2_stdin(terminal)
        .and_then(|()| dup2_stdout(terminal))
        .and_then(|()| dup2_stderr(terminal))
        .map_err(|errno| ProxyError::host("take the terminal for its streams")(errno.into()))
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, ProxyError> {
    fd.try_clone_to_owned()
        .map_err(ProxyError::host("duplicate a stream"))
}

/// The process's streams, both ends.
enum Connected {
    Standard {
        stdin: UnixStream,
        stdout: UnixStream,
        stderr: UnixStream,
    },
    Terminal {
        terminal: Terminal,
        stream: UnixStream,
    },
}

/// A process in the guest that the proxy stands for.
struct Session {
    attach: Attach,
    store: Store,
    agent: AgentClient,
    streams: Connected,
    files: Inherited,
    /// Held to the end: without it the agent kills the process.
    lease: UnixStream,
    /// Where the container's notifications come from, and who hears them.
    notifications: Option<(UnixStream, OsString)>,
    signals: SignalFd,
    origin: Moment,
}

impl Session {
    /// Shows the container's processes from a thread of their own.
    fn show(&self, processes: Processes) {
        let socket = vsock_socket(&self.store.sandbox_directory(&self.attach.sandbox_id));
        let id = self.attach.container_id.clone();
        let describe = move || AgentClient::connect(&socket)?.describe_processes(&id);
        let started = thread::Builder::new()
            .name("processes".into())
            .spawn(move || processes.serve(describe));
        if let Err(error) = started {
            tracing::error!(%error, "process proxy: nobody is shown the processes");
        }
    }

    fn run(self, processes: Option<Processes>) -> u8 {
        if let Some(processes) = processes {
            self.show(processes);
        }
        let Self {
            attach,
            store,
            mut agent,
            streams,
            files,
            lease,
            notifications,
            signals,
            origin,
        } = self;
        let said = notifications.and_then(|(stream, address)| {
            let (all_said, said) = mpsc::sync_channel::<()>(0);
            let carry = move || {
                // Gone with this thread.
                let _all_said = all_said;
                notify::carry(stream, &address);
            };
            let started = thread::Builder::new().name("notify".into()).spawn(carry);
            started
                .inspect_err(|error| tracing::error!(%error, "process proxy: notifications"))
                .ok()
                .map(|_| said)
        });
        let mut outputs = match carry(&streams, origin) {
            Ok(outputs) => outputs,
            Err(error) => {
                tracing::error!(error = %crate::error::chain(&error), "process proxy");
                Vec::new()
            }
        };
        let carried = files.carry();
        let carried = carried
            .inspect_err(|error| tracing::error!(%error, "process proxy: open files"))
            .unwrap_or_default();
        let forwarder = Forwarder {
            signals,
            socket: vsock_socket(&store.sandbox_directory(&attach.sandbox_id)),
            container_id: attach.container_id.clone(),
            exec_id: attach.exec_id.clone(),
            terminal: streams.terminal(),
        };
        if let Err(error) = forwarder.start() {
            tracing::error!(%error, "process proxy: signals");
        }
        if attach.exec_id.is_empty()
            && let Err(error) = guard(store.clone(), attach.sandbox_id.clone())
        {
            tracing::error!(%error, "process proxy: nobody watches over the sandbox's monitor");
        }
        let code = match agent.process_ended() {
            Ok(ended) => u8::try_from(ended.exit_status).unwrap_or(KILLED),
            Err(error) => {
                tracing::warn!(
                    container = %attach.container_id,
                    error = %crate::error::chain(&error),
                    "the VM went away under its container"
                );
                streams.shut_down();
                outputs.extend(carried.take());
                outputs.iter().for_each(Output::shut_down);
                KILLED
            }
        };
        let untaken = if code > FIRST_SIGNAL {
            Untaken::Dropped
        } else {
            Untaken::Kept
        };
        outputs.extend(carried.take());
        for output in outputs {
            output.finish(untaken);
        }
        drop(lease);
        // What the process has said before its end is still handed on, unless the engine does not listen.
        if let Some(said) = said {
            let _ = said.recv_timeout(LAST_WORDS);
        }
        if attach.exec_id.is_empty() {
            end_sandbox(&store, &attach);
        }
        code
    }
}

/// Starts the threads that carry bytes; gives those whose end is waited for.
fn carry(streams: &Connected, origin: Moment) -> Result<Vec<Output>, ProxyError> {
    let stopwatch = Stopwatch::since(origin);
    let first_output = move || {
        let mut stopwatch = stopwatch;
        stopwatch.phase("first_output");
    };
    let host = || ProxyError::host("carry a stream");
    match streams {
        Connected::Standard {
            stdin,
            stdout,
            stderr,
        } => {
            let clone = |stream: &UnixStream| stream.try_clone().map_err(host());
            carry_input(duplicate(io::stdin().as_fd())?, clone(stdin)?).map_err(host())?;
            let sinks = (
                duplicate(io::stdout().as_fd())?,
                duplicate(io::stderr().as_fd())?,
            );
            Ok(vec![
                Output::carry("stdout", clone(stdout)?, sinks.0, first_output).map_err(host())?,
                Output::carry("stderr", clone(stderr)?, sinks.1, || {}).map_err(host())?,
            ])
        }
        Connected::Terminal { terminal, stream } => {
            let clone = || stream.try_clone().map_err(host());
            carry_input(duplicate(terminal.input.as_fd())?, clone()?).map_err(host())?;
            let output = duplicate(terminal.output.as_fd())?;
            Ok(vec![
                Output::carry_terminal(clone()?, output, first_output).map_err(host())?,
            ])
        }
    }
}

impl Connected {
    /// The terminal on the host, to ask for its size.
    fn terminal(&self) -> Option<OwnedFd> {
        match self {
            Self::Standard { .. } => None,
            Self::Terminal { terminal, .. } => terminal.host.try_clone().ok(),
        }
    }

    /// Without a VM nothing more comes, even if the socket does not say so.
    fn shut_down(&self) {
        let streams: &[&UnixStream] = match self {
            Self::Standard {
                stdin,
                stdout,
                stderr,
            } => &[stdin, stdout, stderr],
            Self::Terminal { stream, .. } => &[stream],
        };
        for stream in streams {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

/// With the last container of a sandbox its VM ends, and gives its memory back, though its state stays.
fn end_sandbox(store: &Store, attach: &Attach) {
    let ended = Sandbox::open(store, &attach.sandbox_id)
        .map_err(crate::Error::from)
        .and_then(|mut sandbox| sandbox.end_if_unused(&attach.container_id));
    if let Err(error) = ended {
        // `delete` comes to it again.
        tracing::warn!(
            sandbox = %attach.sandbox_id,
            error = %crate::error::chain(&error),
            "ending the VM"
        );
    }
}
