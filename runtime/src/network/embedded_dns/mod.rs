//! Carries the guest's queries to Docker's embedded DNS server, which listens on 127.0.0.11 of the sandbox's network
//! namespace, and which the guest cannot reach through its NICs ([`hull_agent_protocol::dns`] has the other side).
//!
//! Runs in a thread of the sandbox's monitor, which is in that namespace: one event loop, with a task for each
//! connection. The connections are the guest's, which is hostile: they are bounded in number and in time, and what is
//! kept of each in memory by the length of one message. They lead to the server's address and nowhere else.

mod forward;
#[cfg(test)]
mod tests;
mod upstream;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;

use hull_agent_protocol::dns::ADDRESS;
use hull_agent_protocol::ports;
use hull_vmm_protocol::socket::with_short_path;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, bind, listen, socket};

use super::Netns;
pub use upstream::{name_servers, requested_servers, upstream_servers};

/// Connections that wait to be accepted. The VMM does not wait for room.
const BACKLOG: i32 = 128;

/// How the forwarder cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedDnsError {
    /// The socket for the guest's connections.
    #[error("listen on {}", socket.display())]
    Listen {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The thread, or its event loop.
    #[error("start the DNS forwarder")]
    Start(#[source] io::Error),
}

/// Whether something listens on the server's IP address in the network namespace `netns`: Docker's server has ports of
/// its choice there, to which rules of the namespace lead what is sent to port 53.
///
/// # Errors
/// The kernel's table of sockets cannot be read.
pub fn is_served(netns: &Netns) -> Result<bool, super::Error> {
    netns
        .run(|| fs::read_to_string("/proc/thread-self/net/udp"))?
        .map(|table| has_server(&table))
        .map_err(super::Error::Sockets)
}

/// Looks for the server in a table of sockets, as proc_net_udp(5) describes it: the second column is the local address,
/// in the machine's byte order.
fn has_server(table: &str) -> bool {
    let address = u32::from_ne_bytes(ADDRESS.ip().octets());
    let prefix = format!("{address:08X}:");
    table
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(1))
        .any(|local| local.starts_with(&prefix))
}

/// Starts the thread, in the network namespace of the calling one. It ends with the process. `vsock` is the Unix socket of
/// the VMM's socket device.
///
/// # Errors
/// The guest's connections cannot be listened for.
pub fn start(vsock: &Path) -> Result<(), EmbeddedDnsError> {
    let path = guest_socket(vsock);
    let listener = listen_on(&path).map_err(|source| EmbeddedDnsError::Listen {
        socket: path,
        source,
    })?;
    start_on(listener, ADDRESS.into())
        .map(drop)
        .map_err(EmbeddedDnsError::Start)
}

/// Where the VMM connects to for the guest.
fn guest_socket(vsock: &Path) -> PathBuf {
    let mut path = vsock.as_os_str().to_owned();
    path.push(format!("_{}", ports::DNS));
    path.into()
}

fn listen_on(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        // Of a monitor that was killed.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    with_short_path(path, |address| Ok(bind(socket.as_raw_fd(), address)?))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

fn start_on(listener: UnixListener, server: SocketAddr) -> io::Result<thread::JoinHandle<()>> {
    let event_loop = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = {
        let _context = event_loop.enter();
        tokio::net::UnixListener::from_std(listener)?
    };
    thread::Builder::new()
        .name("embedded-dns".into())
        .spawn(move || event_loop.block_on(forward::serve(listener, server)))
}
