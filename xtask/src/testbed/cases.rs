//! Runs the cases of `tests/` as root where KVM runs Linux, each test binary in a machine of its own.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::place::{self, Place};
use super::ssh::Terminal;
use super::{Image, Instance};
use crate::workspace::{self, Executables};

/// Copies the test binary `$1` from the shared directory, so that it is run from the machine's own disk.
const RUN: &str =
    "cp \"/hull/out/$1\" /root/ && program=/root/$1 && shift && exec \"$program\" \"$@\"";

/// What the cases are run with.
pub(crate) struct Selection<'a> {
    /// The instance they run in, if the host cannot.
    pub(crate) name: &'a str,
    /// Arguments to the test binaries: a filter, and options of libtest.
    pub(crate) arguments: Vec<OsString>,
    /// Leaves the instance running, for a look at what a failure left.
    pub(crate) keep: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Builds the test binaries and runs them all; fails if one failed, or if no case ran.
pub(crate) fn run(selection: &Selection<'_>) -> Result<()> {
    let mut build = workspace::cargo();
    build.args(["test", "--package", "hull-tests", "--no-run"]);
    let binaries = Executables::of(&mut build)?;
    let (place, reason) = place::decide()?;
    eprintln!(
        "the cases run {}: {reason}",
        match place {
            Place::Host => "on this host",
            Place::Nested => "in the test bed",
        }
    );
    let mut count = Count::default();
    let mut failures = Vec::new();
    for binary in binaries.paths() {
        let status = match place {
            Place::Host => on_host(binary, selection, &mut count),
            Place::Nested => Image::build()
                .with_context(|| place::nowhere(&reason))
                .and_then(|image| nested(binary, image, selection, &mut count)),
        };
        match status {
            Ok(0) => {}
            Ok(code) => failures.push(format!("{}: exit code {code}", binary.display())),
            Err(error) => failures.push(format!("{}: {error:#}", binary.display())),
        }
    }
    if place == Place::Nested && !selection.keep {
        Instance::named(selection.name)?.stop()?;
    }
    println!("cases: {} passed, {} failed", count.passed, count.failed);
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    ensure!(count.failed == 0, "{} cases failed", count.failed);
    ensure!(count.passed > 0, "no case ran");
    Ok(())
}

fn on_host(binary: &Path, selection: &Selection<'_>, count: &mut Count) -> Result<i32> {
    let mut command = Command::new(binary);
    command
        .args(&selection.arguments)
        .env("PATH", path_with_prefix()?);
    run_counting(&mut command, count)
}

fn nested(
    binary: &Path,
    image: Image,
    selection: &Selection<'_>,
    count: &mut Count,
) -> Result<i32> {
    let machine = Instance::named(selection.name)?.start(image, true)?;
    let name = binary.file_name().context("a test binary has a name")?;
    let handed_over = machine.out().join(name);
    fs::copy(binary, &handed_over)?;
    let mut words: Vec<OsString> = ["sh", "-c", RUN, "sh"].map(OsString::from).into();
    words.push(name.to_owned());
    words.extend_from_slice(&selection.arguments);
    // The place of the crate's files, which cargo tells test binaries.
    let variables = [("CARGO_MANIFEST_DIR".into(), "/hull/checkout/tests".into())];
    let code = run_counting(
        machine
            .command(&words, &variables, Terminal::No)
            .stdin(Stdio::null()),
        count,
    );
    fs::remove_file(handed_over)?;
    code
}

/// The PATH in which this checkout's hull comes first.
pub(crate) fn path_with_prefix() -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let prefix = std::iter::once(workspace::prefix().join("bin"));
    Ok(std::env::join_paths(
        prefix.chain(std::env::split_paths(&path)),
    )?)
}

/// Runs a test binary with its output on ours, and adds its cases to `count`. Returns its exit code.
fn run_counting(command: &mut Command, count: &mut Count) -> Result<i32> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("the output is a pipe")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let mut terminal = std::io::stdout().lock();
        terminal.write_all(&line)?;
        terminal.write_all(b"\n")?;
        count.add(&String::from_utf8_lossy(&line));
    }
    Ok(super::instance::exit_code(child.wait()?))
}

impl Count {
    /// Adds libtest's last line: `test result: ok. 3 passed; 1 failed; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let number_before = |word: &str| {
            let mut words = result
                .split([' ', ';', '.'])
                .filter(|word| !word.is_empty());
            let mut last = words.next()?;
            for next in words {
                if next == word {
                    return last.parse::<u64>().ok();
                }
                last = next;
            }
            None
        };
        self.passed += number_before("passed").unwrap_or(0);
        self.failed += number_before("failed").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_add_up() {
        let mut count = Count::default();
        count.add("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1s");
        count.add("test lifecycle::create ... ok");
        count.add("test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(
            count,
            Count {
                passed: 13,
                failed: 1
            }
        );
    }
}
