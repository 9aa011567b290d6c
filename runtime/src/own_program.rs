//! The processes that the library starts from the program that it is part of, `hull` or containerd's shim: process
//! proxies and monitors. Such a program hands over to [`enter`] before anything else, and never comes to its own
//! arguments in one of them.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::process::{Command, ExitCode};

use crate::error::chain;
use crate::monitor;
use crate::process_proxy::{self, CONTROL_FD};
use crate::store::Store;
use crate::{close_on_exec_from, take_inherited_fd};

/// The command that runs this program once more. It is the link itself: the file may have been replaced since this
/// process was started.
pub fn command() -> Command {
    Command::new("/proc/self/exe")
}

/// Does the work of a process proxy or of a monitor, if that is what this process was started for.
pub fn enter() -> Option<ExitCode> {
    if let Some(control) = env::var_os(CONTROL_FD) {
        return Some(proxy(&control));
    }
    let settings = env::var_os(monitor::SETTINGS)?;
    Some(follow(&settings))
}

fn proxy(control: &OsStr) -> ExitCode {
    // Started by a link, it would be called "exe". Only a name of too many bytes fails.
    let _ = nix::sys::prctl::set_name(c"hull-proxy");
    let control = close_on_exec_from(3).and_then(|()| {
        let number: Option<RawFd> = control.to_str().and_then(|number| number.parse().ok());
        take_inherited_fd(number.ok_or(io::ErrorKind::InvalidInput)?)
    });
    match control {
        Ok(control) => process_proxy::serve(control).into(),
        // Only someone who sets the variable by hand sees this.
        Err(error) => complain("process proxy", &format!("{CONTROL_FD}: {error}")),
    }
}

fn follow(settings: &OsStr) -> ExitCode {
    // Started by a link, it would be called "exe". Only a name of too many bytes fails.
    let _ = nix::sys::prctl::set_name(c"hull-monitor");
    let prepared = close_on_exec_from(3).and_then(|()| {
        let settings: monitor::Settings =
            serde_json::from_str(settings.to_str().ok_or(io::ErrorKind::InvalidInput)?)?;
        settings.log.init()?;
        Ok(settings)
    });
    // Its standard error is its log.
    match prepared {
        Ok(settings) => match monitor::serve(&Store::new(settings.root), &settings.sandbox) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain("monitor", &chain(&error)),
        },
        Err(error) => complain("monitor", &error.to_string()),
    }
}

fn complain(process: &str, report: &str) -> ExitCode {
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "hull {process} failed: {report}");
    ExitCode::FAILURE
}
