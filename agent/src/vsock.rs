//! The agent's vsock ports, and connections to the host's. Only the host may connect: vsock knows no namespaces, so a container's process could
//! try to, and would have the whole guest.

use std::io;

use futures::stream::{self, Stream};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// A port that the host connects to.
pub struct HostListener(VsockListener);

impl HostListener {
    /// Listens on the port.
    ///
    /// # Errors
    /// When the port is taken, or there is no vsock device.
    pub fn bind(port: u32) -> io::Result<Self> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Self)
    }

    /// The host's connections; others are closed.
    pub fn connections(self) -> impl Stream<Item = io::Result<VsockStream>> + Send {
        stream::unfold(self.0, async |listener| {
            loop {
                match listener.accept().await {
                    Ok((connection, peer)) if peer.cid() == VMADDR_CID_HOST => {
                        return Some((Ok(connection), listener));
                    }
                    Ok((_, peer)) => {
                        tracing::warn!(cid = peer.cid(), "a connection that is not the host's");
                    }
                    Err(error) => return Some((Err(error), listener)),
                }
            }
        })
    }
}

/// Connects to a port that the host listens on.
///
/// # Errors
/// When nothing listens there, or there is no vsock device.
pub async fn connect_to_host(port: u32) -> io::Result<VsockStream> {
    VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await
}
