//! containerd's shim for hull, the runtime `io.containerd.hull.v2`: one process for each pod, or for each container that
//! is in none. It serves containerd's task service and calls the runtime library for all that it does, as the `hull`
//! command does.
//!
//! containerd runs it as a command (arguments.rs): `start` makes the process that serves, or finds the pod's
//! (bootstrap.rs); `delete` cleans up after one that died (cleanup.rs). What serves is server.rs; service.rs has the calls,
//! container.rs and process.rs what is known of a task, stdio/ the streams, events.rs what containerd is told unasked.
//! Pods that no container holds are sandbox.rs.

mod arguments;
mod bootstrap;
mod cleanup;
mod container;
mod error;
mod events;
mod metrics;
mod options;
mod pod;
mod process;
mod rootfs;
mod sandbox;
mod server;
mod service;
mod state;
mod stdio;
mod sys;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use hull_runtime::own_program;
use protobuf::Message;

use arguments::{Action, Arguments};

/// Its name, for people.
const NAME: &str = "containerd-shim-hull-v2";
/// The name by which containerd knows the runtime.
const RUNTIME: &str = "io.containerd.hull.v2";

fn main() -> ExitCode {
    if let Some(code) = own_program::enter() {
        return code;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    match arguments.action {
        Action::Start => print(&bootstrap::start(&arguments)?),
        Action::Delete => print(&cleanup::delete(&arguments)?),
        Action::CleanUp => print(&cleanup::clean_up(&arguments)?),
        Action::Serve => server::serve(&arguments),
        Action::Info => print(&info()?),
        Action::Version => print(version().as_bytes()),
    }
}

fn version() -> String {
    format!("{NAME}:\n  Version: {}\n", env!("CARGO_PKG_VERSION"))
}

/// What containerd 2 asks for with `-info`.
fn info() -> anyhow::Result<Vec<u8>> {
    let mut version = RuntimeVersion::new();
    version.version = env!("CARGO_PKG_VERSION").into();
    let mut info = RuntimeInfo::new();
    info.name = RUNTIME.into();
    info.version = Some(version).into();
    Ok(info.write_to_bytes()?)
}

fn print(answer: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(answer)
        .and_then(|()| stdout.flush())
        .context("standard output")
}
