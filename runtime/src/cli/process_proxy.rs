//! `hull process-proxy`, which hull starts itself: see `hull_runtime::process_proxy`.

use std::os::fd::RawFd;
use std::process::ExitCode;

use hull_runtime::process_proxy::serve;
use hull_runtime::{close_on_exec_from, take_inherited_fd};

/// Stand for a process in a guest
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The socket to the process that started this one
    #[arg(long)]
    control_fd: RawFd,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    // Started by a link, it would be called "exe". Only a name of too many bytes fails.
    let _ = nix::sys::prctl::set_name(c"hull-proxy");
    let control = close_on_exec_from(3).and_then(|()| take_inherited_fd(arguments.control_fd));
    match control {
        Ok(control) => serve(control).into(),
        // Only someone who starts it by hand sees this.
        Err(error) => {
            super::complain("process-proxy", &format!("--control-fd: {error}"));
            ExitCode::FAILURE
        }
    }
}
