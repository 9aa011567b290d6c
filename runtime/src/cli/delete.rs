//! `hull delete`.

use hull_runtime::Runtime;
use hull_runtime::container::delete;

use super::container_id;

/// Remove a container that has stopped
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Kill it first if it runs; no error if it does not exist
    #[arg(short, long)]
    force: bool,
    /// The container's id
    id: String,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    delete(runtime, &container_id(&arguments.id)?, arguments.force)?;
    Ok(0)
}
