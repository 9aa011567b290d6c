//! The container engines of the machine, Docker and Podman, with hull as their runtime.

use std::cell::RefCell;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::{NamedTempFile, TempDir};

use crate::command::{Finished, command_within, eventually, finish, undo, wait};
use crate::unique;

/// The command line of an engine. When it goes, the pods, containers and networks go that were made by it.
#[derive(Debug)]
pub struct Engine {
    /// The words before the program, if it is run by another.
    within: Vec<String>,
    program: &'static str,
    /// Before the command: how the engine is told to use hull, if not by an option of the command.
    global: &'static [&'static str],
    /// After `run`: the same.
    run: &'static [&'static str],
    /// What removes a container at once, whether it runs or not.
    remove: &'static [&'static str],
    /// Where hull keeps the state of this engine's containers.
    root: &'static str,
    names: RefCell<Vec<Made>>,
}

/// What has to go again.
#[derive(Debug)]
enum Made {
    Container(String),
    Network(String),
    Pod(String),
}

impl Engine {
    /// Docker, through containerd's shim for runc.
    #[must_use]
    pub fn docker() -> Self {
        Self {
            within: Vec::new(),
            program: "docker",
            global: &[],
            run: &["--runtime", "hull"],
            remove: &["rm", "--force"],
            root: "/var/run/docker/runtime-runc/moby",
            names: RefCell::default(),
        }
    }

    /// Docker's ways to hull: as the program that containerd's shim for runc runs, and, from Docker 23 on, by hull's own
    /// shim.
    ///
    /// # Panics
    /// Docker does not tell its version.
    #[track_caller]
    #[must_use]
    pub fn dockers() -> Vec<Self> {
        let docker = Self::docker();
        let version = docker.ok(&["version", "--format", "{{.Server.Version}}"]);
        let major = version.split('.').next().map(str::parse::<u32>);
        let knows_shims = major.is_some_and(|major| major.expect("a version") >= 23);
        let by_shim = knows_shims.then(Self::docker_by_shim);
        [docker].into_iter().chain(by_shim).collect()
    }

