//! `hull pause`.

use hull_runtime::Runtime;
use hull_runtime::container::pause;

use super::container_id;

/// Freeze all processes of a container
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The container's id
    id: String,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    pause(runtime, &container_id(&arguments.id)?)?;
    Ok(0)
}
