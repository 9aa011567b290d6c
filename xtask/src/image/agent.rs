//! The guest's agent as one static executable.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::workspace::{Executables, cargo};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Static, and at a fixed address: the guest executes it anew for every process that it starts, with nothing to relocate.
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Builds the agent against the C library's and libseccomp's archives.
///
/// With an explicit target cargo keeps build scripts and procedural macros out of these flags, and
/// keeps the results apart from those of the dynamically linked crates.
pub(crate) fn build() -> Result<PathBuf> {
    let libseccomp = static_library("libseccomp.a")?;
    let executables = Executables::of(
        cargo()
            .args([
                "build",
                "--profile",
                "agent",
                "--package",
                "hull-agent",
                "--target",
                TARGET,
            ])
            .env("RUSTFLAGS", FLAGS)
            .env("LIBSECCOMP_LINK_TYPE", "static")
            .env(
                "LIBSECCOMP_LIB_PATH",
                libseccomp.parent().unwrap_or(Path::new("/")),
            ),
    )?;
    Ok(executables.get("hull-agent")?.to_owned())
}

/// Where the C compiler finds the archive `name`.
fn static_library(name: &str) -> Result<PathBuf> {
    let found = command::output(Command::new("gcc").arg(format!("-print-file-name={name}")))?;
    // What gcc does not find it prints as it was given.
    let path = PathBuf::from(found.trim());
    if !path.is_absolute() {
        bail!("there is no {name} here: run `cargo xtask deps`");
    }
    path.canonicalize()
        .with_context(|| format!("cannot read {}", path.display()))
}
