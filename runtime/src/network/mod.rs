//! The network of a sandbox, on the host's side: what a network namespace holds is found (`discover`), each uplink in
//! it is wired to a tap for the VM ([`reconcile()`]), and all of it is undone again ([`undo()`]).
//!
//! Everything here runs in a thread of its own that enters the namespace ([`Netns::run`]); the caller's thread waits
//! for it and stays in its own namespace. So nothing here is to be called on the thread of an asynchronous runtime:
//! use `spawn_blocking` there.
//!
//! A caller keeps one [`NetworkState`] for each sandbox, and goes through these calls:
//!
//! 1. [`Netns::open`] or [`Netns::create`].
//! 2. [`reconcile()`], at `create`, at `start`, and whenever the namespace has changed. It gives the caller what to do
//!    in the VM: ask the agent to let go of `detach` and the VMM to take it away, attach `attach`, send `guest` to the
//!    agent. It is level-triggered: a call that finds nothing new changes nothing and gives the same `guest` again.
//!    [`Watch`] tells when.
//! 3. [`undo()`], once the VMM has ended, or after a failure half-way.
//!
//! The state is handed to the caller's `persist` *before* each change that it records, so that a later process can
//! undo what a killed one has done.
//!
//! # What the guest has, and what stays on the host
//!
//! With the bridge model, interface `i` of a namespace becomes: tap `hull-tap<i>` (the VM's), bridge `hull-br<i>`
//! with tap and uplink as its ports, uplink with the MAC address `02:00:ca:fe:<i >> 8>:<i & 255>`, and a NIC with the
//! uplink's own MAC address in the guest. Addresses, routes, rules and neighbours *stay* in the namespace, where the
//! engines look for them and take them away again, and are copied to the guest. The namespace's own stack is kept
//! from answering for them: the bridge takes no ARP, no IPv6, and no unicast packet in a broadcast frame, and the
//! uplink sends no ARP and asks for no router. Nothing else is switched off, and no rule of the user is touched.
//!
//! With the tc model there is no bridge: ingress qdiscs redirect between uplink and tap, and the uplink stays as it
//! is. CNI's CHECK, which compares its MAC address with the one that it was given, passes with this model only.

mod cni;
mod discover;
pub mod embedded_dns;
mod error;
mod guest;
mod link;
pub mod localhost;
mod mac;
mod model;
mod netlink;
mod netns;
mod reconcile;
mod state;
mod sysctl;
mod tap;
mod traffic;
mod undo;
mod uplink;
mod vhost;
mod watch;

pub use error::{Error, NetlinkError};
pub use mac::{MacAddress, ParseMacError};
pub use netns::{Netns, NetnsId};
pub use reconcile::{NewNic, NotCarried, Options, Persist, Reconciled, reconcile};
pub use state::{
    Model, NetworkState, NicState, SavedNeighbour, SavedSetting, SavedSysctl, UplinkState,
};
pub use traffic::tap_traffic;
pub use undo::undo;
pub use vhost::open_vhost;
pub use watch::Watch;

#[cfg(test)]
mod tests;
