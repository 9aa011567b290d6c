//! What the runtime and the agent say to each other: the ttrpc service of `proto/agent.proto`, and beside it the vsock
//! ports, the opening line of the stdio streams, the way of DNS queries, and that of a service's notifications.

pub mod dns;
pub mod latency;
pub mod localhost;
pub mod notify;
pub mod ports;
pub mod stdio;

/// In the guest, where the shared memory is that containers have in common, each by its name.
pub const SHARED_MEMORY: &str = "/run/hull/shm";

/// The messages of `proto/agent.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unused,
    nonstandard_style
)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The ttrpc service of `proto/agent.proto`: a synchronous client and an asynchronous server.
#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unused,
    nonstandard_style
)]
pub mod agent_ttrpc {
    use super::agent;
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}
