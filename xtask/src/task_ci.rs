//! `cargo xtask ci`: every check, from the host's packages to the cases on real guests.
//!
//! All steps run, also after one that failed. Each test counts as itself, and each other step as
//! one. The last line that is written says how many passed and how many failed.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::AddAssign;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::progress::clock;
use crate::{command, workspace};

#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// A step: its name, what it runs, and whether its output holds the results of tests.
struct Step {
    name: &'static str,
    program: Program,
    arguments: &'static [&'static str],
    tests: bool,
}

#[derive(Clone, Copy)]
enum Program {
    Cargo,
    /// A task of this program, in a process of its own so that its output can be kept apart.
    Xtask,
}

/// Packages come first since the others need them; the cases last, on what `build` made.
const STEPS: [Step; 7] = [
    Step {
        name: "packages",
        program: Program::Xtask,
        arguments: &["deps"],
        tests: false,
    },
    Step {
        name: "formatting",
        program: Program::Cargo,
        arguments: &["fmt", "--all", "--check"],
        tests: false,
    },
    Step {
        name: "lints",
        program: Program::Cargo,
        arguments: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ],
        tests: false,
    },
    Step {
        name: "unit and device tests",
        program: Program::Cargo,
        arguments: &[
            "test",
            "--workspace",
            "--exclude",
            "hull-tests",
            "--no-fail-fast",
        ],
        tests: true,
    },
    Step {
        name: "paths in documents",
        program: Program::Xtask,
        arguments: &["architecture"],
        tests: false,
    },
    Step {
        name: "build",
        program: Program::Xtask,
        arguments: &["build"],
        tests: false,
    },
    Step {
        name: "cases",
        program: Program::Xtask,
        arguments: &["testbed", "test"],
        tests: true,
    },
];

/// How long the last lines of a step that has ended may be under way.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// What came of a step.
struct Outcome {
    name: &'static str,
    tally: Tally,
    elapsed: Duration,
    /// Why the step failed, if it did so by more than its tests.
    error: Option<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.tally.failed == 0 {
            "ok"
        } else {
            "FAILED"
        };
        write!(
            formatter,
            "{}  {:6}  {}",
            clock(self.elapsed),
            verdict,
            self.name
        )?;
        let Tally {
            passed,
            failed,
            ignored,
        } = self.tally;
        if passed + failed + ignored > 1 {
            write!(
                formatter,
                ": {passed} passed, {failed} failed, {ignored} ignored"
            )?;
        }
        match &self.error {
            Some(error) => write!(formatter, " ({error})"),
            None => Ok(()),
        }
    }
}

