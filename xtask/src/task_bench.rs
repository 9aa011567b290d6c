//! `cargo xtask bench`: measurements against a peer in the same run, in `tests/bench/`. They are read, not judged.

use std::ffi::OsString;

use anyhow::Result;

use crate::image::kernel;
use crate::workspace::{self, Executables};
use crate::{cache, task_testbed};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What is measured.
    subject: Subject,
    /// Handed to the measurement.
    arguments: Vec<OsString>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Subject {
    /// From the VMM's start to the guest's end, against QEMU's microvm. Argument: the number of pairs.
    Boot,
    /// Between a container and its host: hull, runc, and QEMU with vhost-net. Arguments: seconds for each figure, rounds,
    /// and which contenders.
    Network,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let script = match arguments.subject {
        Subject::Boot => "tests/bench/boot.sh",
        Subject::Network => {
            install_network_parts()?;
            "tests/bench/network.sh"
        }
    };
    task_testbed::exec_script("bench", script, &arguments.arguments)
}

/// What the measurement of the network takes beside hull, in `build/bench/`: the program that makes the traffic, and a
/// kernel for all machines alike, which is the guest's and finds the devices of QEMU's microvm too.
fn install_network_parts() -> Result<()> {
    let traffic =
        Executables::of(workspace::static_build("release").args(["--package", "hull-traffic"]))?;
    let bench = workspace::prefix().join("bench");
    cache::install(traffic.get("traffic")?, &bench.join("traffic"))?;
    let kernel = kernel::build(&[kernel::CONFIG, "tests/bench/microvm.config"])?;
    cache::install(&kernel, &bench.join("vmlinux"))
}
