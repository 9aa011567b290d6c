//! Docker's embedded DNS server, as the guest has it at 127.0.0.11:53: the agent listens on another port of that address,
//! to which the kernel leads those who ask (redirect.rs), and carries what containers ask to the host
//! ([`hull_agent_protocol::dns`]), where the server is. The guest's programs are not trusted by the host, and need no
//! trust here: what they may use up is bounded, and nobody else waits for it.
//!
//! It listens only while the host says that there is such a server.
//!
//! The embedded server knows the names of Docker's networks, and asks other servers for the rest from inside the network
//! namespace. There no answer reaches it, for what arrives is the guest's. So the agent asks those servers as well
//! (resolve.rs), from where their answers do arrive.

mod redirect;
mod resolve;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hull_agent_protocol::dns::{ADDRESS, MAX_MESSAGE, Transport, length_prefix};
use hull_agent_protocol::ports;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::vsock;
use redirect::Redirect;
use resolve::Resolver;

/// Queries by UDP that wait for their answers. Further ones wait in the socket's buffer, and may be lost there.
const MAX_QUERIES: usize = 192;
/// Connections by TCP. Further ones wait to be accepted.
const MAX_STREAMS: usize = 64;
/// How long a query may take: longer than any client waits.
const QUERY_LIMIT: Duration = Duration::from_secs(20);
/// How long a TCP connection may last.
const STREAM_LIMIT: Duration = Duration::from_secs(120);
/// The cgroup that all processes of the guest are in.
const ROOT_CGROUP: &str = "/sys/fs/cgroup";
/// How often a port is looked for that UDP and TCP have both.
const PORTS: usize = 16;
/// How long to wait when the kernel is short of something.
const PAUSE: Duration = Duration::from_millis(100);

/// The listening sockets, while there are any.
#[derive(Debug, Default)]
pub(super) struct EmbeddedDns {
    server: Mutex<Option<Server>>,
}

#[derive(Debug)]
struct Server {
    task: JoinHandle<()>,
    upstream: watch::Sender<Vec<SocketAddr>>,
    _redirect: Redirect,
}

impl EmbeddedDns {
    /// Listens from now on, with these `upstream` servers of the embedded one; or no longer, if there is none.
    ///
    /// # Errors
    /// There is no port for it, or the kernel cannot lead there.
    pub(super) async fn set(&self, upstream: Option<Vec<IpAddr>>) -> io::Result<()> {
        let Some(upstream) = upstream else {
            let server = self.lock().take();
            if let Some(server) = server {
                server.task.abort();
                // It gives the port back as it ends.
                let _ = server.task.await;
            }
            return Ok(());
        };
        let upstream = upstream
            .into_iter()
            .map(|address| SocketAddr::new(address, ADDRESS.port()))
            .collect();
        if let Some(server) = &*self.lock() {
            server.upstream.send_replace(upstream);
            return Ok(());
        }
        let listening = Listening::bind((*ADDRESS.ip()).into()).await?;
        let redirect = Redirect::attach(Path::new(ROOT_CGROUP), listening.port()?)?;
        let (sender, upstream) = watch::channel(upstream);
        let resolver = Resolver {
            connect: || vsock::connect_to_host(ports::DNS),
            upstream,
        };
        *self.lock() = Some(Server {
            task: tokio::spawn(listening.serve(resolver)),
            upstream: sender,
            _redirect: redirect,
        });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both sockets of the server, which have the same port.
struct Listening {
    datagrams: Arc<UdpSocket>,
    streams: TcpListener,
}

impl Listening {
    /// Listens on a port of the kernel's choice.
    async fn bind(address: IpAddr) -> io::Result<Self> {
        let mut tries = 1..=PORTS;
        loop {
            let datagrams = UdpSocket::bind((address, 0)).await?;
            match TcpListener::bind(datagrams.local_addr()?).await {
                Ok(streams) => {
                    return Ok(Self {
                        datagrams: Arc::new(datagrams),
                        streams,
                    });
                }
                // A container has it for TCP.
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && tries.next().is_some() => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn port(&self) -> io::Result<u16> {
        Ok(self.datagrams.local_addr()?.port())
    }

    /// Serves for ever. Whoever drops this ends all that it does.
    async fn serve<C, F, S>(self, resolver: Resolver<C>)
    where
        C: Fn() -> F + Clone + Send + Sync + 'static,
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
                        queries.spawn(answer(query, client, socket, resolver.clone()));
                    })
                }
                accepted = self.streams.accept(), if streams.len() < MAX_STREAMS => {
                    accepted.map(|(client, _)| {
                        streams.spawn(timeout(STREAM_LIMIT, converse(client, resolver.clone())));
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
async fn answer<C, F, S>(
    query: Vec<u8>,
    client: SocketAddr,
    socket: Arc<UdpSocket>,
    resolver: Resolver<C>,
) where
    C: Fn() -> F,
    F: Future<Output = io::Result<S>>,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let resolved = timeout(QUERY_LIMIT, resolver.resolve(&query, Transport::Datagram)).await;
    let answered = match resolved.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
        Ok(answer) => socket.send_to(&answer, client).await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "a query got no answer");
    }
}

/// Answers the queries of one TCP connection, one after another. One that gets no answer ends the connection.
async fn converse<C, F, S>(mut client: TcpStream, resolver: Resolver<C>) -> io::Result<()>
where
    C: Fn() -> F,
    F: Future<Output = io::Result<S>>,
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let query = read_message(&mut client).await?;
        let answer = resolver.resolve(&query, Transport::Stream).await?;
        write_message(&mut client, &answer).await?;
    }
}

/// Reads a message with its length before it (RFC 1035 §4.2.2).
async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u16().await?;
    let mut message = vec![0; length.into()];
    from.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let prefix = length_prefix(message.len()).ok_or(io::ErrorKind::InvalidInput)?;
    to.write_all(&[&prefix[..], message].concat()).await
}
