//! A process's terminal: its master comes from the process proxy by a socket, and two threads carry its bytes.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::sync::oneshot;

use crate::error::Error;

/// The most that is carried at a time, in bytes.
const CHUNK: usize = 32 * 1024;

/// Makes the paths of sockets differ.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A socket that a terminal is sent to; it goes with this.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    pub(super) fn listen(directory: &Path) -> Result<Self, Error> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("terminal-{}-{number}.sock", std::process::id());
        let path = directory.join(name);
        std::fs::create_dir_all(directory).map_err(Error::io("make", directory))?;
        let listener = UnixListener::bind(&path).map_err(Error::io("listen at", &path))?;
        Ok(Self { listener, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal, which has been sent.
    pub(super) fn receive(&self) -> Result<OwnedFd, Error> {
        let receive = || -> io::Result<OwnedFd> {
            self.listener.set_nonblocking(true)?;
            let (stream, _) = self.listener.accept()?;
            stream.set_nonblocking(true)?;
            receive_fd(stream.as_fd())
        };
        receive().map_err(Error::io("receive the terminal at", &self.path))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // What is left of it is only a name.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[allow(unsafe_code)]
fn receive_fd(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut text = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let fd = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = fd.ok_or(io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A terminal whose bytes are carried.
#[derive(Debug)]
pub(super) struct Carried {
    master: Arc<OwnedFd>,
    output_end: Option<oneshot::Receiver<()>>,
}

impl Carried {
    /// Starts the threads. Both end when nobody has the terminal's other end open any more.
    pub(super) fn start(
        master: OwnedFd,
        input: Option<Arc<OwnedFd>>,
        output: Option<Arc<OwnedFd>>,
    ) -> Result<Self, Error> {
        let fail = || Error::io("carry", "a terminal");
        let master = Arc::new(master);
        let (sender, output_end) = oneshot::channel();
        let source = master.try_clone().map_err(fail())?;
        let spawn = |name: &str| thread::Builder::new().name(name.into());
        spawn("terminal-out")
            .spawn(move || {
                carry_output(File::from(source), output.as_deref());
                // Whoever waited may have given up.
                let _ = sender.send(());
            })
            .map_err(fail())?;
        if let Some(input) = input {
            let sink = master.try_clone().map_err(fail())?;
            spawn("terminal-in")
                .spawn(move || {
                    if let Err(error) = carry_input(&input, &mut File::from(sink)) {
                        tracing::debug!(%error, "the terminal's input has ended");
                    }
                })
                .map_err(fail())?;
        }
        Ok(Self {
            master,
            output_end: Some(output_end),
        })
    }

    pub(super) fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    pub(super) fn take_output_end(&mut self) -> Option<oneshot::Receiver<()>> {
        self.output_end.take()
    }
}

/// Until reading fails, which it does when the other end is closed and all was read. What nobody takes is lost, and the
/// process is not held up by that.
fn carry_output(mut source: File, sink: Option<&OwnedFd>) {
    let mut sink = sink.and_then(|sink| sink.try_clone().ok()).map(File::from);
    let mut bytes = vec![0; CHUNK];
    loop {
        let count = match source.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if let Some(file) = &mut sink
            && let Err(error) = file.write_all(&bytes[..count])
        {
            tracing::debug!(%error, "nobody takes the terminal's output");
            sink = None;
        }
    }
}

/// Until the input ends, or the terminal's other end is closed.
fn carry_input(source: &OwnedFd, master: &mut File) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    let mut source = File::from(source.try_clone()?);
    loop {
        let mut fds = [
            PollFd::new(source.as_fd(), PollFlags::POLLIN),
            PollFd::new(master.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            answer => answer?,
        };
        if fds[1].any() == Some(true) {
            return Ok(());
        }
        match source.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => master.write_all(&bytes[..count])?,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::unix::net::UnixStream;

    use nix::pty::openpty;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
    use nix::unistd::pipe2;

    use super::*;

    #[test]
    fn a_terminal_is_received_and_its_bytes_are_carried_to_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let socket = ConsoleSocket::listen(directory.path()).unwrap();
        let pty = openpty(None, None).unwrap();
        let mut attributes = tcgetattr(&pty.slave).unwrap();
        cfmakeraw(&mut attributes);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &attributes).unwrap();
        let stream = UnixStream::connect(socket.path()).unwrap();
        let fds = [pty.master.as_raw_fd()];
        sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(b"/dev/ptmx")],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        let master = socket.receive().unwrap();
        drop(pty.master);
        let path = socket.path().to_owned();
        drop(socket);
        assert!(!path.exists());

        let pipe = || pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (input, typed) = pipe();
        let (shown, output) = pipe();
        let mut carried =
            Carried::start(master, Some(Arc::new(input)), Some(Arc::new(output))).unwrap();
        let mut slave = File::from(pty.slave);
        File::from(typed).write_all(b"typed").unwrap();
        let mut bytes = [0; 5];
        slave.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"typed");
        slave.write_all(b"shown").unwrap();
        drop(slave);
        let end = carried.take_output_end().unwrap();
        end.blocking_recv().unwrap();
        drop(carried);
        let mut all = String::new();
        File::from(shown).read_to_string(&mut all).unwrap();
        assert_eq!(all, "shown");
    }
}
