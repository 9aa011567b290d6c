//! The connections, one by one.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hull_agent_protocol::localhost::OPEN;
use hull_agent_protocol::ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::agent_client::vsock;

/// Connections at a time; further ones wait.
const MAX_CONNECTIONS: usize = 128;
/// How long the guest may take to connect.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait when the host is short of something.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever.
///
/// # Errors
/// The event loop does not take the listener.
pub(super) async fn serve(listener: TcpListener, vsock: PathBuf) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let turns = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let turn = turns.clone().acquire_owned().await;
        let (client, vsock) = match listener.accept().await {
            Ok((client, _)) => (client, vsock.clone()),
            Err(error) => {
                tracing::warn!(%error, "localhost of the namespace");
                sleep(PAUSE).await;
                continue;
            }
        };
        tokio::spawn(async move {
            let _turn = turn;
            if let Err(error) = forward(client, vsock).await {
                tracing::debug!(%error, "a connection to localhost");
            }
        });
    }
}

async fn forward(mut client: TcpStream, vsock: PathBuf) -> io::Result<()> {
    // The one that was dialled.
    let port = client.local_addr()?.port();
    match open(port, vsock).await {
        Ok(mut guest) => copy_bidirectional(&mut client, &mut guest).await.map(drop),
        Err(error) => {
            // Who dialled is to hear that it failed, and not that nothing was said.
            client.set_zero_linger()?;
            Err(error)
        }
    }
}

/// Connects to a port of the guest's localhost.
async fn open(port: u16, vsock: PathBuf) -> io::Result<UnixStream> {
    let connect = move || vsock::connect(&vsock, ports::LOCALHOST, OPEN_LIMIT);
    let guest = tokio::task::spawn_blocking(connect)
        .await?
        .map_err(io::Error::other)?;
    guest.set_nonblocking(true)?;
    let mut guest = UnixStream::from_std(guest)?;
    guest.write_u16(port).await?;
    if timeout(OPEN_LIMIT, guest.read_u8()).await?? != OPEN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(guest)
}
