//! Runs the cases of `tests/` as root where KVM runs Linux: on the host, or divided among machines side by side, since
//! one that is emulated waits more than it computes. The runtime's tests of the network run there too: not every
//! host's kernel has all kinds of links, and the machines' has.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::place::{self, Place};
use super::ssh::{self, Terminal};
use super::{Image, Instance};
use crate::command;
use crate::debian::Release;
use crate::workspace::{self, Executables};

/// Copies the test binary `$1` from the shared directory, so that it is run from the machine's own disk.
const RUN: &str =
    "cp \"/hull/out/$1\" /root/ && program=/root/$1 && shift && exec \"$program\" \"$@\"";

/// Prints the processes of hull that are still there, once those have had time to end that are about to.
const LEFT_RUNNING: &str = r#"
for attempt in $(seq 60); do
    left=
    for process in /proc/[0-9]*; do
        case $(readlink $process/exe) in
            */hull | */hull-vmm | */containerd-shim-hull-v2)
                left="$left $(ps -o pid=,etime=,args= -p ${process#/proc/});" ;;
        esac
    done
    [ -n "$left" ] || exit 0
    sleep 1
done
echo $left
"#;

/// Has the runtime's tests of the network fail where they would leave out a kind of link that the kernel has not.
const ALL_LINKS: (&str, &str) = ("HULL_TEST_ALL_LINKS", "1");

/// What the cases are run with.
pub(crate) struct Selection<'a> {
    /// The release of Debian that they run on, if it matters.
    pub(crate) release: Option<Release>,
    /// The instance they run in, if the host cannot; further ones are named after it.
    pub(crate) name: &'a str,
    /// Among how many instances they are divided.
    pub(crate) machines: usize,
    /// Only cases whose name contains this.
    pub(crate) filter: Option<&'a str>,
    /// Options of libtest.
    pub(crate) options: Vec<OsString>,
    /// Leaves the instances running, for a look at what a failure left.
    pub(crate) keep: bool,
}

/// Tests of a package that are run as cases.
struct Suite {
    package: &'static str,
    /// Which of the package's test binaries, as an option of `cargo test`.
    target: &'static str,
    /// Only tests whose name begins with this.
    prefix: &'static str,
}

const SUITES: [Suite; 2] = [
    Suite {
        package: "hull-tests",
        target: "--tests",
        prefix: "",
    },
    Suite {
        package: "hull-runtime",
        target: "--lib",
        prefix: "network::",
    },
];

