//! Open files that a process has beside its stdio: what its caller gives are the host's, and stay there; the process has
//! others of their kind in the guest (`hull_agent_protocol::stdio`), and the proxy carries bytes between the two.
//!
//! A pipe, and a file that is only read or only written, is carried as stdin or stdout is. A connected stream socket goes
//! both ways. For a socket that listens the proxy accepts connections and hands each on, to a socket of the process that
//! listens in the guest. What no stream of bytes stands for is refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use hull_agent_protocol::agent;
use hull_agent_protocol::agent::inherited_file::Kind;
use hull_agent_protocol::stdio::FIRST_FILE;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, accept4, getsockname,
    getsockopt, sockopt,
};
use serde::{Deserialize, Serialize};

use super::ProxyError;
use super::stdio::{Output, carry_input};
use crate::agent_client::vsock::VsockError;
use crate::sys::take_inherited_fd;

/// Connections of a process's listening sockets that are carried at once; more wait in the host's queue.
const MAX_CONNECTIONS: usize = 256;
/// How often the end of one is looked for when there are as many.
const LOOK: Duration = Duration::from_millis(50);
/// After a failure to accept, for want of descriptors say.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a process cannot have an open file.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// The caller has not left it open.
    #[error("open file {number}")]
    NotOpen {
        /// Its number.
        number: RawFd,
        /// Why it cannot be had.
        source: io::Error,
    },
    /// There is nothing like it for a process in a VM.
    #[error("open file {number}: {kind} cannot be handed into a VM")]
    Unsupported {
        /// Its number.
        number: RawFd,
        /// What it is.
        kind: &'static str,
    },
}

/// An open file of the caller that a process is to have.
#[derive(Clone, Debug)]
pub struct InheritedFile {
    file: Arc<OwnedFd>,
    kind: FileKind,
}

/// What stands for it in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// It is read.
    Input,
    /// It is written.
    Output,
    /// A connected socket.
    Socket,
    /// A Unix socket that listens.
    UnixListener,
    /// A TCP socket that listens.
    TcpListener {
        /// Whether it is of IPv6.
        is_v6: bool,
        /// Where.
        port: u16,
    },
    /// `/dev/null`.
    Null,
}

impl InheritedFile {
    /// Takes the descriptor `number` over, which the caller has left open for this process.
    ///
    /// # Errors
    /// See [`InheritError`].
    pub fn take(number: RawFd) -> Result<Self, InheritError> {
        let not_open = |source| InheritError::NotOpen { number, source };
        let file = File::from(take_inherited_fd(number).map_err(not_open)?);
        let kind = FileKind::of(&file).map_err(not_open)?;
        let kind = kind.map_err(|kind| InheritError::Unsupported { number, kind })?;
        Ok(Self {
            file: Arc::new(file.into()),
            kind,
        })
    }

    pub(crate) fn kind(&self) -> FileKind {
        self.kind
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FileKind {
    /// The kind of an open file, or the words for what is none.
    fn of(file: &File) -> io::Result<Result<Self, &'static str>> {
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Self::of_socket(file);
        }
        if kind.is_char_device() && metadata.rdev() == libc::makedev(1, 3) {
            return Ok(Ok(Self::Null));
        }
        if !(kind.is_fifo() || kind.is_file()) {
            return Ok(Err(if kind.is_dir() {
                "a directory"
            } else {
                "a device"
            }));
        }
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        Ok(match flags & OFlag::O_ACCMODE {
            _ if flags.contains(OFlag::O_PATH) => Err("a path"),
            OFlag::O_RDONLY => Ok(Self::Input),
            OFlag::O_WRONLY => Ok(Self::Output),
            _ => Err("a file that is both read and written"),
        })
    }

    fn of_socket(file: &File) -> io::Result<Result<Self, &'static str>> {
        if getsockopt(file, sockopt::SockType)? != SockType::Stream {
            return Ok(Err("a socket without a stream"));
        }
        if !getsockopt(file, sockopt::AcceptConn)? {
            return Ok(Ok(Self::Socket));
        }
        let address: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(file))?;
        Ok(match address.family() {
            Some(AddressFamily::Unix) => Ok(Self::UnixListener),
            Some(AddressFamily::Inet) => Ok(Self::TcpListener {
                is_v6: false,
                port: address.as_sockaddr_in().map_or(0, |address| address.port()),
            }),
            Some(AddressFamily::Inet6) => Ok(Self::TcpListener {
                is_v6: true,
                port: address
                    .as_sockaddr_in6()
                    .map_or(0, |address| address.port()),
            }),
            _ => Err("a listening socket that is neither of Unix nor of TCP"),
        })
    }

    /// As the agent is asked for it.
    pub(crate) fn to_agent(self) -> agent::InheritedFile {
        let mut file = agent::InheritedFile::new();
        file.kind = match self {
            Self::Input => Kind::INPUT,
            Self::Output => Kind::OUTPUT,
            Self::Socket => Kind::SOCKET,
            Self::UnixListener => Kind::UNIX_LISTENER,
            Self::TcpListener { is_v6, port } => {
                file.port = port.into();
                if is_v6 {
                    Kind::TCP6_LISTENER
                } else {
                    Kind::TCP4_LISTENER
                }
            }
            Self::Null => Kind::NULL,
        }
        .into();
        file
    }
}

