//! The socket device (virtio 1.2 §5.10): stream connections between programs of the host and of the guest, with Unix
//! sockets on the host's side ("hybrid vsock").
//!
//! - A program of the host connects to the device's Unix socket and writes `CONNECT <port>\n`. When the guest accepts,
//!   it reads `OK <host port>\n` and the connection is the guest's from then on; when the guest refuses or does not
//!   answer in `REQUEST_TIMEOUT`, its connection is closed. What arrives before the guest's driver is active waits
//!   in the listener's backlog.
//! - A connection that the guest opens to port P of CID 2 is made to the Unix socket `<prefix>_P`; where there is
//!   none, the guest is refused.
//!
//! Roles: `device.rs` is what the driver negotiates. One worker thread (`worker.rs`) waits for the driver's
//! notifications and for all host sockets at once, and moves packets (`packet.rs`) between the queues and the muxer.
//! `muxer.rs` routes: it owns every endpoint, finds the one that a packet is for, and chooses whose packet the guest
//! gets next, in turn. `connection.rs` is the state of one connection: its phases, its credit in both directions, and
//! its half-closes. `greeting.rs` is the `CONNECT` line. `backend.rs` is the host's side.
//!
//! What crosses the boundary: the guest's packets, all of them hostile. A connection holds at most `BUF_ALLOC` bytes
//! for a slow reader on the host, there are at most `MAX_ENDPOINTS` connections, and replies that wait for the
//! guest's buffers are bounded as well. Each connection needs one descriptor, so the process's limit
//! (`RLIMIT_NOFILE`) must leave room for `MAX_ENDPOINTS`.

mod backend;
mod connection;
pub mod device;
mod greeting;
mod muxer;
mod out_buffer;
mod packet;
#[cfg(test)]
mod tests;
mod worker;

use std::time::Duration;

/// The host's context id (§5.10.4).
const HOST_CID: u64 = 2;

/// What the guest may send on one connection before the host has taken any of it, in bytes.
const BUF_ALLOC: u32 = 256 * 1024;

/// Connections at any one time, whatever their phase.
const MAX_ENDPOINTS: usize = 1024;

/// Connections that the guest opened, of `MAX_ENDPOINTS`: the rest is the host's, so that a guest cannot lock the
/// host's programs out.
const MAX_GUEST_OPENED: usize = 512;

/// How long the guest may take to answer a connection request. Who waits on the host has a limit of its own, and closes
/// its end when that is over; this is only for who has none, so it is longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the guest may take to confirm that a connection has ended on both sides, before it is reset.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);
