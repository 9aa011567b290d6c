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
        // Their VM has ended.
        state.leaving.clear();
        let indices: Vec<u16> = state.nics.iter().map(|nic| nic.index).collect();
        for index in indices.into_iter().rev() {
            let released = release(&netlink, state, index, false, persist);
            result = result.and(released);
        }
        for saved in std::mem::take(&mut state.sysctls) {
            if let Err(error) = sysctl::write(&saved.path, &saved.value) {
                state.sysctls.push(saved);
                result = result.and(Err(error));
            }
        }
        if state.nics.is_empty() && state.sysctls.is_empty() {
            state.netns = None;
        }
        result.and(persist(state).map_err(Error::Persist))
    })?
}

/// Undoes the wiring of the NIC with that index and forgets it; also where the state cannot be kept, which is told
/// then. `vmm_has_tap`: see [`Work`].
pub(super) fn release(
    netlink: &Netlink,
    state: &mut NetworkState,
    index: u16,
    vmm_has_tap: bool,
    persist: &mut Persist<'_>,
) -> Result<(), Error> {
    let Some(nic) = state.nics.iter_mut().find(|nic| nic.index == index) else {
        return Ok(());
    };
    remember_neighbours(netlink, nic)?;
    let nic = nic.clone();
    if !nic.neighbours.is_empty() {
        // Should this fail, then so does what comes last, and is told.
        let _ = persist(state);
    }
    let mut work = Work {
        netlink,
        nic: &nic,
        taps: vec![],
        vmm_has_tap,
    };
    let steps = wiring(nic.model).map_or(&[][..], |wiring| wiring.steps());
    unwire(steps, &mut work)?;
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
