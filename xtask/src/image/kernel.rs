//! Kernels for guests, built from Debian's source package with a configuration of this repository.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kernel_config::not_honoured;
use crate::cache::{self, Fingerprint};
use crate::debian::{self, Archive};
use crate::progress::Progress;
use crate::{command, workspace};

const PACKAGE: &str = "linux-source-6.12";

/// To be raised when the way in which the kernel is built changes.
const RECIPE: &str = "1";

/// The objects that a build compiles, roughly; only shown.
const OBJECTS: usize = 1400;

/// The guest's configuration.
pub(crate) const CONFIG: &str = "guest-image/kernel.config";

/// Returns the path of a kernel, an ELF executable with a PVH entry, and builds it (some seven minutes on two cores) if
/// this configuration and version were not built before. The configuration is that of the files `fragments`, below
/// the repository's root, together.
pub(crate) fn build(fragments: &[&str]) -> Result<PathBuf> {
    let mut config = String::new();
    for fragment in fragments {
        let path = workspace::root().join(fragment);
        config += &fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
    }
    let archive = Archive::open()?;
    let mut entry = entry_name(&config, &archive)?;
    if !cache::has(&entry)? {
        // Only now, so that what is built already needs no network.
        archive.update_if_stale()?;
        entry = entry_name(&config, &archive)?;
    }
    let entry = cache::entry(&entry, |directory| {
        let package = archive.fetch(PACKAGE)?;
        build_in(directory, &package, &config)
    })?;
    Ok(entry.join("vmlinux"))
}

fn entry_name(config: &str, archive: &Archive) -> Result<String> {
    let mut inputs = Fingerprint::default();
    inputs.add("recipe", RECIPE);
    inputs.add("config", config);
    inputs.add("version", archive.version(PACKAGE)?);
    Ok(format!("image/kernel-{}", inputs.name()))
}

/// Leaves `vmlinux`, the finished `config` and `build.log` in `directory`.
fn build_in(directory: &Path, package: &Path, config: &str) -> Result<()> {
    let mut progress = Progress::start("kernel");
    progress.say("unpacking the source");
    let unpacked = directory.join("package");
    debian::unpack(package, &unpacked)?;
    let tarball = unpacked.join(format!("usr/src/{PACKAGE}.tar.xz"));
    let date = build_date(&tarball)?;
    let source = directory.join("source");
    fs::create_dir(&source)?;
    command::quiet(
        Command::new("tar")
            .env("XZ_OPT", "--threads=0")
            .args(["--extract", "--strip-components=1", "--directory"])
            .arg(&source)
            .arg("--file")
            .arg(&tarball),
    )?;
    fs::remove_dir_all(&unpacked)?;

    progress.say("configuring");
    let wanted = directory.join("wanted.config");
    fs::write(&wanted, config)?;
    let log_path = directory.join("build.log");
    let mut log = File::create(&log_path)?;
    let mut configure = make(&source, &date);
    configure
        .env("KCONFIG_ALLCONFIG", &wanted)
        .arg("allnoconfig");
    logged(&mut configure, &mut log, |_| ())?;
    let made = fs::read_to_string(source.join(".config"))?;
    let refused = not_honoured(config, &made);
    if !refused.is_empty() {
        bail!(
            "the kernel's build did not honour its configuration:\n{}",
            refused.join("\n")
        );
    }

    let mut objects = 0;
    let mut compile = make(&source, &date);
    compile.arg("vmlinux");
    logged(&mut compile, &mut log, |line| {
        if line.starts_with("  CC ") || line.starts_with("  AS ") {
            objects += 1;
            progress.tick(|| format!("{objects} of about {OBJECTS} objects compiled"));
        }
    })
    .with_context(|| {
        format!(
            "cannot build the kernel; all it said is in {}",
            log_path.display()
        )
    })?;
    command::quiet(
        Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .args([directory.join("vmlinux"), source.join("vmlinux")]),
    )?;
    fs::rename(source.join(".config"), directory.join("config"))?;
    fs::remove_dir_all(&source)?;
    progress.finish(&format!("built, {objects} objects"));
    Ok(())
}

/// The date that the kernel says it was built at: that of its source, so builds are repeatable.
fn build_date(tarball: &Path) -> Result<String> {
    let date = command::output(
        Command::new("date")
            .env("LC_ALL", "C")
            .args(["--utc", "--reference"])
            .arg(tarball),
    )?;
    Ok(date.trim().to_owned())
}

fn make(source: &Path, date: &str) -> Command {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = Command::new("make");
    make.arg("--directory")
        .arg(source)
        .arg(format!("--jobs={jobs}"))
        .env("LC_ALL", "C")
        .env("KBUILD_BUILD_TIMESTAMP", date)
        .env("KBUILD_BUILD_USER", "hull")
        .env("KBUILD_BUILD_HOST", "hull")
        .env("KBUILD_BUILD_VERSION", "1")
        // A make that started us has its own.
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .env_remove("MAKELEVEL");
    make
}

/// Runs `command`, keeps in `log` all that it writes and shows each line of its standard output to
/// `see`.
fn logged(command: &mut Command, log: &mut File, mut see: impl FnMut(&str)) -> Result<()> {
    let line_of_command = command::line_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start `{line_of_command}`"))?;
    let output = child
        .stdout
        .take()
        .context("the program's output is a pipe")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(log, "{line}")?;
        see(&line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{line_of_command}`: {status}");
    }
    Ok(())
}
