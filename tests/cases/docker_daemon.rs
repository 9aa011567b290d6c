//! A Docker daemon of the case's own, to configure, to kill and to start again.

use std::fs::OpenOptions;
use std::process::{Child, Command, Stdio};

use hull_tests::command::{Finished, eventually, finish, wait};
use hull_tests::engine::build_context;
use hull_tests::{Engine, LeakCheck, run, run_ok};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

/// The daemon, whose default runtime is hull, and whose containers have no network. It has the busybox image.
struct Daemon {
    directory: TempDir,
    process: Child,
}

impl Daemon {
    fn start() -> Self {
        let directory = TempDir::with_prefix("dockerd-").unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let settings = json!({
            "default-runtime": "hull", "runtimes": { "hull": { "path": "/usr/local/bin/hull" } },
            "hosts": [format!("unix://{}", path("socket"))], "pidfile": path("pid"),
            "data-root": path("data"), "exec-root": path("exec"), "storage-driver": "vfs",
            "bridge": "none", "iptables": false, "ip6tables": false, "live-restore": true,
            "containerd": "/run/containerd/containerd.sock",
            "containerd-namespace": "case",
        });
        std::fs::write(path("daemon.json"), settings.to_string()).unwrap();
        let process = Self::spawn(&directory);
        let daemon = Self { directory, process };
        daemon.await_running();
        let image = tempfile::NamedTempFile::new().unwrap();
        let image = image.path().to_str().unwrap();
        run_ok("docker", &["save", "--output", image, "busybox"]);
        daemon.ok(&["load", "--input", image]);
        daemon
    }

    /// In a network namespace of its own: in the host's, a daemon without a bridge removes that of another.
    fn spawn(directory: &TempDir) -> Child {
        let config = directory.path().join("daemon.json");
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(directory.path().join("log"));
        Command::new("unshare")
            .args(["--net", "dockerd", "--config-file"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap()
    }

    #[track_caller]
    fn await_running(&self) {
        assert!(eventually(|| self.docker(&["version"]).code == 0));
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        wait(&mut self.process);
    }

    fn restart(&mut self) {
        self.process = Self::spawn(&self.directory);
        self.await_running();
    }

    fn docker(&self, words: &[&str]) -> Finished {
        let mut command = Command::new("docker");
        let socket = self.directory.path().join("socket");
        command
            .args(["--host", &format!("unix://{}", socket.display())])
            .args(words)
            .env("DOCKER_BUILDKIT", "0");
        finish(&mut command, Vec::new())
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        self.docker(words).expect(0).text()
    }

    fn of(&self, container: &str, field: &str) -> String {
        let format = format!("{{{{.State.{field}}}}}");
        let answer = self.ok(&["inspect", "--format", &format, container]);
        answer.trim().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.process.id().try_into().unwrap_or(i32::MAX));
        let _ = kill(pid, Signal::SIGTERM);
        wait(&mut self.process);
    }
}

#[test]
fn images_are_built_with_hull_as_the_default_runtime() {
    let daemon = Daemon::start();
    let context = build_context();
    let directory = context.path().to_str().unwrap();
    daemon.ok(&["build", "--network", "none", "--tag", "built", directory]);
    let made = daemon.ok(&["run", "--rm", "--network", "none", "built"]);
    let kernel = made.strip_prefix("from the context\nset\n").expect(&made);
    assert_ne!(kernel, run_ok("uname", &["-r"]));
}

#[test]
fn containers_outlive_a_daemon_that_is_killed_and_their_exit_codes_arrive() {
    let leaks = LeakCheck::new();
    let mut daemon = Daemon::start();
    // By path and by hull's shim: one that stays, and one that ends while the daemon is away.
    let pairs = Engine::dockers().into_iter().map(|docker| {
        let runtime = docker.runtime();
        let [stays, ends] = [(); 2].map(|()| {
            let first = ["run", "--detach", "--network", "none", "--runtime", runtime];
            let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done";
            let words = [&first[..], &["busybox", "sh", "-c", script]].concat();
            let id = daemon.ok(&words).trim().to_owned();
            assert!(eventually(|| daemon.ok(&["logs", &id]) == "ready\n"));
            id
        });
        let pids = [&stays, &ends].map(|id| daemon.of(id, "Pid"));
        ([stays, ends], pids)
    });
    let pairs: Vec<_> = pairs.collect();
    daemon.kill();
    for (_, [_, ends]) in &pairs {
        run_ok("kill", &["-TERM", ends]);
        assert!(eventually(|| run("kill", &["-0", ends]).code != 0));
    }
    daemon.restart();
    for ([stays, ends], [pid, _]) in &pairs {
        assert_eq!(daemon.of(stays, "Pid"), *pid);
        assert!(eventually(|| daemon.of(ends, "Status") == "exited"));
        assert_eq!(daemon.of(ends, "ExitCode"), "7");
        assert_eq!(daemon.ok(&["exec", stays, "echo", "works"]), "works\n");
        daemon.ok(&["kill", "--signal", "TERM", stays]);
        assert_eq!(daemon.ok(&["wait", stays]), "7\n");
        daemon.ok(&["rm", stays, ends]);
    }
    drop(daemon);
    leaks.nothing_more();
}
