//! The helper: this program started again by the agent to make a container, or a process in one, with `libcontainer`.
//!
//! `libcontainer` forks, changes the working directory and marks its process as not dumpable, so it runs in a process of
//! one thread that ends afterwards; what it made is then a child of PID 1. The process's stdin, stdout and stderr are the
//! helper's own. One Unix socket connects the two: the agent writes one [`Request`], the helper one [`Reply`], each a
//! line of JSON; a terminal's master comes with the reply. The process's further open files the helper inherits, at numbers
//! that follow its socket's among its arguments, and puts them in their places.
//!
//! [`run`] is the agent's side, [`main`] the helper's.

mod executor;
mod seccomp;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hull_agent_protocol::stdio;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::unistd::pipe2;
use oci_spec::runtime::Process as OciProcess;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

use super::spec::Payload;
use crate::error_text::with_causes;
use crate::process::{Reaper, Watched};
use crate::{log::LineLog, sys};

/// The first argument that makes this program a helper; the second is the socket's number, and the rest those of the open
/// files.
pub const ARGUMENT: &str = "container-helper";

/// The first descriptor after the stdio.
const FIRST_FILE: RawFd = stdio::FIRST_FILE.cast_signed();

/// The longest line of either side. Specifications of some hundred kilobytes have been seen.
const MAX_LINE: u64 = 16 << 20;

/// The longest answer, which goes in one message.
const MAX_REPLY: usize = 32 << 10;

/// How long the helper may take: less than the runtime gives the call. What hangs must not keep others from the container.
const LIMIT: Duration = Duration::from_secs(50);

/// The soft limit of open files that a process gets when its specification sets none.
const OPEN_FILES: u64 = 1024;

/// What the helper shall make.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The container.
    pub container_id: String,
    /// The directory of `libcontainer`'s state.
    pub state: PathBuf,
    /// The container's bundle: `config.json`, and room for the helper's own files.
    pub bundle: PathBuf,
    /// A process to add to the container; without it the container is made.
    pub process: Option<OciProcess>,
    /// The cgroup of that process, as a path from the container's.
    pub cgroup: PathBuf,
    /// What the executor does.
    pub payload: Payload,
    /// The process gets a terminal.
    pub terminal: bool,
}

/// What the helper made.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// The process with this pid; with a terminal, the master's descriptor comes along.
    Made {
        pid: i32,
    },
    Failed(Failure),
}

/// Why nothing was made.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The program is not there: shells call it 127.
    #[error("{0}")]
    NotFound(String),
    /// The program may not be executed: shells call it 126.
    #[error("{0}")]
    NotExecutable(String),
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

