//! The hull-vmm command: makes the machine of one configuration file, runs it to its end, and leaves an outcome.
//!
//! Order matters: everything of the host is opened first, then the jail is entered, then the machine is made and
//! threads are started.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use hull_vmm::boot::BootFile;
use hull_vmm::config;
use hull_vmm::control::server::Server;
use hull_vmm::control::{serve, take_signals};
use hull_vmm::devices::virtio::rng::device::Rng;
use hull_vmm::jail::{self, JAIL_VSOCK};
use hull_vmm::kvm::system::System;
use hull_vmm::kvm::vcpu::StopSignal;
use hull_vmm::machine::build::{Opened, build};
use hull_vmm::machine::console_log::ConsoleLog;
use hull_vmm::machine::end::End;
use hull_vmm::machine::{Machine, MachineError};
use hull_vmm_protocol::config::VmConfig;
use hull_vmm_protocol::outcome::{Cause, Outcome, Ready, StartFailure};
use hull_vmm_protocol::socket;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signalfd::SignalFd;
use tracing_subscriber::EnvFilter;

/// Bytes of the console that an outcome holds after a crash.
const OUTCOME_TAIL: usize = 8 * 1024;
/// How long the vCPUs and the devices have to stop once the machine has ended.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs one virtual machine.
#[derive(Parser)]
#[command(name = "hull-vmm", version)]
struct Arguments {
    /// The machine to make: a JSON file (see hull-vmm-protocol, VmConfig)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where to write one line of JSON once the machine runs or cannot be made
    #[arg(long, value_name = "FD")]
    ready_fd: Option<RawFd>,
}

/// Why the machine does not run, with the kind that the caller is told.
struct NotStarted {
    kind: StartFailure,
    error: anyhow::Error,
}

/// Makes an error into the reason why the machine does not run.
trait Because<T> {
    fn because(self, kind: StartFailure) -> Result<T, NotStarted>;
}

impl<T, E: Into<anyhow::Error>> Because<T> for Result<T, E> {
    fn because(self, kind: StartFailure) -> Result<T, NotStarted> {
        self.map_err(|error| NotStarted {
            kind,
            error: error.into(),
        })
    }
}

/// A machine that runs, and what its end needs.
struct Running {
    machine: Machine,
    server: Server,
    signals: SignalFd,
    outcome: File,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_env_filter(log_filter())
        .init();
    let arguments = Arguments::parse();
    let ready = match arguments.ready_fd.map(take_descriptor).transpose() {
        Ok(ready) => ready,
        Err(error) => {
            tracing::error!("--ready-fd: {error}");
            return ExitCode::FAILURE;
        }
    };
    match start(&arguments.config) {
        // A caller that has ended meanwhile may not have noted yet that there is this process.
        Ok(running) => match tell(ready, &Ready::Running) {
            Ok(()) => run(running),
            Err(error) => {
                tracing::error!(%error, "the caller has ended");
                ExitCode::FAILURE
            }
        },
        Err(NotStarted { kind, error }) => {
            let message = format!("{error:#}");
            tracing::error!("{message}");
            if let Err(error) = tell(ready, &Ready::Failed { kind, message }) {
                tracing::warn!(%error, "--ready-fd");
            }
            ExitCode::FAILURE
        }
    }
}

/// What HULL_VMM_LOG asks for, without what a guest can make other crates say as often as it likes.
fn log_filter() -> EnvFilter {
    ["fuse_backend_rs=off", "virtio_queue=off"]
        .iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(
            EnvFilter::from_env("HULL_VMM_LOG"),
            EnvFilter::add_directive,
        )
}

/// Opens everything, enters the jail, makes the machine, and starts its vCPUs.
fn start(path: &Path) -> Result<Running, NotStarted> {
    let config = config::load(path).because(StartFailure::Config)?;
    raise_descriptor_limit();
    let signals = take_signals()
        .context("take signals")
        .because(StartFailure::Host)?;
    StopSignal::install_handler()
        .context("set a signal's handler")
        .because(StartFailure::Host)?;
    let kernel = BootFile::open(&config.kernel).because(StartFailure::Kernel)?;
    let initramfs = BootFile::open(&config.initramfs).because(StartFailure::Kernel)?;
    let system = System::open().because(StartFailure::Kvm)?;
    let files = open_host(&config).because(StartFailure::Host)?;
    let vsock_prefix = if config.jail {
        enter_jail(&config).because(StartFailure::Host)?
    } else {
        config.vsock.socket.clone()
    };
    let opened = Opened {
        system,
        kernel,
        initramfs,
        console: ConsoleLog::new(files.console),
        vsock: files.vsock,
        vsock_prefix,
        rng: files.rng,
    };
    let mut machine = build(&config, opened).map_err(not_made)?;
    machine.start().map_err(not_made)?;
    Ok(Running {
        machine,
        server: files.server,
        signals,
        outcome: files.outcome,
    })
}

