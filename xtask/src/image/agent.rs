//! The guest's agent as one static executable.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::workspace::{self, Executables};

/// Builds the agent against the C library's and libseccomp's archives.
pub(crate) fn build() -> Result<PathBuf> {
    let libseccomp = static_library("libseccomp.a")?;
    let executables = Executables::of(
        workspace::static_build("agent")
            .args(["--package", "hull-agent"])
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
