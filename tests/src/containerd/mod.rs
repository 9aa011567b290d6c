//! containerd with hull as the runtime `io.containerd.hull.v2`: the machine's own, or one that a case starts for itself,
//! to configure or to kill it.

pub mod cri;
mod instance;
pub mod streaming;

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_shim_protos::Client;
use containerd_shim_protos::sandbox_sync::SandboxClient;
pub use cri::Cri;
use instance::{Instance, Sandboxer};
pub use streaming::Streams;

use crate::command::{Finished, eventually, finish, run, run_ok, undo};
use crate::unique;

/// Where the shim keeps the state of the containers that are made here.
pub const ROOT: &str = "/run/hull/containerd/default";
/// hull's shim, as containerd knows it.
pub const RUNTIME: &str = "io.containerd.hull.v2";
/// The machine's busybox.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";
/// The machine's own.
const ADDRESS: &str = "/run/containerd/containerd.sock";

/// Its client `ctr`. When it goes, so do the containers that were made by it.
#[derive(Debug)]
pub struct Containerd {
    runtime: &'static str,
    address: PathBuf,
    instance: Option<Instance>,
    made: RefCell<Vec<String>>,
}

impl Containerd {
    /// The machine's own.
    #[must_use]
    pub fn of_machine() -> Self {
        Self::with_runtime(RUNTIME)
    }

    /// The machine's own with another runtime, for cases that hold for both.
    #[must_use]
    pub fn with_runtime(runtime: &'static str) -> Self {
        Self {
            runtime,
            address: ADDRESS.into(),
            instance: None,
            made: RefCell::default(),
        }
    }

