//! hull's agent: PID 1 of the guest.
//!
//! One process with one thread that runs a tokio event loop: it serves the calls of `hull-agent-protocol` on one vsock
//! port ([`rpc`]) and the stdio streams of processes on another ([`stdio`]), and reaps every child of the guest
//! ([`process`]). Containers are made by short-lived helpers, which are this same program started again
//! ([`container::helper`]), since making one forks, and changes namespaces and working directories; so is the init of a pod
//! that no container holds ([`container::pod_init`]).

pub mod container;
mod error_text;
pub mod init;
pub mod log;
pub mod machine;
pub mod mounts;
pub mod network;
pub mod process;
pub mod rpc;
pub mod stdio;
mod sys;
pub mod vsock;