/// Why the helper gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It could not be started.
    #[error("start the helper")]
    Start(#[source] io::Error),
    /// Speaking with it failed.
    #[error("speak with the helper")]
    Speak(#[source] io::Error),
    /// Its answer is no reply.
    #[error("read the helper's answer")]
    Answer(#[source] serde_json::Error),
    /// It ended before it answered.
    #[error("the helper ended with status {0} and without an answer")]
    Silent(u8),
    /// It did not answer in time, and was killed.
    #[error("the helper did not answer within {} s", LIMIT.as_secs())]
    Late,
    /// It said that the process has a terminal and sent none.
    #[error("the helper sent no terminal")]
    NoTerminal,
    /// It answered that it failed.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// What [`run`] made.
pub struct Made {
    /// The process, followed by the reaper.
    pub watched: Watched,
    /// Its terminal's master, when one was asked for.
    pub terminal: Option<OwnedFd>,
}

/// Starts `program` as a helper that serves `request`; the process that it makes has the given stdin, stdout and stderr,
/// and after them `files`.
///
/// # Errors
/// See [`HelperError`].
pub async fn run(
    program: &Path,
    reaper: &Arc<Reaper>,
    request: &Request,
    stdio: [Stdio; 3],
    files: Vec<OwnedFd>,
) -> Result<Made, HelperError> {
    let (ours, theirs) = UnixStream::pair().map_err(HelperError::Start)?;
    let starting = reaper.starting();
    let helper = reaper
        .starting()
        .watch(spawn(program, theirs, stdio, files).map_err(HelperError::Start)?);

    ours.set_nonblocking(true).map_err(HelperError::Speak)?;
    let socket = tokio::net::UnixStream::from_std(ours).map_err(HelperError::Speak)?;
    let answer = async {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        send(&socket, &line).await?;
        receive(&socket).await
    };
    let (line, terminal) = tokio::select! {
        biased;
        answer = answer => match answer {
            Ok(answer) => answer,
            // The socket breaks when the helper ends.
            Err(error) if helper.exit().is_none() => return Err(HelperError::Speak(error)),
            Err(_) => return Err(HelperError::Silent(helper.wait().await.status)),
        },
        exit = helper.wait() => return Err(HelperError::Silent(exit.status)),
        () = tokio::time::sleep(LIMIT) => {
            // Whether it has just ended makes no difference.
            let _ = helper.signal(libc::SIGKILL);
            return Err(HelperError::Late);
        }
    };
    match serde_json::from_slice(&line).map_err(HelperError::Answer)? {
        Reply::Made { pid } => {
            let watched = starting.watch(pid);
            if request.terminal && terminal.is_none() {
                return Err(HelperError::NoTerminal);
            }
            Ok(Made { watched, terminal })
        }
        Reply::Failed(failure) => Err(failure.into()),
    }
}

fn spawn(
    program: &Path,
    socket: UnixStream,
    [stdin, stdout, stderr]: [Stdio; 3],
    files: Vec<OwnedFd>,
) -> io::Result<i32> {
    // The helper inherits its end of the socket, and the files. This process has one thread that starts processes, so no other
    // child can inherit it too.
    for fd in files.iter().map(AsFd::as_fd).chain([socket.as_fd()]) {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let child = Command::new(program)
        .arg(ARGUMENT)
        .arg(socket.as_raw_fd().to_string())
        .args(files.iter().map(|file| file.as_raw_fd().to_string()))
        .env_clear()
        .current_dir("/")
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

async fn send(socket: &tokio::net::UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await?;
        match socket.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads up to the end of a line, with the descriptor that may come along. The socket's end would come too late: what
/// the helper made holds it as well.
async fn receive(socket: &tokio::net::UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut line = Vec::new();
    let mut terminal = None;
    let mut buffer = vec![0; MAX_REPLY];
    while line.last() != Some(&b'\n') {
        socket.readable().await?;
        let read = socket.try_io(Interest::READABLE, || {
            Ok(sys::receive_with_fd(socket.as_fd(), &mut buffer)?)
        });
        match read {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((length, fd)) => {
                line.extend_from_slice(&buffer[..length]);
                terminal = fd.or(terminal);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok((line, terminal))
}

/// The helper's main function, with the numbers of its socket and of the process's open files.
///
/// # Errors
/// When it cannot speak with the agent; everything else is in its answer.
pub fn main(socket: RawFd, files: &[RawFd]) -> anyhow::Result<()> {
    let count = i32::try_from(files.len())?;
    let socket = UnixStream::from(put_in_place(socket, files, FIRST_FILE + count)?);
    let mut line = Vec::new();
    BufReader::new((&socket).take(MAX_LINE)).read_until(b'\n', &mut line)?;
    let request: Request = serde_json::from_slice(&line)?;
    drop(line);

    let (reply, terminal) = match make(&request, count) {
        Ok((pid, terminal)) => (Reply::Made { pid }, terminal),
        Err(failure) => (Reply::Failed(failure), None),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    let fds: Vec<RawFd> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(&line)],
        if fds.is_empty() { &[] } else { &rights },
        MsgFlags::empty(),
        None,
    )?;
    (&socket).write_all(&line[sent..])?;
    Ok(())
}

/// Puts the open files in their places, from [`FIRST_FILE`] on, and the socket behind those, at `end` or later. Nothing but
/// the stdio is open beside them.
fn put_in_place(socket: RawFd, files: &[RawFd], end: RawFd) -> io::Result<OwnedFd> {
    // Out of the way of one another first.
    let away = |number| -> io::Result<OwnedFd> {
        let inherited = sys::inherited_fd(number)?;
        sys::duplicate_from(&inherited, end)
    };
    let socket = away(socket)?;
    let files = files.iter().map(|number| away(*number));
    let files: Vec<_> = files.collect::<io::Result<_>>()?;
    for (number, file) in (FIRST_FILE..).zip(files) {
        sys::place(file, number)?;
    }
    Ok(socket)
}

/// Makes the container or the process. Gives its pid, and its terminal's master.
fn make(request: &Request, files: i32) -> Result<(i32, Option<OwnedFd>), Failure> {
    let other = |what: &str, error: &(dyn std::error::Error + 'static)| {
        Failure::Other(format!("{what}: {}", with_causes(error)))
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| other("getrlimit", &e))?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard)
        .map_err(|e| other("setrlimit", &e))?;

    let notes = Notes::new().map_err(|error| other("make the helper's pipes", &error))?;
    let console = Console::new(request).map_err(|error| other("listen for a terminal", &error))?;
    match build(request, &notes, console.as_ref(), files) {
        Ok(pid) => {
            let master = console.map(|console| console.master()).transpose();
            Ok((
                pid,
                master.map_err(|error| other("receive the terminal", &error))?,
            ))
        }
        Err(error) => Err(notes.failure(&error, request.process.as_ref())),
    }
}

fn build(
    request: &Request,
    notes: &Notes,
    console: Option<&Console>,
    files: i32,
) -> Result<i32, LibcontainerError> {
    let executor = executor::PayloadExecutor::new(
        request.payload.clone(),
        request.container_id.clone(),
        Arc::clone(&notes.refusals.1),
    );
    let builder = ContainerBuilder::new(request.container_id.clone(), SyscallType::default())
        .with_root_path(&request.state)?
        .with_console_socket(console.map(|console| &console.path))
        .with_preserved_fds(files)
        .with_executor(executor);
    let Some(process) = &request.process else {
        let container = builder
            .as_init(&request.bundle)
            .with_systemd(false)
            .with_detach(true)
            .build()?;
        return container
            .pid()
            .map(|pid| pid.as_raw())
            .ok_or_else(|| LibcontainerError::Other("the container has no pid".to_owned()));
    };
    let file = request.bundle.join("process.json");
    let json = serde_json::to_vec(process).map_err(LibcontainerError::OtherSerialization)?;
    fs::write(&file, json).map_err(LibcontainerError::OtherIO)?;
    let cgroup = request.cgroup.to_string_lossy().into_owned();
    let cgroup = Some(cgroup).filter(|path| !path.is_empty());
    let built = builder
        .as_tenant()
        .with_process(Some(&file))
        .with_sub_cgroup(cgroup)
        .with_detach(true)
        .build();
    // The agent makes one process of a container at a time, so what is left here is this one's. A file that stays is
    // overwritten, or removed with the container.
    let _ = fs::remove_file(&file);
    remove_tenant_sockets(&request.state.join(&request.container_id));
    built.map(|pid| pid.as_raw())
}

/// `libcontainer` leaves a socket and a link behind for every process of exec.
fn remove_tenant_sockets(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b"tenant-") {
            // What stays is removed with the container.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// What `libcontainer`'s processes have to say when they fail. Its errors cross its own pipes as one sentence without
/// their causes; its log, and the executor's refusals, have them.
struct Notes {
    log: File,
    refusals: (File, Arc<File>),
}

impl Notes {
    fn new() -> io::Result<Self> {
        let pipe = || -> io::Result<(File, File)> {
            let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
            Ok((File::from(read), File::from(write)))
        };
        let (log, sink) = pipe()?;
        let (refused, refusal) = pipe()?;
        tracing::subscriber::set_global_default(LineLog::errors_to(sink))
            .map_err(io::Error::other)?;
        Ok(Self {
            log,
            refusals: (refused, Arc::new(refusal)),
        })
    }

    fn failure(&self, error: &LibcontainerError, process: Option<&OciProcess>) -> Failure {
        let refusal = waiting(&self.refusals.0);
        if let Ok(refusal) = serde_json::from_slice(&refusal) {
            return refusal;
        }
        let log = waiting(&self.log);
        let log = String::from_utf8_lossy(&log);
        if let Some(failure) = process.and_then(|process| no_directory(&log, process)) {
            return failure;
        }
        let mut message = with_causes(error);
        for line in log.lines() {
            // Each process of `libcontainer` logs what it heard from the next one; only what is new counts.
            if line.split(": ").all(|part| message.contains(part))
                || line.starts_with("failed to wait")
            {
                continue;
            }
            message.push_str("; ");
            message.push_str(line);
        }
        Failure::Other(message.chars().take(MAX_REPLY / 8).collect())
    }
}

/// Says as runc does that a process cannot be where it is to be, of which `libcontainer` logs an errno's name.
fn no_directory(log: &str, process: &OciProcess) -> Option<Failure> {
    let prefix = "failed to chdir e=";
    let name = log.lines().find_map(|line| line.strip_prefix(prefix))?;
    let reason = (1..=libc::EHWPOISON)
        .map(Errno::from_raw)
        .find(|errno| format!("{errno:?}") == name)
        .map_or(name, |errno| errno.desc())
        .to_lowercase();
    Some(Failure::Other(format!(
        "chdir to cwd ({:?}) set in config.json failed: {reason}",
        process.cwd()
    )))
}

/// What is in a pipe now.
fn waiting(mut pipe: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..length]);
    }
    bytes
}

/// The socket that `libcontainer` sends a terminal's master to.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn new(request: &Request) -> io::Result<Option<Self>> {
        if !request.terminal {
            return Ok(None);
        }
        let path = request.bundle.join("console.sock");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A short address, however long the container's name is.
        std::env::set_current_dir(&request.bundle)?;
        let listener = UnixListener::bind("console.sock")?;
        std::env::set_current_dir("/")?;
        Ok(Some(Self { listener, path }))
    }

    fn master(self) -> io::Result<OwnedFd> {
        // The process has connected and sent before it was ready.
        self.listener.set_nonblocking(true)?;
        let (connection, _) = self.listener.accept()?;
        let (_, master) = sys::receive_with_fd(connection.as_fd(), &mut [0; 256])?;
        fs::remove_file(&self.path)?;
        master.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
