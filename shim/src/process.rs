//! What is known of a process: a container's first, or one that Exec has added.

use std::io;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::Status;
use hull_runtime::WindowSize;
use hull_runtime::process_identity::ProcessIdentity;
use oci_spec::runtime::Process as Spec;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::{oneshot, watch};

use crate::error::Error;
use crate::stdio::{Held, StreamNames};
use crate::sys;

/// The exit status of a process that was killed.
pub(crate) const KILLED: u32 = 137;

/// How long is waited for the end of a process at a time.
const LOOK: Duration = Duration::from_secs(3600);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

/// How far calls have brought a process; whether it has ended is told by its [`Exit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Paused,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Empty for the container's first.
    pub(crate) exec_id: String,
    pub(crate) names: StreamNames,
    known: Mutex<Known>,
    exit: watch::Sender<Option<Exit>>,
    /// Held while the process is being started, until containerd is told: its end is told after.
    pub(crate) starting: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Known {
    phase: Phase,
    /// Its process proxy's; 0 before there is one.
    pid: u32,
    /// What its sandbox knows it by, if it was added by Exec.
    guest_id: String,
    /// What is to be run, if it was added by Exec and not started.
    spec: Option<Box<Spec>>,
    held: Held,
    /// Its input has been closed, perhaps while it was being started.
    is_stdin_closed: bool,
}

impl Process {
    /// The first of a container.
    pub(crate) fn first(names: StreamNames, pid: u32, held: Held) -> Self {
        let process = Self::added(String::new(), names, None);
        process.known().pid = pid;
        process.known().held = held;
        process
    }

    /// One that is to run `spec`.
    pub(crate) fn exec(exec_id: String, names: StreamNames, spec: Box<Spec>) -> Self {
        Self::added(exec_id, names, Some(spec))
    }

    fn added(exec_id: String, names: StreamNames, spec: Option<Box<Spec>>) -> Self {
        Self {
            exec_id,
            names,
            known: Mutex::new(Known {
                phase: Phase::Created,
                pid: 0,
                guest_id: String::new(),
                spec,
                held: Held::default(),
                is_stdin_closed: false,
            }),
            exit: watch::Sender::new(None),
            starting: tokio::sync::Mutex::new(()),
        }
    }

    /// Nothing panics while it is held.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be run; once.
    pub(crate) fn take_spec(&self) -> Option<Box<Spec>> {
        self.known().spec.take()
    }

