//! Carries the bytes of one stream, in a thread of its own that blocks in reading or in writing: so a slow reader slows
//! its writer down, all the way to the process in the guest, and an idle stream costs nothing.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown as SocketShutdown, shutdown};

/// The most that is carried at a time, in bytes.
const CHUNK: usize = 64 * 1024;

/// How long the guest may be silent after the process's end, before an output whose end it does not tell is given up. The
/// agent tells it, also when something else (a daemon that `exec` left behind) holds the output open; but a guest on a
/// busy host may be slow to.
const SILENCE: Duration = Duration::from_secs(30);

/// How long the reader of an output may take nothing of it, before what a process that was killed had written is given
/// up: there would be no more of it than a pipe holds, had the process written to the host itself.
const STALL: Duration = Duration::from_secs(1);

/// How often progress is looked for once the process has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Carries what comes from `source` on the host to `sink` in the guest, and then its end. Nothing waits for this thread:
/// it may be blocked in reading for as long as the proxy lives.
pub(super) fn carry_input(source: OwnedFd, sink: UnixStream) -> io::Result<()> {
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            if copy(&mut File::from(source), &mut &sink, |_| {}, |_| {}).is_err() {
                tracing::debug!("the process's input was closed");
            }
            // The guest may have closed the stream.
            let _ = sink.shutdown(Shutdown::Write);
        })
        .map(drop)
}

/// The thread that carries an output of the process to the host.
#[derive(Debug)]
pub(super) struct Output {
    stream: UnixStream,
    done: Receiver<()>,
    progress: Arc<Progress>,
}

/// Bytes that were read of the source and written to the sink.
#[derive(Debug, Default)]
struct Progress {
    read: AtomicU64,
    written: AtomicU64,
}

impl Progress {
    fn now(&self) -> (u64, u64) {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (now(&self.read), now(&self.written))
    }
}

/// What becomes of an output that its reader on the host does not take, after the end of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untaken {
    /// It is waited for, however long.
    Kept,
    /// It goes with its process, which was killed.
    Dropped,
}

impl Output {
    /// Carries what comes from `source` in the guest to `sink` on the host; `first_byte` is called once.
    pub(super) fn carry(
        name: &str,
        source: UnixStream,
        sink: OwnedFd,
        first_byte: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        Self::carry_to(File::from(sink), name, source, first_byte)
    }

    /// The same from a terminal in the guest, to a sink that may be none.
    pub(super) fn carry_terminal(
        source: UnixStream,
        sink: OwnedFd,
        first_byte: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let name = "terminal";
        if sink.is_terminal() {
            return Self::carry(name, source, sink, first_byte);
        }
        Self::carry_to(Lines::new(File::from(sink)), name, source, first_byte)
    }

    /// Carries both ways between a connected socket on the host and `guest`, with the end of either direction.
    pub(super) fn carry_socket(host: OwnedFd, guest: UnixStream) -> io::Result<Self> {
        carry_input(host.try_clone()?, guest.try_clone()?)?;
        Self::carry_to(Socket(File::from(host)), "socket", guest, || {})
    }

    /// Whether all of it has been written.
    pub(super) fn has_ended(&self) -> bool {
        !matches!(self.done.try_recv(), Err(TryRecvError::Empty))
    }

    /// Nothing more comes, even if the stream does not say so.
    pub(super) fn shut_down(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    fn carry_to(
        mut sink: impl Write + Pollable + Send + 'static,
        name: &str,
        source: UnixStream,
        first_byte: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, done) = channel();
        let progress = Arc::new(Progress::default());
        let stream = source.try_clone()?;
        let shared = Arc::clone(&progress);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut first_byte = Some(first_byte);
                let read = |count: usize| {
                    if let Some(first_byte) = first_byte.take() {
                        first_byte();
                    }
                    shared.read.fetch_add(count as u64, Ordering::Relaxed);
                };
                let written = |count: usize| {
                    shared.written.fetch_add(count as u64, Ordering::Relaxed);
                };
                let copied = copy(&mut &source, &mut sink, read, written);
                if copied.is_err() {
                    // Nobody reads any more: the process is to learn of it.
                    let _ = source.shutdown(Shutdown::Both);
                }
                drop(sink);
                // Nobody may wait for it.
                let _ = sender.send(());
            })?;
        Ok(Self {
            stream,
            done,
            progress,
        })
    }

    /// After the process's end: waits until all of the output has been written. Its end comes from the guest; without
    /// one, the guest's silence is its end. A reader on the host may take as long as it likes, unless what it does not
    /// take is dropped.
    pub(super) fn finish(self, untaken: Untaken) {
        self.finish_within(untaken, SILENCE);
    }

    /// The same with another bound for the guest's silence.
    pub(super) fn finish_within(self, untaken: Untaken, silence: Duration) {
        let mut seen = self.progress.now();
        let mut since = Instant::now();
        loop {
            match self.done.recv_timeout(LOOK) {
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = self.progress.now();
            let (read, written) = now;
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if read == written && since.elapsed() >= silence {
                break;
            } else if read != written && untaken == Untaken::Dropped && since.elapsed() >= STALL {
                tracing::debug!(bytes = read - written, "output that nobody takes");
                return;
            }
        }
        // What has arrived already is still read.
        let _ = self.stream.shutdown(Shutdown::Read);
        let _ = match untaken {
            Untaken::Kept => self.done.recv().map_err(Into::into),
            Untaken::Dropped => self.done.recv_timeout(STALL),
        };
    }
}

/// Copies to the end of `source`, or until `sink` takes no more. Both may be non-blocking: they are shared with
/// processes that this one does not know.
fn copy<R: Read + Pollable, W: Write + Pollable>(
    source: &mut R,
    sink: &mut W,
    mut on_read: impl FnMut(usize),
    mut on_written: impl FnMut(usize),
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_for(source, PollFlags::POLLIN)?;
                continue;
            }
            // A terminal whose other side is closed.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
            Err(error) => return Err(error),
        };
        on_read(count);
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match sink.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = &rest[written..];
                    on_written(written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_for(sink, PollFlags::POLLOUT)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A connected socket, whose other side learns of the end of what is written.
struct Socket(File);

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The other side may have gone.
        let _ = shutdown(self.0.as_raw_fd(), SocketShutdown::Write);
    }
}

impl Pollable for Socket {
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lines as programs write them, for what is no terminal, as runc has it: without the carriage return that a terminal puts
/// before each newline.
struct Lines {
    sink: File,
    /// A carriage return has come, and not what follows it.
    held: bool,
}

impl Lines {
    fn new(sink: File) -> Self {
        Self { sink, held: false }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.held {
            if bytes.first() != Some(&b'\n') {
                self.sink.write_all(b"\r")?;
            }
            self.held = false;
        }
        match bytes.iter().position(|byte| *byte == b'\r') {
            Some(0) => {
                self.held = true;
                Ok(1)
            }
            Some(before) => self.sink.write(&bytes[..before]),
            None => self.sink.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if self.held {
            // Its reader may have gone.
            let _ = self.sink.write_all(b"\r");
        }
    }
}

/// What has a descriptor, also behind a reference.
trait Pollable {
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl Pollable for File {
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

impl Pollable for Lines {
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.sink.as_fd()
    }
}

impl Pollable for &UnixStream {
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

fn wait_for(side: &impl Pollable, events: PollFlags) -> io::Result<()> {
    let mut fds = [PollFd::new(side.descriptor(), events)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
