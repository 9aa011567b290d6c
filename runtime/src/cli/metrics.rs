//! `hull metrics`.

use hull_runtime::Runtime;
use hull_runtime::metrics::of_all;

use super::print;

/// Show the metrics of all sandboxes of the state directory, in the text format of Prometheus
#[derive(clap::Args)]
pub(super) struct Arguments {}

pub(super) fn run(runtime: &Runtime, Arguments {}: &Arguments) -> anyhow::Result<u8> {
    print(&of_all(&runtime.store)?)?;
    Ok(0)
}