/// Runs all steps. The exit code is that of the whole: it is not 0 if something failed or if no
/// test ran.
pub(crate) fn run(_arguments: &Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for step in &STEPS {
        println!("\n{}  {}", clock(started.elapsed()), step.name);
        let outcome = step.run();
        println!("{outcome}");
        outcomes.push(outcome);
    }

    println!("\n{}  all steps", clock(started.elapsed()));
    let mut sum = Tally::default();
    for outcome in &outcomes {
        println!("{outcome}");
        sum += outcome.tally;
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    Ok(if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Step {
    fn run(&self) -> Outcome {
        let started = Instant::now();
        let (tally, error) = judge(self.tests, self.execute());
        Outcome {
            name: self.name,
            tally,
            elapsed: started.elapsed(),
            error,
        }
    }

    /// Runs the step with its output on the terminal. Returns the results of tests that it told,
    /// and whether it ended well.
    fn execute(&self) -> Result<(Tally, bool)> {
        let mut command = match self.program {
            Program::Cargo => workspace::cargo(),
            Program::Xtask => Command::new(std::env::current_exe()?),
        };
        command
            .args(self.arguments)
            .stdin(Stdio::null())
            .current_dir(workspace::root());
        let line = command::line_of(&command);
        if !self.tests {
            let status = command
                .status()
                .with_context(|| format!("cannot start `{line}`"))?;
            return Ok((Tally::default(), status.success()));
        }
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        let output = child.stdout.take().context("the step's output is a pipe")?;
        let (results, received) = mpsc::channel();
        std::thread::spawn(move || copy_and_read(output, &results));
        let status = child.wait()?;
        // A process that the step left in the background may hold the pipe: the step is over all
        // the same.
        let mut tally = Tally::default();
        while let Ok(result) = received.recv_timeout(LAST_OUTPUT) {
            tally += result;
        }
        Ok((tally, status.success()))
    }
}

/// What a step counts as, and why it failed if it did so by more than its tests. `tests` is whether
/// it was to run some; `executed` has the results of tests and whether the step ended well.
fn judge(tests: bool, executed: Result<(Tally, bool)>) -> (Tally, Option<String>) {
    let (tally, error) = match executed {
        Ok((tally, true)) if !tests => {
            return (
                Tally {
                    passed: tally.passed + 1,
                    ..tally
                },
                None,
            );
        }
        Ok((tally, true)) if tally.passed > 0 => return (tally, None),
        Ok((tally, false)) if tally.failed > 0 => return (tally, None),
        Ok((tally, true)) => (tally, "no test ran".to_owned()),
        Ok((tally, false)) => (tally, "see above".to_owned()),
        Err(error) => (Tally::default(), format!("{error:#}")),
    };
    (
        Tally {
            failed: tally.failed + 1,
            ..tally
        },
        Some(error),
    )
}

/// Copies a step's standard output to ours, and sends the results of tests in it, until it ends or
/// nobody wants them.
fn copy_and_read(output: impl Read, results: &mpsc::Sender<Tally>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output
        .read_until(b'\n', &mut line)
        .is_ok_and(|length| length > 0)
    {
        // If standard output is gone there is nobody to tell; the exit code still counts.
        let _ = std::io::stdout().write_all(&line);
        if let Some(result) = test_result(&String::from_utf8_lossy(&line))
            && results.send(result).is_err()
        {
            return;
        }
        line.clear();
    }
}

/// Reads the line with which a test binary ends:
/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`.
fn test_result(line: &str) -> Option<Tally> {
    let (_, counts) = line
        .trim()
        .strip_prefix("test result: ")?
        .split_once(". ")?;
    let count = |wanted: &str| {
        counts.split(';').find_map(|part| {
            let (number, what) = part.trim().split_once(' ')?;
            (what == wanted).then(|| number.parse().ok())?
        })
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
        ignored: count("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_a_test_binary_are_read() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered \
                    out; finished in 0.10s";
        assert_eq!(
            test_result(line),
            Some(Tally {
                passed: 12,
                failed: 2,
                ignored: 1
            })
        );
        assert_eq!(test_result("test bundle::tests::parses ... ok"), None);
        assert_eq!(test_result("test result: ok. many passed"), None);
    }

    const NOTHING: Tally = Tally {
        passed: 0,
        failed: 0,
        ignored: 0,
    };
    const ONE_FAILED: Tally = Tally {
        failed: 1,
        ..NOTHING
    };

    #[test]
    fn a_step_without_tests_counts_as_one() {
        let (tally, error) = judge(false, Ok((NOTHING, true)));
        assert_eq!((tally.passed, tally.failed, error), (1, 0, None));
        let (tally, error) = judge(false, Ok((NOTHING, false)));
        assert_eq!((tally, error.as_deref()), (ONE_FAILED, Some("see above")));
    }

    #[test]
    fn a_step_that_should_test_and_did_not_has_failed() {
        let (tally, error) = judge(true, Ok((NOTHING, true)));
        assert_eq!((tally, error.as_deref()), (ONE_FAILED, Some("no test ran")));
        let (tally, error) = judge(true, Err(anyhow::anyhow!("cannot start")));
        assert_eq!(
            (tally, error.as_deref()),
            (ONE_FAILED, Some("cannot start"))
        );
    }

    #[test]
    fn a_step_that_broke_after_its_tests_passed_has_failed() {
        let passed = Tally {
            passed: 3,
            ..NOTHING
        };
        let (tally, _) = judge(true, Ok((passed, false)));
        assert_eq!((tally.passed, tally.failed), (3, 1));
    }

    #[test]
    fn a_step_runs_and_its_results_are_read() {
        let step = |arguments| Step {
            name: "a step",
            program: Program::Cargo,
            arguments,
            tests: true,
        };
        assert_eq!(step(&["--version"]).run().tally, ONE_FAILED);
    }
}
