//! Takes everything back that [`super::reconcile()`] did to a namespace.

use super::discover::permanent_neighbours;
use super::error::Error;
use super::model::{Work, unwire, wiring};
use super::netlink::Netlink;
use super::netns::Netns;
use super::reconcile::Persist;
use super::state::{NetworkState, NicState};
use super::sysctl;

/// Makes the namespace what it would be without hull, and empties `state`. It may be called again, and it is no
/// error when links are gone or changed; with the namespace gone there is nothing to call it for.
///
/// # Errors
/// See [`Error`]; what could be undone has been, and `state` names the rest.
pub fn undo(
    netns: &Netns,
    state: &mut NetworkState,
    persist: &mut Persist<'_>,
) -> Result<(), Error> {
    if state.netns.is_some_and(|id| id != netns.id()) {
        return Err(Error::OtherNetns);
    }
    netns.run(|| {
        let netlink = Netlink::connect()?;
        let mut result = Ok(());
        for nic in state
            .nics
            .iter()
            .rev()
            .map(|nic| nic.index)
            .collect::<Vec<_>>()
        {
            let released = release(&netlink, state, nic, false, persist);
            result = result.and(released);
        }
        result?;
        for saved in &state.sysctls {
            sysctl::write(&saved.path, &saved.value)?;
        }
        *state = NetworkState::default();
        persist(state).map_err(Error::Persist)
    })?
}

/// Undoes the wiring of the NIC with that index and forgets it. `vmm_has_tap`: see [`Work`].
pub(super) fn release(
    netlink: &Netlink,
    state: &mut NetworkState,
    index: u16,
    vmm_has_tap: bool,
    persist: &mut Persist<'_>,
) -> Result<(), Error> {
    if let Some(nic) = state.nics.iter_mut().find(|nic| nic.index == index) {
        let remembered = nic.neighbours.len();
        remember_neighbours(netlink, nic)?;
        if nic.neighbours.len() != remembered {
            persist(state).map_err(Error::Persist)?;
        }
    }
    if let Some(nic) = state.nics.iter().find(|nic| nic.index == index) {
        let mut work = Work {
            netlink,
            nic,
            taps: vec![],
            vmm_has_tap,
        };
        unwire(
            wiring(nic.model).map_or(&[], |wiring| wiring.steps()),
            &mut work,
        )?;
    }
    state.nics.retain(|nic| nic.index != index);
    persist(state).map_err(Error::Persist)
}

/// Adds to a NIC's state what its uplink is about to forget.
fn remember_neighbours(netlink: &Netlink, nic: &mut NicState) -> Result<(), Error> {
    for (link, neighbour) in permanent_neighbours(netlink)? {
        let known = nic
            .neighbours
            .iter()
            .any(|known| known.address == neighbour.address);
        if link == nic.uplink.ifindex && !known {
            nic.neighbours.push(neighbour);
        }
    }
    Ok(())
}