/// Serves until the machine ends, leaves the outcome, and takes the machine apart.
fn run(running: Running) -> ExitCode {
    let Running {
        mut machine,
        mut server,
        signals,
        outcome,
    } = running;
    let end = serve(&mut machine, &mut server, &signals)
        .unwrap_or_else(|error| End::new(Cause::VmmError, &format!("wait for events: {error}")));
    let orderly = matches!(end.cause, Cause::Stopped | Cause::GuestReset);
    tracing::info!(cause = ?end.cause, "the machine has ended: {}", end.message);
    let console_tail = if orderly {
        String::new()
    } else {
        machine.console.tail(OUTCOME_TAIL)
    };
    let written = leave(outcome, end, console_tail);
    if let Err(error) = &written {
        tracing::error!(%error, "write the outcome");
    }
    let success = orderly && written.is_ok();
    exit_at_last(success);
    machine.stop();
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn leave(mut file: File, end: End, console_tail: String) -> io::Result<()> {
    let outcome = Outcome {
        cause: end.cause,
        message: end.message,
        console_tail,
    };
    file.write_all(&serde_json::to_vec(&outcome)?)
}

/// Exits after [`STOP_LIMIT`] all the same: a device may hang on what the host does for it, and a guest may have
/// brought that about.
fn exit_at_last(success: bool) {
    let last_resort = move || {
        std::thread::sleep(STOP_LIMIT);
        tracing::error!("a device has not stopped for {STOP_LIMIT:?}");
        std::process::exit(i32::from(!success));
    };
    if let Err(error) = std::thread::Builder::new()
        .name("last-resort".to_owned())
        .spawn(last_resort)
    {
        tracing::warn!(%error, "start a thread");
    }
}

/// What is opened of the host for the caller.
struct HostFiles {
    outcome: File,
    console: File,
    server: Server,
    vsock: UnixListener,
    rng: Rng,
}

fn open_host(config: &VmConfig) -> anyhow::Result<HostFiles> {
    let outcome = make_file(&config.outcome)?;
    let console = make_file(&config.console_log)?;
    let control = &config.control_socket;
    let server = socket::listen(control)
        .and_then(Server::new)
        .with_context(|| format!("listen on {}", control.display()))?;
    let vsock = listen_for_guest(&config.vsock.socket)
        .with_context(|| format!("listen on {}", config.vsock.socket.display()))?;
    let rng = Rng::new().context("open the host's random number generator")?;
    Ok(HostFiles {
        outcome,
        console,
        server,
        vsock,
        rng,
    })
}

/// The vsock device's socket, for its owner alone.
fn listen_for_guest(path: &Path) -> io::Result<UnixListener> {
    use nix::sys::socket as sys;
    let flags = sys::SockFlag::SOCK_CLOEXEC;
    let listener = sys::socket(sys::AddressFamily::Unix, sys::SockType::Stream, flags, None)?;
    socket::with_short_path(path, |address| {
        Ok(sys::bind(
            std::os::fd::AsRawFd::as_raw_fd(&listener),
            address,
        )?)
    })?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    sys::listen(&listener, sys::Backlog::new(128)?)?;
    Ok(listener.into())
}

/// Makes an empty file, or empties the one that is there.
fn make_file(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .with_context(|| format!("make {}", path.display()))
}

/// Enters the jail; gives the prefix of the guest's connections as the jail has it.
fn enter_jail(config: &VmConfig) -> anyhow::Result<PathBuf> {
    let parent = |path: &Path| {
        path.parent()
            .map_or_else(|| PathBuf::from("/"), Path::to_owned)
    };
    jail::enter(
        &parent(&config.control_socket),
        &parent(&config.vsock.socket),
    )?;
    jail::drop_privileges()?;
    // The configuration's paths have file names.
    let name = config.vsock.socket.file_name().unwrap_or_default();
    Ok(Path::new(JAIL_VSOCK).join(name))
}

/// virtio-fs holds a descriptor for each file that the guest knows.
fn raise_descriptor_limit() {
    const WANTED: u64 = 1 << 20;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard.max(WANTED), hard.max(WANTED))
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "raise the limit of descriptors");
    }
}

fn not_made(error: MachineError) -> NotStarted {
    let kind = match &error {
        MachineError::Kvm(_) | MachineError::Cpuid(_) => StartFailure::Kvm,
        MachineError::Boot(_) => StartFailure::Kernel,
        MachineError::Memory(_)
        | MachineError::Attach(_)
        | MachineError::Device(_)
        | MachineError::Host { .. } => StartFailure::Host,
    };
    NotStarted {
        kind,
        error: error.into(),
    }
}

/// Tells the caller once how the start went.
fn tell(ready: Option<File>, message: &Ready) -> io::Result<()> {
    let Some(mut file) = ready else {
        return Ok(());
    };
    let line = serde_json::to_string(message)?;
    writeln!(file, "{line}")
}

/// Takes a descriptor that the caller left open for this process. Standard output may be one; nothing else is written there.
fn take_descriptor(fd: RawFd) -> io::Result<File> {
    if fd == libc::STDOUT_FILENO {
        let ready = io::stdout().as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stdout(File::open("/dev/null")?)?;
        return Ok(ready.into());
    }
    if fd <= libc::STDERR_FILENO || !Path::new("/proc/self/fd").join(fd.to_string()).exists() {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open, it is none of the standard ones, and nothing in this process has opened any
    // that it could be: it came from the caller, who names it for this use.
    #[allow(unsafe_code)]
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(owned.into())
}
