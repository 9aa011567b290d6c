//! The stdio of processes: pipes or a terminal between the process and its streams' connections.
//!
//! Runs in the agent's event loop. Each stream is carried by a task of its own, which blocks nobody else when its reader
//! does not read. The protocol is that of `hull_agent_protocol::stdio`; [`server`] speaks it, [`carry`] moves the
//! bytes, and this module keeps the agent's ends until a connection takes them.

mod carry;
mod inherited;
pub mod server;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hull_agent_protocol::stdio::{FIRST_FILE, StreamKind};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{fchown, pipe2};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::container::{Container, NotifySocket};
use crate::sys;
use inherited::{FileEnd, ListenerAddress};
pub use inherited::{FileEnds, InheritedFile, make_all as make_files};

/// Why a stream cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The process has no such stream: no stdin was asked for, or it has pipes and not a terminal, or the reverse.
    #[error("the process has no stream {0}")]
    None(StreamKind),
    /// Streams are opened once.
    #[error("the stream {0} was opened before, or is closed")]
    Taken(StreamKind),
}

/// Why a terminal's size cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The process has pipes, or has ended.
    #[error("the process has no terminal")]
    NoTerminal,
    /// Sizes have 16 bits.
    #[error("{rows} rows by {columns} columns is no window size")]
    Size {
        /// The rows asked for.
        rows: u32,
        /// The columns asked for.
        columns: u32,
    },
    /// TIOCSWINSZ failed.
    #[error("set the window size")]
    Ioctl(#[source] nix::Error),
}

/// A stream that waits for its connection.
#[derive(Default)]
enum Slot<T> {
    /// The process does not have it.
    #[default]
    None,
    Waiting(T),
    Taken,
}

impl<T> Slot<T> {
    fn take(&mut self, kind: StreamKind) -> Result<T, StreamError> {
        match std::mem::replace(self, Self::Taken) {
            Self::Waiting(end) => Ok(end),
            Self::Taken => Err(StreamError::Taken(kind)),
            Self::None => {
                *self = Self::None;
                Err(StreamError::None(kind))
            }
        }
    }

    fn close(&mut self) {
        if matches!(self, Self::Waiting(_)) {
            *self = Self::Taken;
        }
    }
}

/// A terminal's master.
pub(crate) type Master = Arc<AsyncFd<OwnedFd>>;

/// The agent's ends of a process's streams.
pub struct ProcessIo {
    slots: Mutex<Slots>,
    /// As long as its stream has it: the process is remembered for longer.
    terminal: Weak<AsyncFd<OwnedFd>>,
    /// Set when the process's stdin shall end.
    stdin_closed: watch::Sender<bool>,
    /// Never set: those of other files end by themselves.
    files_closed: watch::Sender<bool>,
}

#[derive(Default)]
struct Slots {
    stdin: Slot<pipe::Sender>,
    stdout: Slot<AsyncFd<OwnedFd>>,
    stderr: Slot<AsyncFd<OwnedFd>>,
    terminal: Slot<Master>,
    /// From the descriptor 3 on.
    files: Vec<FileEnd>,
}

/// A stream that a connection carries.
pub(crate) enum Endpoint {
    /// Host to guest, until the end of the stream or the flag.
    Input(pipe::Sender, watch::Receiver<bool>),
    /// Guest to host.
    Output(AsyncFd<OwnedFd>),
    /// Both ways.
    Terminal(Master),
    /// Guest to host.
    Notify(Arc<NotifySocket>),
    /// Guest to host.
    OutOfMemory(Arc<Container>),
    /// Both ways, to either's end of its own.
    Socket(tokio::net::UnixStream),
    /// The same with a connection that is still to be made.
    Listener(ListenerAddress),
    /// Neither way.
    Lease,
}

impl ProcessIo {
    fn new(slots: Slots, terminal: Weak<AsyncFd<OwnedFd>>) -> Self {
        Self {
            slots: Mutex::new(slots),
            terminal,
            stdin_closed: watch::Sender::new(false),
            files_closed: watch::Sender::new(false),
        }
    }