    /// Its name of hull.
    #[must_use]
    pub fn runtime(&self) -> &'static str {
        self.run.last().copied().unwrap_or_default()
    }

    /// Docker, through hull's own shim for containerd.
    #[must_use]
    pub fn docker_by_shim() -> Self {
        Self {
            within: Vec::new(),
            program: "docker",
            global: &[],
            run: &["--runtime", "io.containerd.hull.v2"],
            remove: &["rm", "--force"],
            root: "/run/hull/containerd/moby",
            names: RefCell::default(),
        }
    }

    /// Podman, through conmon.
    #[must_use]
    pub fn podman() -> Self {
        Self {
            within: Vec::new(),
            program: "podman",
            global: &["--runtime", "hull"],
            run: &[],
            remove: &["rm", "--force", "--time", "0"],
            root: "/run/hull",
            names: RefCell::default(),
        }
    }

    /// The same with further words before the command's.
    #[must_use]
    pub fn within(mut self, words: Vec<String>) -> Self {
        self.within = words;
        self
    }

    /// hull's state directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        Path::new(self.root)
    }

    /// Runs a command of the engine.
    #[track_caller]
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Finished {
        let mut command = command_within(&self.within, self.program);
        finish(command.args(words), Vec::new())
    }

    /// Runs a command of the engine that must succeed, and gives its standard output.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        self.command(words).expect(0).text()
    }

    /// The words of a command line that runs a container of the busybox image under hull, and removes it.
    #[must_use]
    pub fn foreground<'a>(&self, options: &[&'a str], args: &[&'a str]) -> Vec<&'a str> {
        [
            self.global,
            &["run", "--rm"],
            self.run,
            options,
            &["busybox"],
            args,
        ]
        .concat()
    }

    /// Runs a container under hull to its end.
    #[track_caller]
    #[must_use]
    pub fn run(&self, options: &[&str], args: &[&str]) -> Finished {
        self.command(&self.foreground(options, args))
    }

    /// Starts a container under hull that runs a shell script, and gives its name.
    #[track_caller]
    pub fn start(&self, options: &[&str], script: &str) -> String {
        self.start_with(self.global, self.run, options, script)
    }

    /// Starts a container under the engine's own runtime.
    #[track_caller]
    pub fn start_plain(&self, options: &[&str], script: &str) -> String {
        self.start_with(&[], &[], options, script)
    }

    #[track_caller]
    fn start_with(&self, global: &[&str], run: &[&str], options: &[&str], script: &str) -> String {
        let name = self.name();
        let start = ["run", "--detach", "--name", &name];
        let program = ["busybox", "sh", "-c", script];
        self.ok(&[global, &start, run, options, &program].concat());
        name
    }

    /// A name for a container that is made by a command of the case's own.
    #[must_use]
    pub fn name(&self) -> String {
        let name = unique("c");
        self.names.borrow_mut().push(Made::Container(name.clone()));
        name
    }

    /// Makes a network and gives its name.
    #[track_caller]
    pub fn network(&self) -> String {
        let name = unique("n");
        self.ok(&["network", "create", &name]);
        self.names.borrow_mut().push(Made::Network(name.clone()));
        name
    }

    /// Makes a pod of Podman's under hull, with a container of the busybox image to hold its namespaces, and gives its
    /// name.
    #[track_caller]
    pub fn pod(&self, options: &[&str]) -> String {
        let name = unique("p");
        let infra = [
            "--infra-image",
            "busybox",
            "--infra-command",
            "sleep 100000",
        ];
        let create = ["pod", "create", "--name", &name];
        self.names.borrow_mut().push(Made::Pod(name.clone()));
        // Podman of Debian 12 lets nothing below a pod's cgroup open any device, unless systemd makes that: under runc and
        // crun no container starts there.
        let old = self.ok(&["--version"]).contains(" 4.3.");
        let parent: &[&str] = if old { &["--share-parent=false"] } else { &[] };
        self.ok(&[self.global, &create, &infra, parent, options].concat());
        name
    }

    /// Runs a shell script in a container.
    #[track_caller]
    #[must_use]
    pub fn exec(&self, container: &str, script: &str) -> Finished {
        self.command(&["exec", container, "sh", "-c", script])
    }

    /// Runs a shell script in a container until it succeeds, and gives its output.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn eventually(&self, container: &str, script: &str) -> String {
        let mut last = None;
        let succeeded = eventually(|| {
            let finished = self.exec(container, script);
            let succeeded = finished.code == 0;
            last = Some(finished);
            succeeded
        });
        assert!(succeeded, "{script}: {last:?}");
        last.map(|finished| finished.text()).unwrap_or_default()
    }

    /// What `ip addr` prints in a container, once the kernel is done with what it does by itself with a new `eth0`: it
    /// has its carrier, and its link-local address if it is to have one.
    ///
    /// # Panics
    /// It never is.
    #[track_caller]
    #[must_use]
    pub fn settled_links(&self, container: &str) -> String {
        self.eventually(
            container,
            "case $(ip addr show dev eth0) in *tentative*|*NO-CARRIER*) exit 1 ;; *LOWER_UP*) ;; *) exit 1 ;; esac; \
             grep -q 1 /proc/sys/net/ipv6/conf/eth0/disable_ipv6 || ip addr show dev eth0 | grep -q fe80 || exit 1; \
             ip addr",
        )
    }

    /// Checks that a container which fails is started again as often as it was asked for.
    ///
    /// # Panics
    /// It is not.
    #[track_caller]
    pub fn starts_again_what_fails(&self) {
        let container = self.start(&["--restart", "on-failure:1"], "exit 4");
        let state = "{{.RestartCount}} {{.State.ExitCode}} {{.State.Status}}";
        assert!(eventually(|| {
            self.ok(&["inspect", "--format", state, &container]) == "1 4 exited\n"
        }));
    }

    /// What is written to a container that was attached to arrives, and what it has made is in an image of it.
    ///
    /// # Panics
    /// It does not, or is not.
    #[track_caller]
    pub fn attaches_to_a_container_and_commits_it(&self) {
        let container = self.start(
            &["--interactive"],
            "while read line && [ $line != end ]; do echo got $line; echo $line >> /lines; done; exit 5",
        );
        let mut attach = Command::new(self.program)
            .args(["attach", "--sig-proxy=false", &container])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the engine");
        let mut input = attach.stdin.take().expect("piped");
        input.write_all(b"word\n").expect("attached");
        assert!(eventually(|| self.ok(&["logs", &container]) == "got word\n"));
        let image = format!("localhost/{}", unique("committed"));
        self.ok(&["commit", &container, &image]);
        input.write_all(b"end\n").expect("attached");
        assert_eq!(self.ok(&["wait", &container]), "5\n");
        wait(&mut attach).expect("attach ends with the container");
        let of_image = [image.as_str(), "cat", "/lines"];
        let run = [self.global, &["run", "--rm"], self.run, &of_image].concat();
        assert_eq!(self.ok(&run), "word\n");
        self.ok(&["rmi", &image]);
    }

    /// Removes a container by force.
    #[track_caller]
    pub fn remove(&self, container: &str) {
        self.ok(&[self.remove, &[container]].concat());
        self.names
            .borrow_mut()
            .retain(|made| !matches!(made, Made::Container(name) if name == container));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The last first: a container keeps its network.
        for made in self.names.take().into_iter().rev() {
            undo(|| {
                let removed = match &made {
                    Made::Container(name) => self.command(&[self.remove, &[name]].concat()),
                    Made::Network(name) => self.command(&["network", "rm", name]),
                    Made::Pod(name) => self.command(&[&["pod"], self.remove, &[name]].concat()),
                };
                let gone = ["No such", "no such", "not found"];
                let is_gone = gone.iter().any(|words| removed.stderr.contains(words));
                assert!(removed.code == 0 || is_gone, "{made:?} stays: {removed:?}");
            });
        }
    }
}

/// A profile of seccomp that has the system calls `names` fail with EPERM.
///
/// # Panics
/// There is no room for it.
#[must_use]
pub fn denying(names: &[&str]) -> NamedTempFile {
    let file = NamedTempFile::new().expect("temporary file");
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ERRNO" }],
    });
    std::fs::write(file.path(), rules.to_string()).expect("profile");
    file
}

/// What an image of busybox is built from: run, it prints a file of the context, the word `set`, and the release of the
/// kernel that it was built under.
///
/// # Panics
/// There is no room for it.
#[must_use]
pub fn build_context() -> TempDir {
    let directory = TempDir::with_prefix("context-").expect("temporary directory");
    let steps = "FROM busybox\nENV WORD=set\nWORKDIR /work\nCOPY data .\n\
                 RUN cat data > made && echo $WORD >> made && uname -r >> made\nCMD [\"cat\", \"made\"]\n";
    for (name, content) in [("data", "from the context\n"), ("Dockerfile", steps)] {
        std::fs::write(directory.path().join(name), content).expect("context");
    }
    directory
}
