//! The guest's initramfs: the agent as `/init`, and the directories it mounts upon.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use crate::command;

/// Where the agent mounts the kernel's file systems, with their permissions.
const DIRECTORIES: [(&str, u32); 5] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("run", 0o755),
    ("tmp", 0o1777),
];

/// Writes the initramfs with `agent`, less its symbols, to the file `target`.
///
/// It is not compressed: the guest would only spend time on unpacking it.
pub(crate) fn write(agent: &Path, target: &Path) -> Result<()> {
    let stripped = target.with_extension("init");
    command::quiet(
        Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .args([&stripped, agent]),
    )?;
    let init =
        fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    fs::remove_file(&stripped)?;
    let archive = archive(&init).context("cannot make the initramfs")?;
    fs::write(target, archive).with_context(|| format!("cannot write {}", target.display()))
}

fn archive(init: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for (name, permissions) in DIRECTORIES {
        archive.directory(name, permissions)?;
    }
    // The kernel opens it as init's standard streams before there is a /dev.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, init)?;
    archive.finish()
}
