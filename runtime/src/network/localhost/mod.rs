//! Who dials localhost in the network namespace of a pod means servers of its containers, which are in the guest:
//! containerd and CRI-O do, for Kubernetes' port forward. A BPF program of the namespace (steering.rs) gives such
//! connections to one socket, whatever their port, and forward.rs carries them over the VM's socket device to the agent.
//!
//! It runs in a thread of the sandbox's monitor. The program ends with the monitor; no rule of the packet filter is made, and
//! nothing but TCP connections to 127.0.0.1 is concerned. One cannot know whether a container listens on a port before a
//! connection to it is accepted, so a connection to one on which none does is not refused but reset at once.

mod forward;
mod steering;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::thread;

use super::Netns;
use steering::Steering;

/// Starts the thread, in the network namespace of the calling one, which is `netns`. It ends with the process. `vsock` is
/// the Unix socket of the VMM's socket device.
///
/// # Errors
/// The kernel has no such programs (it has since Linux 5.9), or refuses.
pub fn start(netns: &Netns, vsock: PathBuf) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let steering = Steering::to(&listener, netns)?;
    listener.set_nonblocking(true)?;
    let event_loop = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let serve = move || {
        let _steering = steering;
        if let Err(error) = event_loop.block_on(forward::serve(listener, vsock)) {
            tracing::warn!(%error, "localhost of the namespace");
        }
    };
    let thread = thread::Builder::new().name("localhost".into());
    thread.spawn(serve).map(drop)
}
