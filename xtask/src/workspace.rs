//! Where things are in this checkout, and cargo's builds of its crates.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command;

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the repository")
}

/// The install prefix that developers' builds fill: `bin/`, `libexec/hull/`, `share/hull/`.
pub(crate) fn prefix() -> PathBuf {
    root().join("build")
}

/// cargo, the one that runs this program where there is one, at the repository's root.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// A `cargo build` of static executables for guests and containers, which have no C library, with `profile`.
///
/// They are at a fixed address: a guest executes its agent anew for every process that it starts, with nothing to
/// relocate. With an explicit target cargo keeps build scripts and procedural macros out of these flags, and keeps the
/// results apart from those of the dynamically linked crates.
pub(crate) fn static_build(profile: &str) -> Command {
    let mut build = cargo();
    build
        .args(["build", "--profile", profile])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        );
    build
}

/// Executables that a build made or found up to date.
pub(crate) struct Executables(Vec<(String, PathBuf)>);

impl Executables {
    /// Runs `build`, a `cargo build`, with its messages on the terminal.
    pub(crate) fn of(build: &mut Command) -> Result<Executables> {
        build.arg("--message-format=json-render-diagnostics");
        let line = command::line_of(build);
        let output = build
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start `{line}`"))?;
        if !output.status.success() {
            bail!("`{line}`: {}", output.status);
        }
        let messages = String::from_utf8(output.stdout).context("cargo wrote no UTF-8")?;
        let mut executables = Vec::new();
        for message in messages.lines() {
            let message: Value = serde_json::from_str(message)
                .with_context(|| format!("cargo wrote no JSON: {message}"))?;
            if let (Some(name), Some(path)) = (
                message["target"]["name"].as_str(),
                message["executable"].as_str(),
            ) {
                executables.push((name.to_owned(), PathBuf::from(path)));
            }
        }
        Ok(Executables(executables))
    }

    /// The paths of all of them.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(_, path)| path.as_path())
    }

    /// The path of the executable `name`.
    pub(crate) fn get(&self, name: &str) -> Result<&Path> {
        self.0
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, path)| path.as_path())
            .with_context(|| format!("the build made no executable {name}"))
    }
}
