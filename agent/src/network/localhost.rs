//! Carries connections of the host to servers that listen on the guest's localhost ([`hull_agent_protocol::localhost`]).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use hull_agent_protocol::localhost::OPEN;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

/// How long the host may take to say the port.
const OPENING: Duration = Duration::from_secs(10);

/// Serves connections as they come, for ever.
///
/// # Errors
/// When accepting fails.
pub async fn serve_all<C>(connections: impl Stream<Item = io::Result<C>>) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connections = pin!(connections);
    while let Some(connection) = connections.next().await {
        let mut connection = connection?;
        tokio::spawn(async move {
            if let Err(error) = carry(&mut connection).await {
                tracing::debug!(%error, "a connection to the guest's localhost");
            }
        });
    }
    Ok(())
}

async fn carry(host: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let port = tokio::time::timeout(OPENING, host.read_u16()).await??;
    let addresses = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    let mut server = TcpStream::connect(&addresses[..]).await?;
    host.write_u8(OPEN).await?;
    copy_bidirectional(host, &mut server).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn bytes_and_half_closes_pass_both_ways_and_a_port_that_nobody_serves_is_closed() {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mut host, guest) = duplex(64);
        tokio::spawn(serve_all(futures::stream::iter([Ok(guest)])));
        host.write_u16(port).await.unwrap();
        assert_eq!(host.read_u8().await.unwrap(), OPEN);
        let (mut server, _) = listener.accept().await.unwrap();
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        text.clear();
        host.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");

        drop(listener);
        let (mut host, guest) = duplex(64);
        tokio::spawn(serve_all(futures::stream::iter([Ok(guest)])));
        host.write_u16(port).await.unwrap();
        host.read_u8().await.unwrap_err();
    }
}
