//! `hull monitor`, which hull starts itself: see `hull_runtime::monitor`.

use std::process::ExitCode;

use hull_runtime::close_on_exec_from;
use hull_runtime::container::ContainerId;
use hull_runtime::monitor::serve;
use hull_runtime::store::Store;

/// Keep a sandbox's network up to date
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The sandbox
    #[arg(value_name = "SANDBOX-ID")]
    sandbox: String,
}

pub(super) fn run(global: &super::Global, arguments: &Arguments) -> ExitCode {
    match follow(global, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Its standard error is its log.
            super::complain("monitor", &super::report(&error));
            ExitCode::FAILURE
        }
    }
}

fn follow(global: &super::Global, arguments: &Arguments) -> anyhow::Result<()> {
    // Started by a link, it would be called "exe".
    nix::sys::prctl::set_name(c"hull-monitor")?;
    close_on_exec_from(3)?;
    global.log_settings().init()?;
    let sandbox: ContainerId = super::container_id(&arguments.sandbox)?;
    Ok(serve(&Store::new(global.root.clone()), &sandbox)?)
}
