//! The maker's side of a monitor.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::{FromMonitor, MonitorError, SETTINGS, Settings};
use crate::container::ContainerId;
use crate::logging::LogSettings;
use crate::network::Netns;
use crate::own_program;
use crate::pending_child::{PendingChild, SpawnError};
use crate::process_identity::ProcessIdentity;

/// How long a monitor may take until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(30);
/// The longest line that it says, in bytes.
const MAX_LINE: u64 = 64 * 1024;

/// A monitor that has been started and has not said yet that it listens. Dropping it kills it.
#[derive(Debug)]
pub struct StartingMonitor {
    child: PendingChild,
    answer: UnixStream,
}

impl StartingMonitor {
    /// Starts the monitor of a sandbox below the state directory `root`, in the sandbox's network namespace. Its
    /// messages are appended to `log`.
    ///
    /// # Errors
    /// See [`MonitorError`].
    pub fn spawn(
        netns: &Netns,
        root: &Path,
        sandbox: &ContainerId,
        log: &Path,
    ) -> Result<Self, MonitorError> {
        let fail = |operation| move |source| MonitorError::Start { operation, source };
        let (answer, theirs) = UnixStream::pair().map_err(fail("make its socket"))?;
        answer
            .set_read_timeout(Some(LISTEN_LIMIT))
            .map_err(fail("set up its socket"))?;
        // A panic's last words.
        let standard_error = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)
            .map_err(fail("open its log"))?;
        let settings = Settings {
            root: root.into(),
            sandbox: sandbox.clone(),
            log: LogSettings {
                path: Some(log.into()),
                json: false,
                debug: false,
            },
        };
        let settings = serde_json::to_string(&settings)
            .map_err(|error| fail("write its settings")(error.into()))?;
        let mut command = own_program::command();
        command
            // For who lists processes.
            .arg0("hull-monitor")
            .arg(sandbox.as_str())
            .current_dir("/")
            .env_clear()
            .env(SETTINGS, settings)
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(theirs))
            .stderr(standard_error)
            // A terminal's signals are for the container.
            .process_group(0);
        let child =
            PendingChild::spawn(&mut command, Some(netns)).map_err(|error| match error {
                SpawnError::Netns(error) => MonitorError::Netns(Box::new(error)),
                SpawnError::Host(error) => fail("run it")(error),
            })?;
        // It holds the other end of the socket.
        drop(command);
        Ok(Self { child, answer })
    }

    /// Names it.
    pub fn identity(&self) -> ProcessIdentity {
        self.child.identity()
    }

    /// Waits until it listens. It then lives on its own.
    ///
    /// # Errors
    /// It does not, and is gone.
    pub fn wait_listening(mut self) -> Result<(), MonitorError> {
        let mut line = String::new();
        let mut answer = BufReader::new(Read::take(&self.answer, MAX_LINE));
        answer.read_line(&mut line).map_err(MonitorError::Lost)?;
        if line.is_empty() {
            return Err(MonitorError::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_str(&line).map_err(|error| MonitorError::Lost(error.into()))? {
            FromMonitor::Listening => {
                self.child.let_go();
                Ok(())
            }
            FromMonitor::Failed { message } => Err(MonitorError::Failed { message }),
        }
    }
}
