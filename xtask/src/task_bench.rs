//! `cargo xtask bench`: measurements against a peer in the same run, in `tests/bench/`. They are read, not judged.

use std::ffi::OsString;

use anyhow::Result;

use crate::task_testbed;

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
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let script = match arguments.subject {
        Subject::Boot => "tests/bench/boot.sh",
    };
    task_testbed::exec_script("bench", script, &arguments.arguments)
}
