//! `hull start`.

use hull_runtime::Runtime;
use hull_runtime::container::{start, state};

use super::{container_id, service_manager};

/// Run the program of a container that was created
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The container's id
    id: String,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    let id = container_id(&arguments.id)?;
    let service_manager = service_manager();
    if let Some(notice) = start(runtime, &id, service_manager.as_deref())? {
        let main = state(runtime, &id)?.pid;
        notice
            .hand_on(main.unsigned_abs())
            .map_err(hull_runtime::Error::from)?;
    }
    Ok(0)
}
