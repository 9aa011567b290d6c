//! The hull OCI runtime.

pub mod network;
