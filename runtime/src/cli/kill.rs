//! `hull kill`.

use hull_runtime::Runtime;
use hull_runtime::container::{kill, parse_signal};

use super::container_id;

/// Send a signal to a container
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Send it to all processes of the container
    #[arg(short, long)]
    all: bool,
    /// The container's id
    id: String,
    /// A number or a name
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    let id = container_id(&arguments.id)?;
    let signal = parse_signal(&arguments.signal).map_err(hull_runtime::Error::from)?;
    kill(runtime, &id, signal, arguments.all)?;
    Ok(0)
}
