//! The `hull` command with a state directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Finished, command_within, finish, undo};
use crate::{Bundle, Systemd};

/// `hull --root <a directory of its own>`. When it goes, the containers that a failed case left go as well.
#[derive(Debug)]
pub struct Hull {
    /// The words before the program, if it is run by another.
    within: Vec<String>,
    program: &'static str,
    root: TempDir,
    global: Vec<String>,
}

impl Default for Hull {
    fn default() -> Self {
        Self::new()
    }
}

impl Hull {
    /// A fresh state directory.
    ///
    /// # Panics
    /// There is no room for it.
    #[must_use]
    pub fn new() -> Self {
        Self::of_program("hull")
    }

    /// Another runtime with the same command line, for cases that hold for both.
    ///
    /// # Panics
    /// There is no room for its state.
    #[must_use]
    pub fn of_program(program: &'static str) -> Self {
        let root = TempDir::with_prefix("hull-root-").expect("temporary directory");
        Self {
            within: Vec::new(),
            program,
            root,
            global: Vec::new(),
        }
    }

    /// The same with further global options.
    #[must_use]
    pub fn with_options(options: &[&str]) -> Self {
        let mut hull = Self::new();
        hull.global = options.iter().map(|&option| option.to_owned()).collect();
        hull
    }

    /// The same where `systemd` is the first process, which makes its cgroups.
    #[must_use]
    pub fn within(mut self, systemd: &Systemd) -> Self {
        self.within = systemd.enter();
        self.global.push("--systemd-cgroup".into());
        self
    }

    /// The state directory.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.root.path().to_owned()
    }

    /// The command, to be finished by the case.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command_within(&self.within, self.program);
        command
            .arg("--root")
            .arg(self.root.path())
            .args(&self.global)
            .args(arguments);
        command
    }

    /// Runs one hull command without input.
    #[track_caller]
    #[must_use]
    pub fn hull(&self, arguments: &[&str]) -> Finished {
        self.hull_with_input(arguments, Vec::new())
    }

    /// Runs one hull command with input.
    #[track_caller]
    #[must_use]
    pub fn hull_with_input(&self, arguments: &[&str], input: Vec<u8>) -> Finished {
        finish(&mut self.command(arguments), input)
    }

    /// `hull run --bundle BUNDLE ID`, in the foreground.
    #[track_caller]
    #[must_use]
    pub fn run(&self, bundle: &Bundle, id: &str) -> Finished {
        self.hull(&["run", "--bundle", bundle.arg(), id])
    }

    /// `hull create`, whose container has no input and writes into a file of the bundle that is given back.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    #[must_use]
    pub fn create(&self, bundle: &Bundle, id: &str) -> PathBuf {
        let output = bundle.path().join(format!("{id}.out"));
        let file = std::fs::File::create(&output).expect("output file");
        let error = bundle.path().join(format!("{id}.err"));
        let error_file = std::fs::File::create(&error).expect("error file");
        let status = self
            .command(&["create", "--bundle", bundle.arg(), id])
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(error_file)
            .status()
            .expect("hull in the PATH");
        assert!(
            status.success(),
            "create: {}",
            std::fs::read_to_string(error).unwrap_or_default()
        );
        output
    }

    /// `hull state ID`.
    ///
    /// # Panics
    /// It fails or does not print JSON.
    #[track_caller]
    #[must_use]
    pub fn state(&self, id: &str) -> Value {
        serde_json::from_slice(&self.hull(&["state", id]).expect(0).stdout).expect("JSON")
    }

    /// The pid of the VMM that the container `id` was given for its own.
    ///
    /// # Panics
    /// It has none.
    #[track_caller]
    #[must_use]
    pub fn vmm(&self, id: &str) -> i32 {
        vmm_of(&self.root(), id)
    }

    /// Waits until the container's status is `status`.
    ///
    /// # Panics
    /// It does not become so.
    #[track_caller]
    pub fn await_status(&self, id: &str, status: &str) {
        let mut last = Value::Null;
        let reached = crate::command::eventually(|| {
            last = self.state(id);
            last["status"] == status
        });
        assert!(reached, "the status should become {status}: {last}");
    }
}

impl Drop for Hull {
    fn drop(&mut self) {
        undo(|| {
            let list = self.hull(&["list", "--quiet"]);
            for id in list.text().lines() {
                drop(self.hull(&["delete", "--force", id]));
            }
        });
    }
}

/// The pid of the VMM of the sandbox `id` below the state directory `root`.
///
/// # Panics
/// There is none.
#[track_caller]
#[must_use]
pub fn vmm_of(root: &Path, id: &str) -> i32 {
    pids_of(root, id).vmm
}

/// The processes of a sandbox on the host.
#[derive(Clone, Copy, Debug)]
pub struct SandboxPids {
    /// Its VMM.
    pub vmm: i32,
    /// Its monitor.
    pub monitor: i32,
}

/// The processes of the sandbox `id` below the state directory `root`.
///
/// # Panics
/// They are not all there.
#[track_caller]
#[must_use]
pub fn pids_of(root: &Path, id: &str) -> SandboxPids {
    let path = root.join("sandboxes").join(id).join("sandbox.json");
    let record = std::fs::read(&path).expect("the sandbox's record");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    let pid = |process: &str| {
        let pid = record[process]["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok());
        pid.unwrap_or_else(|| panic!("no {process} in {record}"))
    };
    SandboxPids {
        vmm: pid("vmm"),
        monitor: pid("monitor"),
    }
}
