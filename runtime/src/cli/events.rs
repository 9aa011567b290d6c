//! `hull events`.

use std::time::Duration;

use anyhow::{Context, bail};
use hull_runtime::Runtime;
use hull_runtime::container::events;

use super::{container_id, print};

/// Show what a container uses, and when it runs out of memory, a line of JSON each
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Show once what it uses
    #[arg(long)]
    stats: bool,
    /// The time from one look to the next: "5s", "500ms"
    #[arg(long, default_value = "5s")]
    interval: String,
    /// The container's id
    id: String,
}

pub(super) fn run(runtime: &Runtime, arguments: &Arguments) -> anyhow::Result<u8> {
    let interval = humantime::parse_duration(&arguments.interval)
        .with_context(|| format!("--interval {}", arguments.interval))?;
    if interval < Duration::from_millis(1) {
        bail!(
            "--interval {}: it must be greater than 0",
            arguments.interval
        );
    }
    let id = container_id(&arguments.id)?;
    let mut failure = None;
    events(runtime, &id, interval, |event| {
        let printed = serde_json::to_string(event)
            .map_err(anyhow::Error::from)
            .and_then(|line| print(&format!("{line}\n")));
        failure = printed.err();
        failure.is_none() && !arguments.stats
    })?;
    failure.map_or(Ok(0), Err)
}
