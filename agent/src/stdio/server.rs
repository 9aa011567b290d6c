//! The listening side of the stdio streams.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use hull_agent_protocol::stdio::{BadStreamRequest, MAX_LINE, StreamKind, StreamRequest};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, split,
};

use super::{Endpoint, StreamError, carry};
use crate::container::{Containers, Error as ContainerError};
use crate::process::Process;

/// How long a connection may take to say what it is for.
const OPENING: Duration = Duration::from_secs(10);

/// Why a connection gets no stream.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Request(#[from] BadStreamRequest),
    #[error(transparent)]
    Process(#[from] ContainerError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Serves connections as they come, for ever.
///
/// # Errors
/// When accepting fails.
pub async fn serve_all<C>(
    connections: impl Stream<Item = io::Result<C>>,
    containers: Arc<Containers>,
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut connections = pin!(connections);
    while let Some(connection) = connections.next().await {
        tokio::spawn(serve(connection?, Arc::clone(&containers)));
    }
    Ok(())
}

/// Serves one connection to its end.
pub async fn serve<C>(connection: C, containers: Arc<Containers>)
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (from, mut to) = split(connection);
    let mut from = BufReader::new(from);
    let line = match tokio::time::timeout(OPENING, opening_line(&mut from)).await {
        Ok(Ok(line)) => line,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a stream's connection broke before its first line");
            return;
        }
        Err(_elapsed) => return,
    };
    let (process, endpoint) = match open(&line, &containers) {
        Ok(opened) => opened,
        Err(error) => {
            // The connection is closed whether or not the answer arrives.
            let _ = to.write_all(format!("error {error}\n").as_bytes()).await;
            return;
        }
    };
    if to.write_all(b"ok\n").await.is_err() {
        return;
    }
    match endpoint {
        Endpoint::Input(stdin, closed) => carry::input(from, stdin, closed, &process).await,
        Endpoint::Output(output) => {
            carry::output(&output, to, &process).await;
            linger(from).await;
        }
        Endpoint::Terminal(master) => {
            carry::terminal(&mut from, to, &master, &process).await;
            linger(from).await;
            // Without its master it would be hung up.
            process.wait().await;
        }
        Endpoint::Socket(mut socket) => carry::both(&mut socket, from, to).await,
        Endpoint::Listener(address) => match address.connect().await {
            Ok(mut connection) => carry::both(&mut connection, from, to).await,
            // The host's connection ends as well.
            Err(error) => tracing::debug!(%error, "connecting to a process that listens failed"),
        },
        Endpoint::Notify(socket) => socket.carry(from, to, &process).await,
        Endpoint::OutOfMemory(container) => {
            container.out_of_memory.carry(from, to, &process).await;
        }
        Endpoint::Lease => hold(from, &process).await,
    }
}

/// Kills the process if the host lets go of it while it runs.
async fn hold(mut from: impl AsyncRead + Unpin, process: &Process) {
    tokio::select! {
        _ = process.wait() => {}
        _ = from.read_u8() => {
            tracing::info!(pid = process.pid(), "the process that stands for this one has gone");
            if let Err(error) = process.signal(libc::SIGKILL) {
                tracing::warn!(pid = process.pid(), %error, "killing a process that nobody holds");
            }
        }
    }
}

/// Waits for the host to close too, so that closing cannot overtake bytes that are still on their way to it.
async fn linger(mut from: impl AsyncRead + Unpin) {
    let mut ignored = [0; 256];
    while matches!(from.read(&mut ignored).await, Ok(1..)) {}
}

async fn opening_line(from: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<String> {
    let mut line = String::new();
    let longest = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    from.take(longest).read_line(&mut line).await?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn open(line: &str, containers: &Containers) -> Result<(Arc<Process>, Endpoint), OpenError> {
    let request: StreamRequest = line.parse()?;
    let container = containers.get(&request.container_id)?;
    let process = container.process(&request.exec_id)?;
    let endpoint = match request.kind {
        StreamKind::Notify if request.exec_id.is_empty() => {
            let socket = container.take_notify_socket();
            Endpoint::Notify(socket.ok_or(StreamError::None(request.kind))?)
        }
        StreamKind::OutOfMemory if request.exec_id.is_empty() && container.out_of_memory.take() => {
            Endpoint::OutOfMemory(container)
        }
        kind => process.io.take(kind)?,
    };
    Ok((process, endpoint))
}
