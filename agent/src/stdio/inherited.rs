//! Open files that a process has beside its stdio: its end of each, and the agent's.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::{Slot, nonblocking};
use crate::sys;

/// An open file, as the host asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InheritedFile {
    /// A pipe that the process reads.
    Input,
    /// A pipe that it writes.
    Output,
    /// A connected socket.
    Socket,
    /// A Unix socket that listens.
    UnixListener,
    /// A TCP socket that listens at this loopback address; at another port if this one is taken.
    TcpListener(SocketAddr),
    /// `/dev/null`.
    Null,
}

/// The agent's end.
pub(super) enum FileEnd {
    Input(Slot<pipe::Sender>),
    Output(Slot<AsyncFd<OwnedFd>>),
    Socket(Slot<tokio::net::UnixStream>),
    /// Where to connect to it.
    Listener(ListenerAddress),
    /// There is none.
    Nothing,
}

/// Where a process listens.
#[derive(Clone, Debug)]
pub(crate) enum ListenerAddress {
    Unix(net::SocketAddr),
    Tcp(SocketAddr),
}

/// The agent's ends of a process's open files, from the descriptor 3 on.
#[derive(Default)]
pub struct FileEnds(pub(super) Vec<FileEnd>);

/// Makes open files: the agent's ends, and the process's.
///
/// # Errors
/// When one cannot be made.
pub fn make_all(files: &[InheritedFile]) -> io::Result<(FileEnds, Vec<OwnedFd>)> {
    let made: Vec<_> = files
        .iter()
        .map(|file| file.make())
        .collect::<io::Result<_>>()?;
    let (ours, theirs) = made.into_iter().unzip();
    Ok((FileEnds(ours), theirs))
}

impl InheritedFile {
    /// A TCP socket that listens at the loopback address.
    #[must_use]
    pub fn tcp_listener(is_v6: bool, port: u16) -> Self {
        Self::TcpListener(if is_v6 {
            (Ipv6Addr::LOCALHOST, port).into()
        } else {
            (Ipv4Addr::LOCALHOST, port).into()
        })
    }

    /// Makes it: the agent's end, and the process's.
    fn make(self) -> io::Result<(FileEnd, OwnedFd)> {
        Ok(match self {
            Self::Input => {
                let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
                let write = pipe::Sender::from_owned_fd(nonblocking(write)?)?;
                (FileEnd::Input(Slot::Waiting(write)), read)
            }
            Self::Output => {
                let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
                let read = sys::watched(nonblocking(read)?)?;
                (FileEnd::Output(Slot::Waiting(read)), write)
            }
            Self::Socket => {
                let (ours, theirs) = net::UnixStream::pair()?;
                ours.set_nonblocking(true)?;
                let ours = tokio::net::UnixStream::from_std(ours)?;
                (FileEnd::Socket(Slot::Waiting(ours)), theirs.into())
            }
            Self::UnixListener => {
                let listener = unix_listener()?;
                let address = ListenerAddress::Unix(listener.local_addr()?);
                (FileEnd::Listener(address), listener.into())
            }
            Self::TcpListener(address) => {
                let listener = match TcpListener::bind(address) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        TcpListener::bind((address.ip(), 0))?
                    }
                    listener => listener?,
                };
                let address = ListenerAddress::Tcp(listener.local_addr()?);
                (FileEnd::Listener(address), listener.into())
            }
            Self::Null => {
                let null = std::fs::File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/null")?;
                (FileEnd::Nothing, null.into())
            }
        })
    }
}

/// A socket of an abstract name that nothing else has: containers have no file of it.
fn unix_listener() -> io::Result<net::UnixListener> {
    let mut name = [0; 16];
    getrandom(&mut name)?;
    let name = name.map(|byte| format!("{byte:02x}")).concat();
    let address = net::SocketAddr::from_abstract_name(format!("hull-{name}"))?;
    net::UnixListener::bind_addr(&address)
}

fn getrandom(bytes: &mut [u8]) -> io::Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}

impl ListenerAddress {
    /// A new connection to it.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Unix(address) => {
                let address = address.clone();
                // A listener whose queue is full is waited for.
                let connected =
                    tokio::task::spawn_blocking(move || net::UnixStream::connect_addr(&address));
                let stream = connected.await.map_err(io::Error::other)??;
                stream.set_nonblocking(true)?;
                Box::new(tokio::net::UnixStream::from_std(stream)?)
            }
            Self::Tcp(address) => Box::new(tokio::net::TcpStream::connect(address).await?),
        })
    }
}

/// A connection of either kind.
pub(super) trait Connection:
    tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin
{
}

impl<C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Connection for C {}
