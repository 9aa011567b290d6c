//! What a container's programs say to their service manager (sd_notify(3)): a datagram socket in the guest, whose messages
//! a stream of [`crate::stdio`] carries to the host.
//!
//! On the stream a message has its length before it, as two bytes in network order. One that is longer than
//! [`MAX_MESSAGE`] is not carried. What is said before the stream is open waits, and is lost if the container starts
//! without it.

/// In the guest, each container that may notify has a directory here, named by its id, with the socket in it.
pub const DIRECTORY: &str = "/run/hull/notify";

/// The longest message, in bytes: no service manager takes a longer one.
pub const MAX_MESSAGE: usize = 4096;