/// A test binary, and names of tests in it.
struct Tests {
    binary: PathBuf,
    names: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Builds the test binaries and runs them all; fails if one failed, or if no case ran.
pub(crate) fn run(selection: &Selection<'_>) -> Result<()> {
    let mut tests = Vec::new();
    for suite in &SUITES {
        tests.extend(suite.build(selection)?);
    }
    let (place, reason) = place::decide(selection.release)?;
    eprintln!(
        "the cases run {}: {reason}",
        match place {
            Place::Host => "on this host",
            Place::Nested(_) => "in the test bed",
        }
    );
    let outcomes = match place {
        Place::Host => tests
            .iter()
            .map(|tests| on_host(tests, selection))
            .collect(),
        Place::Nested(release) => Image::build(release)
            .with_context(|| place::nowhere(&reason))
            .map(|image| nested(&tests, release, &image, selection))?,
    };
    let mut count = Count::default();
    let mut failures = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok((counted, code)) => {
                count += counted;
                if code != 0 {
                    failures.push(format!("exit code {code}"));
                }
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    println!("cases: {} passed, {} failed", count.passed, count.failed);
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    ensure!(count.failed == 0, "{} cases failed", count.failed);
    ensure!(count.passed > 0, "no case ran");
    Ok(())
}

impl Suite {
    /// Builds the suite's binaries, and gives those that have tests of the selection.
    fn build(&self, selection: &Selection<'_>) -> Result<Vec<Tests>> {
        let mut build = workspace::cargo();
        build.args(["test", "--package", self.package, self.target, "--no-run"]);
        let binaries = Executables::of(&mut build)?;
        let mut all = Vec::new();
        for binary in binaries.paths() {
            let mut names = list(binary, selection)?;
            names.retain(|name| name.starts_with(self.prefix));
            if !names.is_empty() {
                all.push(Tests {
                    binary: binary.to_owned(),
                    names,
                });
            }
        }
        Ok(all)
    }
}

/// libtest's arguments that run tests by their names.
fn arguments(names: &[String], selection: &Selection<'_>) -> Vec<OsString> {
    let options = selection.options.iter();
    let mut arguments: Vec<OsString> = options
        .filter(|option| *option != "--exact")
        .cloned()
        .collect();
    arguments.push("--exact".into());
    arguments.extend(names.iter().map(OsString::from));
    arguments
}

fn on_host(tests: &Tests, selection: &Selection<'_>) -> Result<(Count, i32)> {
    let mut command = Command::new(&tests.binary);
    command
        .args(arguments(&tests.names, selection))
        .env("PATH", path_with_prefix()?)
        .env(ALL_LINKS.0, ALL_LINKS.1);
    run_counting(&mut command)
}

/// Runs the tests in as many machines as there are to be, and gives what came of each binary in each of them.
fn nested(
    tests: &[Tests],
    release: Release,
    image: &Image,
    selection: &Selection<'_>,
) -> Vec<Result<(Count, i32)>> {
    let most = tests.iter().map(|tests| tests.names.len()).max();
    let machines = selection.machines.clamp(1, most.unwrap_or(0).max(1));
    thread::scope(|scope| {
        let running: Vec<_> = (0..machines)
            .map(|machine| {
                let share = share(tests, machine, machines);
                let name = match machine {
                    0 => selection.name.to_owned(),
                    _ => format!("{}-{}", selection.name, machine + 1),
                };
                scope.spawn(move || {
                    let machine = Instance::of_release(&name, release)?;
                    in_machine(machine, image.clone(), selection, &share)
                })
            })
            .collect();
        running
            .into_iter()
            .flat_map(
                |thread| match thread.join().expect("no thread of these panics") {
                    Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(error)],
                },
            )
            .collect()
    })
}

/// What of the tests is a machine's: neighbours in the list are alike, in how long they take too.
fn share(tests: &[Tests], machine: usize, machines: usize) -> Vec<Tests> {
    tests
        .iter()
        .map(|tests| Tests {
            binary: tests.binary.clone(),
            names: tests
                .names
                .iter()
                .skip(machine)
                .step_by(machines)
                .cloned()
                .collect(),
        })
        .filter(|share| !share.names.is_empty())
        .collect()
}

/// The names of the tests that the selection holds.
fn list(binary: &Path, selection: &Selection<'_>) -> Result<Vec<String>> {
    let mut list = Command::new(binary);
    list.args(selection.filter)
        .args(&selection.options)
        .args(["--list", "--format=terse"]);
    let line = command::line_of(&list);
    let output = list.output().with_context(|| line.clone())?;
    ensure!(
        output.status.success(),
        "`{line}`: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect())
}

/// Runs tests in a machine, freshly restored, one binary after the other. When all have passed, no process of hull may be
/// left.
fn in_machine(
    machine: Instance,
    image: Image,
    selection: &Selection<'_>,
    share: &[Tests],
) -> Result<Vec<(Count, i32)>> {
    let machine = machine.start(image, true)?;
    let mut outcomes = Vec::new();
    for tests in share {
        let file = tests.binary.file_name().context("a binary has a name")?;
        let handed_over = machine.out().join(file);
        fs::copy(&tests.binary, &handed_over)?;
        let mut words: Vec<OsString> = ["sh", "-c", RUN, "sh"].map(OsString::from).into();
        words.push(file.to_owned());
        words.extend(arguments(&tests.names, selection));
        let variables = [(ALL_LINKS.0.into(), ALL_LINKS.1.into())];
        let outcome = run_counting(
            machine
                .command(&words, &variables, Terminal::No)
                .stdin(Stdio::null()),
        );
        fs::remove_file(handed_over)?;
        let outcome = outcome?;
        if outcome.1 == ssh::LOST
            && let Some(end) = machine.its_end()?
        {
            bail!("the machine is lost with the cases that ran in it: {end}");
        }
        outcomes.push(outcome);
    }
    if outcomes.iter().all(|(_, code)| *code == 0) {
        let look = ["sh", "-c", LEFT_RUNNING].map(OsString::from);
        let looked = machine.command(&look, &[], Terminal::No).output()?;
        ensure!(looked.status.success(), "what is left cannot be seen");
        let left = String::from_utf8_lossy(&looked.stdout);
        ensure!(left.trim().is_empty(), "the cases left running: {left}");
    }
    let machine = machine.into_instance();
    if !selection.keep {
        machine.stop()?;
    }
    Ok(outcomes)
}

/// The PATH in which this checkout's hull comes first.
pub(crate) fn path_with_prefix() -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let prefix = std::iter::once(workspace::prefix().join("bin"));
    Ok(std::env::join_paths(
        prefix.chain(std::env::split_paths(&path)),
    )?)
}

/// Runs a test binary with its output on ours, and gives its cases and its exit code. The account of what failed, which
/// has many lines, comes as one.
fn run_counting(command: &mut Command) -> Result<(Count, i32)> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("the output is a pipe")?;
    let mut count = Count::default();
    let mut account = Vec::new();
    for line in BufReader::new(stdout).split(b'\n') {
        let mut line = line?;
        count.add(&String::from_utf8_lossy(&line));
        let in_account = !account.is_empty() || line == b"failures:";
        line.push(b'\n');
        if in_account {
            account.append(&mut line);
        } else {
            std::io::stdout().write_all(&line)?;
        }
    }
    std::io::stdout().write_all(&account)?;
    Ok((count, super::instance::exit_code(child.wait()?)))
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
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
