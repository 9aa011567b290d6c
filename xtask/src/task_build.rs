//! `cargo xtask build`: everything that is installed, in the install prefix `build/`.

use anyhow::Result;

use crate::workspace::{self, Executables, cargo};
use crate::{cache, task_image};

#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// The executables of the host's side, and where they go below the prefix.
const EXECUTABLES: [(&str, &str); 3] = [
    ("hull", "bin/hull"),
    ("containerd-shim-hull-v2", "bin/containerd-shim-hull-v2"),
    ("hull-vmm", "libexec/hull/hull-vmm"),
];

pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    let executables = Executables::of(cargo().args([
        "build",
        "--release",
        "--package",
        "hull-runtime",
        "--package",
        "hull-shim",
        "--package",
        "hull-vmm",
    ]))?;
    for (name, place) in EXECUTABLES {
        cache::install(executables.get(name)?, &workspace::prefix().join(place))?;
    }
    task_image::install()?;
    eprintln!("hull is in {}", workspace::prefix().display());
    Ok(())
}
