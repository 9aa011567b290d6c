//! `hull state`.

use hull_runtime::Runtime;
use hull_runtime::container::state;

use super::{container_id, print_json};

/// Print the state of a container as JSON
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The container's id
    id: String,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    print_json(&state(runtime, &container_id(&arguments.id)?)?)?;
    Ok(0)
}