    /// It runs, and was added by Exec.
    pub(crate) fn set_started(&self, pid: u32, guest_id: String, held: Held) {
        let mut known = self.known();
        known.phase = Phase::Running;
        known.pid = pid;
        known.guest_id = guest_id;
        known.held = held;
        if known.is_stdin_closed {
            known.held.close_stdin();
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.known().phase = phase;
    }

    pub(crate) fn pid(&self) -> u32 {
        self.known().pid
    }

    pub(crate) fn guest_id(&self) -> String {
        self.known().guest_id.clone()
    }

    /// As containerd has it.
    pub(crate) fn status(&self) -> Status {
        if self.ended().is_some() {
            return Status::STOPPED;
        }
        match self.known().phase {
            Phase::Created => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Paused => Status::PAUSED,
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    pub(crate) fn set_ended(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    /// Waits for its end.
    pub(crate) async fn end(&self) -> Exit {
        let mut receiver = self.exit.subscribe();
        let exit = receiver.wait_for(Option::is_some).await.map(|exit| *exit);
        // The sender is in this process, so it cannot have gone.
        exit.ok().flatten().unwrap_or(Exit {
            status: KILLED,
            at: SystemTime::now(),
        })
    }

    pub(crate) fn close_stdin(&self) {
        let mut known = self.known();
        known.is_stdin_closed = true;
        known.held.close_stdin();
    }

    pub(crate) fn resize(&self, size: WindowSize) -> Result<(), Error> {
        let known = self.known();
        known
            .held
            .resize(size)
            .map_err(Error::io("resize", "the terminal"))
    }

    /// What tells that all of its terminal's output has been written; once.
    pub(crate) fn take_output_end(&self) -> Option<oneshot::Receiver<()>> {
        self.known().held.take_output_end()
    }

    /// Lets go of its streams.
    pub(crate) fn release(&self) {
        self.known().held = Held::default();
    }
}

/// Waits for the end of a process proxy, which exits as its process does, and gives its exit status.
pub(crate) async fn proxy_end(mut proxy: Child) -> u32 {
    if let Ok(identity) = ProcessIdentity::of(proxy.id()) {
        end_of(identity).await;
    }
    let waited = tokio::task::spawn_blocking(move || proxy.wait()).await;
    match waited {
        Ok(Ok(status)) => status
            .code()
            .and_then(|code| u32::try_from(code).ok())
            .unwrap_or(KILLED),
        Ok(Err(error)) => {
            tracing::error!(%error, "waiting for a process proxy");
            KILLED
        }
        Err(error) => {
            tracing::error!(%error, "waiting for a process proxy");
            KILLED
        }
    }
}

/// Waits for the end of a process. Its descriptor becomes readable then; so nothing but memory is needed for one that runs.
pub(crate) async fn end_of(process: ProcessIdentity) {
    let readable = async {
        let Some(pidfd) = process.open() else {
            return Ok(());
        };
        sys::watch(pidfd)?.readable().await.map(drop)
    };
    let watched: io::Result<()> = readable.await;
    if let Err(error) = watched {
        tracing::debug!(%error, pid = process.pid, "waiting for its end in a thread");
        let waited = move || while !process.wait_end(LOOK) {};
        if let Err(error) = tokio::task::spawn_blocking(waited).await {
            tracing::error!(%error, "waiting for the end of a process");
        }
    }
}

/// When something ended that has not: Go's zero time, as runc's shim has it. containerd takes none for the year 1970.
pub(crate) fn never() -> Timestamp {
    let mut timestamp = Timestamp::new();
    timestamp.seconds = -62_135_596_800;
    timestamp
}

/// As protobuf has it.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut timestamp = Timestamp::new();
    timestamp.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    // Less than a thousand million.
    timestamp.nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    timestamp
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::process::Command;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::stdio::{OpenStreams, Owner};

    #[tokio::test]
    async fn the_end_of_a_proxy_is_that_of_its_process() {
        let spawn = |script| Command::new("sh").args(["-c", script]).spawn().unwrap();
        assert_eq!(proxy_end(spawn("exit 7")).await, 7);
        assert_eq!(proxy_end(spawn("sleep 0.1; exit 8")).await, 8);
        assert_eq!(proxy_end(spawn("kill -9 $$")).await, KILLED);
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_the_end() {
        let process = Process::first(StreamNames::default(), 5, Held::default());
        assert_eq!(process.status(), Status::CREATED);
        process.set_phase(Phase::Paused);
        assert_eq!(process.status(), Status::PAUSED);
        let exit = Exit {
            status: 3,
            at: SystemTime::now(),
        };
        let (heard, ()) = tokio::join!(process.end(), async { process.set_ended(exit) });
        assert_eq!(heard, exit);
        assert_eq!(process.end().await, exit);
        assert_eq!(process.status(), Status::STOPPED);
    }

    #[test]
    fn an_input_that_is_closed_while_its_process_is_being_started_ends() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("stdin");
        mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
        let names = StreamNames {
            stdin: fifo.display().to_string(),
            ..StreamNames::default()
        };
        let owner = Owner {
            namespace: "default",
            id: "c1",
        };
        let streams = OpenStreams::open(&names, owner, directory.path()).unwrap();
        let input = streams.standard().stdin.unwrap();
        let mut input = File::from(input.try_clone().unwrap());
        let process = Process::exec("e".into(), names, Box::default());
        process.close_stdin();
        let waiting = input.read(&mut [0]).unwrap_err();
        assert_eq!(waiting.kind(), io::ErrorKind::WouldBlock);
        process.set_started(5, "guest".into(), streams.connect().unwrap());
        assert_eq!(input.read(&mut [0]).unwrap(), 0);
    }
}
