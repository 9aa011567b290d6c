//! `hull run`.

use hull_runtime::Runtime;
use hull_runtime::container::{RunOptions, run as run_container};

use super::inherited::Inherited;
use super::{create, service_manager};

/// Make a container and run its program
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) create: create::Arguments,
    /// Return as soon as the program runs
    #[arg(short, long)]
    detach: bool,
    /// Leave the container there when its program has ended
    #[arg(long)]
    keep: bool,
    /// Taken for callers of runc: orphans in the guest are reaped there
    #[arg(long)]
    no_subreaper: bool,
}

pub(super) fn run(
    runtime: &Runtime,
    arguments: Arguments,
    inherited: Inherited,
) -> anyhow::Result<u8> {
    let options = RunOptions {
        create: arguments.create.options(arguments.detach, inherited)?,
        keep: arguments.keep,
        service_manager: service_manager(),
    };
    Ok(run_container(runtime, &options)?)
}
