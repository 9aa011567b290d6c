//! A container's notification socket: where its programs say how they are (sd_notify(3)), and what carries that to the
//! host ([`hull_agent_protocol::notify`]). Whatever they say, they wait for nobody: without a host that listens it is
//! read and dropped.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use hull_agent_protocol::notify::MAX_MESSAGE;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixDatagram;

use super::Error;
use crate::process::Process;

/// The socket, bound.
pub(crate) struct NotifySocket {
    socket: UnixDatagram,
    /// Somebody reads it.
    taken: AtomicBool,
}

impl NotifySocket {
    /// Binds `name` in `directory`, which is made. Every user of the container may write to it.
    pub(super) fn bind(directory: &Path, name: &str) -> Result<Self, Error> {
        let fail = |action| {
            move |source| Error::File {
                action,
                path: directory.join(name),
                source,
            }
        };
        if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(fail("bind")(io::ErrorKind::InvalidInput.into()));
        }
        fs::create_dir_all(directory).map_err(fail("make the directory of"))?;
        let opened = fs::File::open(directory).map_err(fail("open the directory of"))?;
        // A socket's address is short, and ids may be long.
        let address = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
        let socket = UnixDatagram::bind(address).map_err(fail("bind"))?;
        fs::set_permissions(directory.join(name), Permissions::from_mode(0o777))
            .map_err(fail("set the mode of"))?;
        Ok(Self {
            socket,
            taken: AtomicBool::new(false),
        })
    }

    /// Takes its messages: the first caller may.
    pub(crate) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::Relaxed)
    }

    /// Carries messages to the host until the process has ended, and drops them once the host has gone.
    pub(crate) async fn carry(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        process: &Process,
    ) {
        let mut buffer = [0; MAX_MESSAGE + 1];
        loop {
            let received = tokio::select! {
                // What was said before the end goes before the end.
                biased;
                received = self.socket.recv(&mut buffer) => received,
                // The host says nothing: this is its end.
                _ = from.read_u8() => break,
                _ = process.wait() => {
                    // The connection may be gone as well.
                    let _ = to.shutdown().await;
                    return;
                }
            };
            match received {
                Ok(length) => {
                    if write_message(&mut to, &buffer[..length]).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a notification socket");
                    return;
                }
            }
        }
        self.discard(process).await;
    }

    /// Reads messages for nobody, until the process has ended.
    pub(super) async fn discard(&self, process: &Process) {
        let mut buffer = [0; 1];
        loop {
            let received = tokio::select! {
                received = self.socket.recv(&mut buffer) => received,
                _ = process.wait() => return,
            };
            if let Err(error) = received {
                tracing::warn!(%error, "a notification socket");
                return;
            }
        }
    }
}

async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    if message.len() > MAX_MESSAGE {
        tracing::info!("a notification is too long");
        return Ok(());
    }
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes()[..], message].concat())
        .await
}
