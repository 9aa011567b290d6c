//! Whom a query is asked of, and whose answer counts.
//!
//! What the embedded server knows by itself it says at once. What it does not know it asks its upstream servers for, and
//! is silent until it gives up after seconds, or says that it has failed. So those are asked too when it does not say
//! anything at once, and what they know counts; but that they do not know a name only counts if the embedded server
//! has nothing better to say, for it may just have been slow.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use hull_agent_protocol::dns::{MAX_MESSAGE, Transport};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{read_message, write_message};

/// How long the embedded server is asked alone.
const HEAD_START: Duration = Duration::from_millis(50);
/// How long an answer that there is no such name waits for the embedded server's.
const SECOND_THOUGHTS: Duration = Duration::from_secs(1);
/// How long an upstream server may take before the next is asked.
const UPSTREAM_LIMIT: Duration = Duration::from_secs(3);

/// The length of a message's header (RFC 1035 §4.1.1).
const HEADER: usize = 12;

/// Asks the embedded server by connections to the host that `connect` makes, and its upstream servers.
#[derive(Clone)]
pub(super) struct Resolver<C> {
    pub connect: C,
    pub upstream: watch::Receiver<Vec<SocketAddr>>,
}

/// What an answer comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// There is such a name, whether or not it has what was asked for.
    Known,
    /// There is none.
    Unknown,
    /// The server could not find out, or would not.
    Failed,
}

impl<C, F, S> Resolver<C>
where
    C: Fn() -> F,
    F: Future<Output = io::Result<S>>,
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// The answer to a query.
    pub(super) async fn resolve(&self, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let servers = self.upstream.borrow().clone();
        let mut embedded = pin!(self.ask_embedded(query, transport));
        if servers.is_empty() {
            return embedded.await;
        }
        let mut upstream = pin!(async {
            sleep(HEAD_START).await;
            ask_each(query, transport, &servers).await
        });
        tokio::select! {
            answer = &mut embedded => match answer {
                Ok(answer) if verdict(&answer) != Verdict::Failed => Ok(answer),
                failed => upstream.await.or(failed),
            },
            answer = &mut upstream => match answer {
                Ok(answer) if verdict(&answer) == Verdict::Unknown => {
                    match timeout(SECOND_THOUGHTS, embedded).await {
                        Ok(Ok(better)) if verdict(&better) == Verdict::Known => Ok(better),
                        _ => Ok(answer),
                    }
                }
                Ok(answer) => Ok(answer),
                Err(_) => embedded.await,
            },
        }
    }

    async fn ask_embedded(&self, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let mut host = (self.connect)().await?;
        host.write_all(&[transport.byte()]).await?;
        write_message(&mut host, query).await?;
        read_message(&mut host).await
    }
}

/// Asks servers one after another until one has found out.
async fn ask_each(
    query: &[u8],
    transport: Transport,
    servers: &[SocketAddr],
) -> io::Result<Vec<u8>> {
    for server in servers {
        let asked = match transport {
            Transport::Datagram => timeout(UPSTREAM_LIMIT, ask_by_datagram(query, *server)).await,
            Transport::Stream => timeout(UPSTREAM_LIMIT, ask_by_stream(query, *server)).await,
        };
        match asked {
            Ok(Ok(answer)) if verdict(&answer) != Verdict::Failed => return Ok(answer),
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => tracing::debug!(%server, %error, "DNS"),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

async fn ask_by_datagram(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let own: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // A port of the kernel's choice, which is random, and answers of that server only.
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut answer).await?;
        if is_answer(query, &answer[..length]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_by_stream(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    let answer = read_message(&mut stream).await?;
    is_answer(query, &answer)
        .then_some(answer)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether the ids are the same.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    answer.len() >= HEADER && query.get(..2) == answer.get(..2)
}

fn verdict(answer: &[u8]) -> Verdict {
    const NO_ERROR: u8 = 0;
    const NAME_ERROR: u8 = 3;
    match answer.get(..HEADER).map(|header| header[3] & 0xf) {
        Some(NO_ERROR) => Verdict::Known,
        Some(NAME_ERROR) => Verdict::Unknown,
        Some(_) | None => Verdict::Failed,
    }
}