    /// Pipes, which belong to `user`, and the process's ends of them for its start. Without `stdin` the process reads
    /// `/dev/null`.
    ///
    /// # Errors
    /// When a pipe cannot be made.
    pub fn pipes(stdin: bool, user: u32) -> io::Result<(Self, [Stdio; 3])> {
        let mut slots = Slots::default();
        // It may open them by their names, as /dev/stdout.
        let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            fchown(&write, Some(user.into()), None)?;
            Ok((read, write))
        };
        let input = if stdin {
            let (read, write) = pipe()?;
            slots.stdin = Slot::Waiting(pipe::Sender::from_owned_fd(nonblocking(write)?)?);
            Stdio::from(read)
        } else {
            Stdio::null()
        };
        let (read, output) = pipe()?;
        slots.stdout = Slot::Waiting(sys::watched(nonblocking(read)?)?);
        let (read, errors) = pipe()?;
        slots.stderr = Slot::Waiting(sys::watched(nonblocking(read)?)?);
        let ends = [input, Stdio::from(output), Stdio::from(errors)];
        Ok((Self::new(slots, Weak::new()), ends))
    }

    /// A terminal, by its master.
    ///
    /// # Errors
    /// When the master cannot be watched for events.
    pub fn terminal(master: OwnedFd) -> io::Result<Self> {
        let master = Arc::new(sys::watched(nonblocking(master)?)?);
        let terminal = Arc::downgrade(&master);
        let slots = Slots {
            terminal: Slot::Waiting(master),
            ..Slots::default()
        };
        Ok(Self::new(slots, terminal))
    }

    /// The same with open files beside the stdio.
    #[must_use]
    pub fn with_files(self, files: FileEnds) -> Self {
        self.slots().files = files.0;
        self
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a stream for its connection.
    pub(crate) fn take(&self, kind: StreamKind) -> Result<Endpoint, StreamError> {
        let mut slots = self.slots();
        Ok(match kind {
            StreamKind::Stdin => {
                Endpoint::Input(slots.stdin.take(kind)?, self.stdin_closed.subscribe())
            }
            StreamKind::Stdout => Endpoint::Output(slots.stdout.take(kind)?),
            StreamKind::Stderr => Endpoint::Output(slots.stderr.take(kind)?),
            StreamKind::Terminal => Endpoint::Terminal(slots.terminal.take(kind)?),
            StreamKind::File(number) => {
                let index = usize::try_from(number.saturating_sub(FIRST_FILE));
                let end = index.ok().and_then(|index| slots.files.get_mut(index));
                match end {
                    Some(FileEnd::Input(slot)) => {
                        Endpoint::Input(slot.take(kind)?, self.files_closed.subscribe())
                    }
                    Some(FileEnd::Output(slot)) => Endpoint::Output(slot.take(kind)?),
                    Some(FileEnd::Socket(slot)) => Endpoint::Socket(slot.take(kind)?),
                    Some(FileEnd::Listener(address)) => Endpoint::Listener(address.clone()),
                    Some(FileEnd::Nothing) | None => return Err(StreamError::None(kind)),
                }
            }
            StreamKind::Lease => Endpoint::Lease,
            // It is the container's.
            StreamKind::Notify | StreamKind::OutOfMemory => return Err(StreamError::None(kind)),
        })
    }

    /// Ends the process's stdin after the bytes that have come. Nothing happens to a terminal, or to a stdin that has ended.
    pub fn close_stdin(&self) {
        self.slots().stdin.close();
        self.stdin_closed.send_replace(true);
    }

    /// Closes the streams that no connection has taken.
    pub fn close_unconnected(&self) {
        let mut slots = self.slots();
        slots.stdin.close();
        slots.stdout.close();
        slots.stderr.close();
        slots.terminal.close();
        slots.files.clear();
    }

    /// Sets the size of the process's terminal.
    ///
    /// # Errors
    /// See [`ResizeError`].
    pub fn resize(&self, rows: u32, columns: u32) -> Result<(), ResizeError> {
        let terminal = self.terminal.upgrade().ok_or(ResizeError::NoTerminal)?;
        let (Ok(short_rows), Ok(short_columns)) = (u16::try_from(rows), u16::try_from(columns))
        else {
            return Err(ResizeError::Size { rows, columns });
        };
        sys::set_window_size(terminal.get_ref().as_fd(), short_rows, short_columns)
            .map_err(ResizeError::Ioctl)
    }
}

fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}
