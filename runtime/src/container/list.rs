//! `list`: all containers of a state directory.

use super::State;
use crate::Runtime;
use crate::error::Error;

/// The states of all containers, in order of their ids.
///
/// # Errors
/// The state directory cannot be read.
pub fn list(runtime: &Runtime) -> Result<Vec<State>, Error> {
    let records = runtime.store.containers()?;
    Ok(records
        .iter()
        .map(|record| State::of(&runtime.store, record))
        .collect())
}