    /// Starts another one, which has the busybox image in its namespace `namespace`. It runs `sleep` unless it is told
    /// what to run, so that it can be the image that holds a pod.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_own(namespace: &str) -> Self {
        Self::start_own_with("overlayfs", namespace)
    }

    /// The same with the image unpacked by `snapshotter`.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_own_with(snapshotter: &str, namespace: &str) -> Self {
        Self::start_instance(snapshotter, namespace, Sandboxer::Container)
    }

    /// The same in the namespace of Kubernetes, whose pods hull's shim holds; none where containerd is older than 2, which
    /// cannot have it so.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_own_without_pause() -> Option<Self> {
        is_version_2("pods held by the shim")
            .then(|| Self::start_instance("overlayfs", "k8s.io", Sandboxer::Shim))
    }

    /// As [`start_own_with`](Self::start_own_with) does, with a snapshotter that containerd has from 2 on; none where it is
    /// older.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_own_of_version_2(snapshotter: &str) -> Option<Self> {
        is_version_2(snapshotter).then(|| Self::start_own_with(snapshotter, "default"))
    }

    fn start_instance(snapshotter: &str, namespace: &str, sandboxer: Sandboxer) -> Self {
        let instance = Instance::start(snapshotter, sandboxer);
        let containerd = Self {
            runtime: RUNTIME,
            address: instance.address(),
            instance: Some(instance),
            made: RefCell::default(),
        };
        containerd.await_running();
        containerd.import_busybox(snapshotter, namespace);
        containerd
    }

    fn import_busybox(&self, snapshotter: &str, namespace: &str) {
        let archive = tempfile::NamedTempFile::new().expect("temporary file");
        let archive = archive.path().to_str().expect("UTF-8");
        let image = unique("image");
        let make = format!(
            "tar -C /var/lib/testbed/busybox -c . |
             docker import --change 'CMD [\"sleep\", \"100000\"]' - {image}
             docker tag {image} busybox:of-case
             docker save -o {archive} busybox:of-case; docker rmi busybox:of-case {image}"
        );
        run_ok("sh", &["-ec", &make]);
        // containerd 2 unpacks by itself only for the snapshotters that its transfer service is configured for.
        let import = [
            "image",
            "import",
            "--local",
            "--snapshotter",
            snapshotter,
            archive,
        ];
        self.ok(&[&["--namespace", namespace], &import[..]].concat());
        self.ok(&[
            "--namespace",
            namespace,
            "image",
            "tag",
            "docker.io/library/busybox:of-case",
            BUSYBOX,
        ]);
    }

    /// Kills it.
    ///
    /// # Panics
    /// It is the machine's own.
    pub fn kill(&self) {
        self.instance.as_ref().expect("the case's own").kill();
    }

    /// Starts it again.
    ///
    /// # Panics
    /// It is the machine's own, or does not start.
    pub fn restart(&self) {
        self.instance.as_ref().expect("the case's own").restart();
        self.await_running();
    }

    #[track_caller]
    fn await_running(&self) {
        // Some of its services come after others.
        let answers = eventually(|| self.ctr(&["task", "ls"]).code == 0);
        assert!(answers, "containerd does not answer: {}", self.log());
    }

    fn log(&self) -> String {
        self.instance.as_ref().map_or(String::new(), Instance::log)
    }

    /// Its Kubernetes side.
    ///
    /// # Panics
    /// It is the machine's own.
    #[must_use]
    pub fn cri(&self) -> Cri {
        Cri::new(self.instance.as_ref().expect("the case's own").address())
    }

    /// The Sandbox API of the shim that holds a pod.
    ///
    /// # Panics
    /// No shim of this containerd does, or it is the machine's own.
    #[must_use]
    pub fn sandbox_api(&self, pod: &str) -> SandboxClient {
        let instance = self.instance.as_ref().expect("the case's own");
        let address = instance.shim_address(pod);
        SandboxClient::new(Client::connect(&address).expect("the shim"))
    }

    /// A command of `ctr`, to be finished by the case.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.address).args(words);
        command
    }

    /// Runs a command of `ctr` without input.
    #[track_caller]
    #[must_use]
    pub fn ctr(&self, words: &[&str]) -> Finished {
        finish(&mut self.command(words), Vec::new())
    }

    /// Runs a command of `ctr` that must succeed, and gives its standard output.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        self.ctr(words).expect(0).text()
    }

    fn words<'a>(&self, options: &[&'a str], id: &'a str, args: &[&'a str]) -> Vec<&'a str> {
        let first = ["run", "--runtime", self.runtime];
        [&first, options, &[BUSYBOX, id], args].concat()
    }

    fn new_id(&self) -> String {
        let id = unique("task");
        self.made.borrow_mut().push(id.clone());
        id
    }

    /// A command that runs a container of the busybox image to its end, and removes it.
    #[must_use]
    pub fn foreground(&self, options: &[&str], args: &[&str]) -> Command {
        let id = self.new_id();
        self.command(&self.words(&[&["--rm"], options].concat(), &id, args))
    }

    /// Starts a container that runs a shell script, and gives its id.
    #[track_caller]
    pub fn start(&self, options: &[&str], script: &str) -> String {
        let id = self.new_id();
        let options = [&["--detach"], options].concat();
        self.ok(&self.words(&options, &id, &["sh", "-c", script]));
        id
    }

    /// A command that runs a shell script in a container.
    #[must_use]
    pub fn exec_command(&self, options: &[&str], id: &str, script: &str) -> Command {
        let exec_id = unique("exec");
        let words = ["task", "exec", "--exec-id", &exec_id];
        self.command(&[&words[..], options, &[id, "sh", "-c", script]].concat())
    }

    /// Runs a shell script in a container.
    #[track_caller]
    #[must_use]
    pub fn exec(&self, id: &str, script: &str) -> Finished {
        finish(&mut self.exec_command(&[], id, script), Vec::new())
    }

    /// A task's pid and its state, as `ctr task ls` has it; none if there is no such task.
    #[track_caller]
    #[must_use]
    pub fn task(&self, id: &str) -> Option<(String, String)> {
        self.ok(&["task", "ls"]).lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let is_it = words.next() == Some(id);
            is_it.then(|| Some((words.next()?.into(), words.next()?.into())))?
        })
    }

    /// Waits until a task's state is `state`.
    ///
    /// # Panics
    /// It does not become so.
    #[track_caller]
    pub fn await_state(&self, id: &str, state: &str) {
        let mut last = None;
        let reached = eventually(|| {
            last = self.task(id);
            last.as_ref().is_some_and(|(_, current)| current == state)
        });
        assert!(reached, "{id} is {last:?}, not {state}: {}", self.log());
    }

    /// Deletes a task that has ended with its container, and gives its exit code.
    ///
    /// # Panics
    /// It runs.
    #[track_caller]
    pub fn delete(&self, id: &str) -> i32 {
        let deleted = self.ctr(&["task", "delete", id]).expect(0);
        let told = deleted.stderr.split("non-zero exit code ").nth(1);
        let code = told.map_or(0, |text| {
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().expect("a number")
        });
        self.ok(&["container", "delete", id]);
        self.made.borrow_mut().retain(|made| made != id);
        code
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for id in self.made.take() {
            undo(|| {
                // Most are gone.
                let _ = self.ctr(&["task", "delete", "--force", &id]);
                let _ = self.ctr(&["container", "delete", &id]);
            });
        }
    }
}

/// The process that serves a task: the parent of its process proxy.
///
/// # Panics
/// There is no such process.
#[track_caller]
#[must_use]
pub fn shim_of(proxy: &str) -> String {
    let status = std::fs::read_to_string(Path::new("/proc").join(proxy).join("status"));
    let status = status.expect("the proxy's status");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let parent = parent.expect("a parent").trim().to_owned();
    let line = run("cat", &[&format!("/proc/{parent}/cmdline")]).text();
    assert!(line.starts_with("containerd-shim-hull-v2"), "{line}");
    parent
}

/// Whether the machine's containerd is not older than 2; says that the case is left out if it is, for `what` is not there.
fn is_version_2(what: &str) -> bool {
    let told = run_ok("containerd", &["--version"]);
    let version = told.split_whitespace().nth(2).expect("a version");
    let major = version.trim_start_matches('v').split('.').next();
    let is_2 = major.and_then(|major| major.parse().ok()) >= Some(2);
    if !is_2 {
        // Also of a case that passes.
        let _ = writeln!(
            io::stderr(),
            "left out: containerd {version} does not have {what}, and 2 does"
        );
    }
    is_2
}
