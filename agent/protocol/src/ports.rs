//! The vsock ports that the agent listens on. The guest's CID is 3; hosts connect through the hypervisor's
//! Unix socket with `CONNECT <port>\n` and read `OK <host port>\n` before anything else.

/// ttrpc.
pub const RPC: u32 = 1024;
/// Stdio streams, one connection for each: see [`crate::stdio`].
pub const STDIO: u32 = 1025;
