//! The process proxy, which hull starts itself and which has no arguments of its own: see `hull_runtime::process_proxy`.

use std::ffi::OsStr;
use std::os::fd::{OwnedFd, RawFd};
use std::process::ExitCode;

use anyhow::Context;
use hull_runtime::process_proxy::{CONTROL_FD, serve};
use hull_runtime::{close_on_exec_from, take_inherited_fd};

/// Runs the proxy whose maker's socket is the descriptor `control`.
pub(super) fn run(control: &OsStr) -> ExitCode {
    // Started by a link, it would be called "exe". Only a name of too many bytes fails.
    let _ = nix::sys::prctl::set_name(c"hull-proxy");
    match take(control) {
        Ok(control) => serve(control).into(),
        // Only someone who sets the variable by hand sees this.
        Err(error) => {
            super::complain("process proxy", &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn take(control: &OsStr) -> anyhow::Result<OwnedFd> {
    close_on_exec_from(3)?;
    let number: RawFd = control
        .to_str()
        .and_then(|number| number.parse().ok())
        .context(CONTROL_FD)?;
    take_inherited_fd(number).context(CONTROL_FD)
}
