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
    /// A number or a name; SIGTERM if it is empty
    #[arg(default_value = "")]
    signal: String,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    let id = container_id(&arguments.id)?;
    let signal = match arguments.signal.as_str() {
        "" => "SIGTERM",
        signal => signal,
    };
    let signal = parse_signal(signal).map_err(hull_runtime::Error::from)?;
    kill(runtime, &id, signal, arguments.all)?;
    Ok(0)
}
