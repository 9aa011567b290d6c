//! The guest's connections, one by one.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hull_agent_protocol::dns::{MAX_MESSAGE, Transport, length_prefix};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at a time: more than the agent makes. Further ones wait to be accepted, and are refused by the VMM when
/// too many do.
pub(super) const MAX_CONNECTIONS: usize = 320;
/// How long the guest may take to say what it wants, and a query by UDP to be answered.
const QUERY_LIMIT: Duration = Duration::from_secs(20);
/// How long a TCP connection may last.
const STREAM_LIMIT: Duration = Duration::from_secs(120);
/// How long to wait when the host is short of something.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever.
pub(super) async fn serve(listener: UnixListener, server: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((guest, _)) => {
                    connections.spawn(forward(guest, server));
                }
                Err(error) => {
                    tracing::warn!(%error, "DNS forwarder");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection of the guest's. However it fails, it is closed, and the guest's client asks again.
async fn forward(mut guest: UnixStream, server: SocketAddr) {
    let first = timeout(QUERY_LIMIT, guest.read_u8()).await;
    let transport = match first {
        Ok(Ok(byte)) => Transport::of(byte),
        Ok(Err(_)) | Err(_) => return,
    };
    let forwarded = match transport {
        Some(Transport::Datagram) => timeout(QUERY_LIMIT, ask(&mut guest, server)).await,
        Some(Transport::Stream) => timeout(STREAM_LIMIT, carry(&mut guest, server)).await,
        None => Ok(Err(io::ErrorKind::InvalidData.into())),
    };
    if let Ok(Err(error)) = forwarded {
        tracing::debug!(%error, "a connection to the DNS server");
    }
}

async fn ask(guest: &mut UnixStream, server: SocketAddr) -> io::Result<()> {
    let length = guest.read_u16().await?;
    let mut query = vec![0; length.into()];
    guest.read_exact(&mut query).await?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    // Answers of others are not taken.
    socket.connect(server).await?;
    socket.send(&query).await?;
    drop(query);
    let mut answer = vec![0; MAX_MESSAGE];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    let prefix = length_prefix(length).ok_or(io::ErrorKind::InvalidData)?;
    guest.write_all(&prefix).await?;
    guest.write_all(&answer).await
}

async fn carry(guest: &mut UnixStream, server: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    copy_bidirectional(guest, &mut server).await.map(drop)
}
