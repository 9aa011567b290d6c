//! `hull start`.

use hull_runtime::Runtime;
use hull_runtime::container::start;

use super::container_id;

/// Run the program of a container that was created
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The container's id
    id: String,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    start(runtime, &container_id(&arguments.id)?)?;
    Ok(0)
}