/// Opens the stream of a descriptor in the guest.
pub(super) type OpenStream = dyn Fn(u32) -> Result<UnixStream, VsockError> + Send + Sync;

/// What is carried to the host, by the threads that carry it.
#[derive(Clone, Default)]
pub(super) struct Outputs(Arc<Mutex<Vec<Output>>>);

impl Outputs {
    fn all(&self) -> MutexGuard<'_, Vec<Output>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, output: Output) {
        self.all().push(output);
    }

    /// How many there are that have not ended.
    fn count(&self) -> usize {
        let mut all = self.all();
        all.retain(|output| !output.has_ended());
        all.len()
    }

    /// Those that there are now.
    pub(super) fn take(&self) -> Vec<Output> {
        std::mem::take(&mut self.all())
    }
}

/// A process's open files on the host, connected to those in the guest.
pub(super) struct Inherited {
    /// In the order of their numbers; a stream for all but those that listen and those that there is nothing to carry of.
    files: Vec<(FileKind, OwnedFd, Option<UnixStream>)>,
    open: Arc<OpenStream>,
}

impl Inherited {
    pub(super) fn connect(
        files: Vec<(FileKind, OwnedFd)>,
        open: Arc<OpenStream>,
    ) -> Result<Self, ProxyError> {
        let connected = (FIRST_FILE..).zip(files).map(|(number, (kind, file))| {
            let stream = match kind {
                FileKind::Input | FileKind::Output | FileKind::Socket => Some(open(number)?),
                FileKind::UnixListener | FileKind::TcpListener { .. } | FileKind::Null => None,
            };
            Ok::<_, ProxyError>((kind, file, stream))
        });
        let files = connected.collect::<Result<_, _>>()?;
        Ok(Self { files, open })
    }

    /// Starts the threads that carry bytes, and gives where they leave what is carried to the host.
    pub(super) fn carry(self) -> io::Result<Outputs> {
        let outputs = Outputs::default();
        for (number, (kind, file, stream)) in (FIRST_FILE..).zip(self.files) {
            match (kind, stream) {
                (FileKind::Input, Some(stream)) => carry_input(file, stream)?,
                (FileKind::Output, Some(stream)) => {
                    outputs.add(Output::carry("file", stream, file, || {})?);
                }
                (FileKind::Socket, Some(stream)) => {
                    outputs.add(Output::carry_socket(file, stream)?);
                }
                (FileKind::UnixListener | FileKind::TcpListener { .. }, _) => {
                    let (open, outputs) = (Arc::clone(&self.open), outputs.clone());
                    let accept = move || accept_all(&file, &outputs, || open(number));
                    thread::Builder::new().name("accept".into()).spawn(accept)?;
                }
                _ => {}
            }
        }
        Ok(outputs)
    }
}

/// Hands connections on for as long as the process lives.
fn accept_all(
    listener: &OwnedFd,
    outputs: &Outputs,
    open: impl Fn() -> Result<UnixStream, VsockError>,
) {
    loop {
        if outputs.count() >= MAX_CONNECTIONS {
            thread::sleep(LOOK);
            continue;
        }
        let connection = match accept(listener) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "process proxy: accept a connection");
                thread::sleep(PAUSE);
                continue;
            }
        };
        let carried = open()
            .map_err(ProxyError::from)
            .and_then(|stream| {
                Output::carry_socket(connection, stream)
                    .map_err(ProxyError::host("carry a connection"))
            })
            .map(|output| outputs.add(output));
        if let Err(error) = carried {
            let error = crate::error::chain(&error);
            tracing::warn!(error, "process proxy: a connection");
        }
    }
}

/// Waits for a connection. The socket may be non-blocking, and others may accept from it.
fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    loop {
        let raw = std::os::fd::AsRawFd::as_raw_fd(listener);
        match accept4(raw, SockFlag::SOCK_CLOEXEC) {
            Ok(connection) => return take_inherited_fd(connection),
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn kind(file: impl Into<OwnedFd>) -> Result<FileKind, &'static str> {
        FileKind::of(&File::from(file.into())).unwrap()
    }

    #[test]
    fn what_bytes_stand_for_is_told_from_what_they_do_not() {
        let (read, write) = io::pipe().unwrap();
        assert_eq!(kind(read), Ok(FileKind::Input));
        assert_eq!(kind(write), Ok(FileKind::Output));
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        assert_eq!(kind(open()), Ok(FileKind::Input));
        assert_eq!(
            kind(File::create(file.path()).unwrap()),
            Ok(FileKind::Output)
        );
        assert_eq!(kind(UnixStream::pair().unwrap().0), Ok(FileKind::Socket));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(
            kind(UnixListener::bind(path).unwrap()),
            Ok(FileKind::UnixListener)
        );
        for (address, is_v6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(kind(listener), Ok(FileKind::TcpListener { is_v6, port }));
        }
        assert_eq!(kind(File::open("/dev/null").unwrap()), Ok(FileKind::Null));
        for other in [
            OwnedFd::from(file.reopen().unwrap()),
            File::open("/").unwrap().into(),
            File::open("/dev/zero").unwrap().into(),
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        ] {
            assert!(kind(other).is_err());
        }
    }
}
