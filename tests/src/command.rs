//! Commands with a time limit, whose whole output is kept.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long any one command of a case may take. Machines are slow, shared and nested: this catches what hangs.
pub const LIMIT: Duration = Duration::from_secs(240);

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status; 128 + N if signal N ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, as text.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts the exit status, showing all output if it is another.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            code,
            "exit status; stdout: {}; stderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }

    /// Asserts that the command failed, and that standard error has each of `words`.
    #[track_caller]
    pub fn expect_error(self, words: &[&str]) -> Self {
        assert_ne!(self.code, 0, "should have failed; stdout: {}", self.text());
        for word in words {
            assert!(
                self.stderr.contains(word),
                "{word:?} is not in {:?}",
                self.stderr
            );
        }
        self
    }
}

/// `program`, run by what the words `within` are, if there are any.
pub(crate) fn command_within(within: &[String], program: &str) -> Command {
    let mut words = within.iter().map(String::as_str).chain([program]);
    let mut command = Command::new(words.next().unwrap_or(program));
    command.args(words);
    command
}

/// Runs `program` with `arguments` and no input.
///
/// # Panics
/// It cannot be started, or runs for longer than [`LIMIT`].
#[track_caller]
#[must_use]
pub fn run(program: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(&mut command, Vec::new())
}

/// Runs `program`, which must succeed, and gives its standard output as text.
///
/// # Panics
/// It fails.
#[track_caller]
pub fn run_ok(program: &str, arguments: &[&str]) -> String {
    run(program, arguments).expect(0).text()
}

/// Runs a prepared command with `input` as its standard input.
///
/// # Panics
/// It cannot be started, or runs for longer than [`LIMIT`].
#[track_caller]
#[must_use]
pub fn finish(command: &mut Command, input: Vec<u8>) -> Finished {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    // A command that does not read its input to the end is no failure of the writer.
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let code = wait(&mut child).unwrap_or_else(|| panic!("{command:?} still runs after {LIMIT:?}"));
    Finished {
        code,
        stdout: stdout.join().expect("reader"),
        stderr: String::from_utf8_lossy(&stderr.join().expect("reader")).into_owned(),
    }
}

/// Undoes something when a value goes, perhaps because its case has failed: a second panic would end all cases.
pub fn undo(work: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work))
        && !std::thread::panicking()
    {
        resume_unwind(panic);
    }
}

/// Waits for a child for at most [`LIMIT`], then kills it and gives nothing.
///
/// # Panics
/// The child cannot be waited for.
pub fn wait(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(
                status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(child.kill());
    drop(child.wait());
    None
}

/// Asks `condition` until it holds; false if it does not within [`LIMIT`].
pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > LIMIT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream
            .read_to_end(&mut bytes)
            .expect("read a child's output");
        bytes
    })
}
