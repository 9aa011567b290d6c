//! The vsock ports. The guest's CID is 3.
//!
//! The agent listens on [`RPC`], [`STDIO`] and [`LOCALHOST`]; hosts connect through the hypervisor's Unix socket with
//! `CONNECT <port>\n` and read `OK <host port>\n` before anything else. The host listens on [`DNS`], at the Unix socket
//! that has the hypervisor's name with `_<port>` behind it; the agent connects to CID 2, and nothing precedes its bytes.

/// ttrpc.
pub const RPC: u32 = 1024;
/// Stdio streams, one connection for each: see [`crate::stdio`].
pub const STDIO: u32 = 1025;
/// Queries to Docker's embedded DNS server: see [`crate::dns`].
pub const DNS: u32 = 1026;
/// Connections to the guest's localhost: see [`crate::localhost`].
pub const LOCALHOST: u32 = 1027;
