//! Docker's embedded DNS server, as the guest has it: the agent listens on 127.0.0.11:53, and carries what containers ask
//! there to the host ([`hull_agent_protocol::dns`]), where the server is. The guest's programs are not trusted by the
//! host, and need no trust here: what they may use up is bounded, and nobody else waits for it.
//!
//! It listens only while the host says that there is such a server: a container that is a DNS server itself wants port
//! 53 of all addresses, and on most networks can have it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hull_agent_protocol::dns::{ADDRESS, MAX_MESSAGE, Transport, length_prefix};
use hull_agent_protocol::ports;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::vsock;

/// Queries by UDP that wait for their answers. Further ones wait in the socket's buffer, and may be lost there.
const MAX_QUERIES: usize = 192;
/// Connections by TCP. Further ones wait to be accepted.
const MAX_STREAMS: usize = 64;
/// How long a query may take: longer than any client waits.
const QUERY_LIMIT: Duration = Duration::from_secs(20);
/// How long a TCP connection may last.
const STREAM_LIMIT: Duration = Duration::from_secs(120);
/// How long to wait when the kernel is short of something.
const PAUSE: Duration = Duration::from_millis(100);

/// The listening sockets, while there are any.
#[derive(Debug, Default)]
pub(super) struct EmbeddedDns {
    server: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedDns {
    /// Listens from now on, or no longer.
    ///
    /// # Errors
    /// When a container has port 53 already.
    pub(super) async fn set(&self, wanted: bool) -> io::Result<()> {
        let serves = self.lock().is_some();
        match (wanted, serves) {
            (true, false) => {
                let listening = Listening::bind(ADDRESS.into()).await?;
                let server = listening.serve(|| vsock::connect_to_host(ports::DNS));
                *self.lock() = Some(tokio::spawn(server));
            }
            (false, true) => {
                let server = self.lock().take();
                if let Some(server) = server {
                    server.abort();
                    // It gives the port back as it ends.
                    let _ = server.await;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both sockets of the server's address.
struct Listening {
    datagrams: Arc<UdpSocket>,
    streams: TcpListener,
}

impl Listening {
    async fn bind(address: SocketAddr) -> io::Result<Self> {
        let datagrams = UdpSocket::bind(address).await?;
        // The same port, also where the kernel has chosen it.
        let streams = TcpListener::bind(datagrams.local_addr()?).await?;
        Ok(Self {
            datagrams: Arc::new(datagrams),
            streams,
        })
    }

    /// Serves for ever. `connect` makes a connection to the host; whoever drops this ends all that it carries.
    async fn serve<C, F, S>(self, connect: C)
    where
        C: Fn() -> F,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut queries = JoinSet::new();
        let mut streams = JoinSet::new();
        let mut message = vec![0; MAX_MESSAGE];
        loop {
            let failed = tokio::select! {
                received = self.datagrams.recv_from(&mut message), if queries.len() < MAX_QUERIES => {
                    received.map(|(length, client)| {
                        let query = message[..length].to_vec();
                        let socket = Arc::clone(&self.datagrams);
                        queries.spawn(answer(query, client, socket, connect()));
                    })
                }
                accepted = self.streams.accept(), if streams.len() < MAX_STREAMS => {
                    accepted.map(|(client, _)| {
                        streams.spawn(carry(client, connect()));
                    })
                }
                Some(_) = queries.join_next() => Ok(()),
                Some(_) = streams.join_next() => Ok(()),
            };
            if let Err(error) = failed {
                tracing::warn!(%error, "embedded DNS");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers one query by UDP. One that gets no answer is asked again by its client.
async fn answer<S>(
    query: Vec<u8>,
    client: SocketAddr,
    socket: Arc<UdpSocket>,
    host: impl Future<Output = io::Result<S>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asked = timeout(QUERY_LIMIT, ask(&query, host)).await;
    let answered = match asked.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
        Ok(answer) => socket.send_to(&answer, client).await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "a query got no answer");
    }
}

async fn ask<S>(query: &[u8], host: impl Future<Output = io::Result<S>>) -> io::Result<Vec<u8>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let prefix = length_prefix(query.len()).ok_or(io::ErrorKind::InvalidInput)?;
    let mut host = host.await?;
    let request = [&[Transport::Datagram.byte()], &prefix[..], query].concat();
    host.write_all(&request).await?;
    let length = host.read_u16().await?;
    let mut answer = vec![0; length.into()];
    host.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Carries one TCP connection.
async fn carry<S>(mut client: TcpStream, host: impl Future<Output = io::Result<S>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let carried = async {
        let mut host = host.await?;
        host.write_all(&[Transport::Stream.byte()]).await?;
        copy_bidirectional(&mut client, &mut host).await
    };
    match timeout(STREAM_LIMIT, carried).await {
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the DNS server broke"),
    }
}

#[cfg(test)]
mod tests;
