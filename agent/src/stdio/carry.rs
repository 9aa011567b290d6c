//! Moves a stream's bytes between a process and its connection, and ends both sides as the protocol says.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::process::Process;

/// What is moved at once, and the most that waits in a pipe or a terminal: a pipe's capacity.
const CHUNK: usize = 64 * 1024;

/// Host to guest: until the host ends the stream, `closed` is set, or the process ends or closes its stdin.
pub(super) async fn input(
    mut from: impl AsyncRead + Unpin,
    mut to: pipe::Sender,
    mut closed: watch::Receiver<bool>,
    process: &Process,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            // Bytes that have come go before a request to close.
            biased;
            read = from.read(&mut buffer) => read,
            () = is_set(&mut closed) => return,
            _ = process.wait() => return,
        };
        let length = match read {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) => {
                tracing::debug!(%error, "stdin's connection broke");
                return;
            }
        };
        tokio::select! {
            written = to.write_all(&buffer[..length]) => if written.is_err() {
                return;
            },
            _ = process.wait() => return,
        }
    }
}

async fn is_set(flag: &mut watch::Receiver<bool>) {
    // An error means that the flag's owner is gone, which ends the stream as well.
    let _ = flag.wait_for(|set| *set).await;
}

/// Guest to host, from a pipe or a terminal's master: until all writers have closed it, or the process has ended and
/// what it left is carried. A process's children may keep its output open after it; what they write later is not
/// waited for.
pub(super) async fn output(
    from: &AsyncFd<OwnedFd>,
    mut to: impl AsyncWrite + Unpin,
    process: &Process,
) {
    copy_output(from, &mut to, process).await;
    // Half-close: the end of the stream.
    if let Err(error) = to.shutdown().await {
        tracing::debug!(%error, "a stream's connection was gone before its end");
    }
}

async fn copy_output(
    from: &AsyncFd<OwnedFd>,
    to: &mut (impl AsyncWrite + Unpin),
    process: &Process,
) {
    let mut buffer = vec![0; CHUNK];
    let mut ended = process.exit().is_some();
    let mut left = CHUNK;
    loop {
        // Read first and ask for readiness then: an end of the process may be known before the event for its last bytes.
        match read(from, &mut buffer) {
            // EIO: the last process has left the terminal.
            Ok(0) | Err(Errno::EIO) => return,
            Ok(length) => {
                if to.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
                if ended {
                    left = left.saturating_sub(length);
                    if left == 0 {
                        return;
                    }
                }
            }
            Err(Errno::EAGAIN) if ended => return,
            Err(Errno::EAGAIN) => tokio::select! {
                ready = from.readable() => match ready {
                    Ok(mut ready) => if nothing_to_read(from) {
                        ready.clear_ready();
                    },
                    Err(error) => {
                        tracing::warn!(%error, "waiting for a process's output failed");
                        return;
                    }
                },
                _ = process.wait() => ended = true,
            },
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "reading a process's output failed");
                return;
            }
        }
    }
}

fn nothing_to_read(from: &AsyncFd<OwnedFd>) -> bool {
    let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

/// Both ways between a socket of the process and the host: the end of either direction is carried, and both must end.
pub(super) async fn both(
    socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
) {
    let mut connection = tokio::io::join(from, to);
    if let Err(error) = tokio::io::copy_bidirectional(socket, &mut connection).await {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Both ways, as [`output`] and until its end. The host's end of input ends nothing: a terminal's input has no end.
pub(super) async fn terminal(
    from: &mut (impl AsyncRead + Unpin),
    to: impl AsyncWrite + Unpin,
    master: &AsyncFd<OwnedFd>,
    process: &Process,
) {
    let input = async {
        terminal_input(from, master).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = output(master, to, process) => {}
        () = input => {}
    }
}

async fn terminal_input(from: &mut (impl AsyncRead + Unpin), master: &AsyncFd<OwnedFd>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let Ok(mut ready) = master.writable().await else {
                return;
            };
            match ready.try_io(|master| Ok(write(master, rest)?)) {
                Ok(Ok(written)) => rest = &rest[written..],
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }
}
