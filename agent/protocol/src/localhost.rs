//! Connections to servers of containers that listen on the guest's localhost, for who dials the localhost of the sandbox's
//! network namespace: Kubernetes' port forward does.
//!
//! The host connects to port [`crate::ports::LOCALHOST`] and says the TCP port in two bytes, the most significant first. The
//! agent connects to it, at 127.0.0.1 or else at ::1, and answers [`OPEN`]; if nobody listens there it closes. What
//! follows, both ways, are the bytes of the TCP connection, and half-closes.

/// The agent's answer once it is connected.
pub const OPEN: u8 = b'+';
