//! A guest's surroundings, made on this machine.

// Each test program uses its part of them.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hull_agent::container::{Containers, CreateOptions, Paths};
use hull_agent::process::{Process, Reaper};
use hull_agent::stdio::server;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(crate) type TestError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type TestResult = Result<(), TestError>;

/// No test waits longer.
const LIMIT: Duration = Duration::from_secs(120);

/// Commands of busybox in the root file system.
const COMMANDS: &[&str] = &[
    "cat", "cp", "echo", "env", "false", "grep", "head", "hostname", "id", "ls", "mkdir", "mknod",
    "mount", "pwd", "readlink", "sh", "sleep", "stty", "touch", "true", "tty", "wc", "yes",
];

pub(crate) struct Guest {
    pub(crate) containers: Arc<Containers>,
    paths: Paths,
    directory: TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A test that failed says more than what it has left.
        let _ = end_leftovers(&self.paths.cgroups)
            .and_then(|()| Ok(fs::remove_dir(&self.paths.cgroups)?));
    }
}

/// What a process left.
pub(crate) struct Run {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: u8,
}

/// Runs a test in a thread with namespaces of its own, one after the other: they share the cgroup tree and the reaper.
pub(crate) fn on_a_guest(
    test: impl AsyncFnOnce(&Guest) -> TestResult + Send + 'static,
) -> TestResult {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = std::thread::spawn(move || -> TestResult {
        isolate()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let guest = Guest::new()?;
            tokio::spawn(Arc::clone(guest.containers.reaper()).run());
            tokio::time::timeout(LIMIT, test(&guest)).await?
        })
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A mount namespace in which `/sys/fs/cgroup` is cgroup v2, as in the guest.
fn isolate() -> TestResult {
    nix::sys::prctl::set_child_subreaper(true)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        mount(
            Some("cgroup2"),
            "/sys/fs/cgroup",
            Some("cgroup2"),
            MsFlags::empty(),
            none,
        )?;
    }
    Ok(())
}

/// One reaper for the test process, as in the guest: it waits for all children.
fn reaper() -> Arc<Reaper> {
    static REAPER: OnceLock<Arc<Reaper>> = OnceLock::new();
    Arc::clone(REAPER.get_or_init(Arc::default))
}

/// Ends the containers that a test which failed has left.
fn end_leftovers(cgroups: &std::path::Path) -> TestResult {
    let Ok(entries) = fs::read_dir(cgroups) else {
        return Ok(());
    };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        fs::write(entry.path().join("cgroup.kill"), "1")?;
        while fs::read_to_string(entry.path().join("cgroup.events"))?.contains("populated 1") {
            reaper().reap();
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::remove_dir(entry.path())?;
    }
    Ok(())
}

pub(crate) fn process(arguments: &[&str]) -> Value {
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": arguments,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {
            "bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"],
        },
    })
}

impl Guest {
    fn new() -> Result<Self, TestError> {
        let directory = tempfile::tempdir()?;
        let root = directory.path().join("rootfs");
        for name in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for command in COMMANDS {
            symlink("busybox", root.join("bin").join(command))?;
        }
        let mut anyone = fs::metadata(root.join("tmp"))?.permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut anyone, 0o1777);
        fs::set_permissions(root.join("tmp"), anyone)?;
        let paths = Paths {
            program: env!("CARGO_BIN_EXE_hull-agent").into(),
            state: directory.path().join("state"),
            bundles: directory.path().join("bundles"),
            // Of this test process only.
            cgroups: format!("/sys/fs/cgroup/hull-agent-test-{}", std::process::id()).into(),
            notify: directory.path().join("notify"),
            shared_memory: directory.path().join("shm"),
        };
        Ok(Self {
            containers: Arc::new(Containers::new(paths.clone(), reaper())),
            paths,
            directory,
        })
    }

    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    pub(crate) fn config(&self, arguments: &[&str]) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "root": { "path": self.rootfs() },
            "process": process(arguments),
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
            ],
            "linux": { "namespaces": [{ "type": "network", "path": "/proc/1/ns/net" }] },
        })
    }

    pub(crate) async fn create(
        &self,
        id: &str,
        config: &Value,
        stdin: bool,
    ) -> Result<Arc<Process>, TestError> {
        Ok(self
            .containers
            .create(
                id,
                config.to_string().as_bytes(),
                &CreateOptions {
                    stdin,
                    ..CreateOptions::default()
                },
            )
            .await?)
    }

    /// A running container without stdin.
    pub(crate) async fn started(
        &self,
        id: &str,
        arguments: &[&str],
    ) -> Result<Arc<Process>, TestError> {
        let process = self.create(id, &self.config(arguments), false).await?;
        self.containers.start(id).await?;
        Ok(process)
    }

    pub(crate) async fn run(
        &self,
        arguments: &[&str],
        stdin: Option<&[u8]>,
    ) -> Result<Run, TestError> {
        self.run_config(self.config(arguments), stdin).await
    }

    /// Creates, starts, follows and removes a container.
    pub(crate) async fn run_config(
        &self,
        config: Value,
        stdin: Option<&[u8]>,
    ) -> Result<Run, TestError> {
        let process = self.create("run", &config, stdin.is_some()).await?;
        self.containers.start("run").await?;
        let run = self.follow("run", "", &process, stdin).await?;
        self.containers.remove("run").await?;
        self.assert_nothing_left("run");
        Ok(run)
    }

    pub(crate) async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
        stdin: Option<&[u8]>,
    ) -> Result<Run, TestError> {
        let json = process.to_string();
        let process = self
            .containers
            .exec(id, exec, json.as_bytes(), stdin.is_some(), &[], "")
            .await?;
        self.follow(id, exec, &process, stdin).await
    }

    async fn follow(
        &self,
        id: &str,
        exec: &str,
        process: &Process,
        stdin: Option<&[u8]>,
    ) -> Result<Run, TestError> {
        let input = async {
            if let Some(bytes) = stdin {
                let mut stream = self.open("stdin", id, exec).await?;
                stream.write_all(bytes).await?;
                stream.shutdown().await?;
            }
            TestResult::Ok(())
        };
        let output = async |kind| {
            let mut stream = self.open(kind, id, exec).await?;
            read_to_end(&mut stream).await
        };
        let (input, stdout, stderr) = tokio::join!(input, output("stdout"), output("stderr"));
        input?;
        Ok(Run {
            stdout: stdout?,
            stderr: stderr?,
            status: process.wait().await.status,
        })
    }

    /// Opens a stream; a refusal is an error with the answer.
    pub(crate) async fn open(
        &self,
        kind: &str,
        id: &str,
        exec: &str,
    ) -> Result<DuplexStream, TestError> {
        let (mut ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(server::serve(theirs, Arc::clone(&self.containers)));
        let exec = if exec.is_empty() { "-" } else { exec };
        ours.write_all(format!("{kind} {id} {exec}\n").as_bytes())
            .await?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            answer.push(ours.read_u8().await?);
        }
        if answer != b"ok\n" {
            return Err(String::from_utf8(answer)?.trim_end().into());
        }
        Ok(ours)
    }

    /// Where shared memory is.
    pub(crate) fn shared_memory(&self) -> &std::path::Path {
        &self.paths.shared_memory
    }

    /// Where a container's notification socket is.
    pub(crate) fn notify_directory(&self, id: &str) -> PathBuf {
        self.paths.notify.join(id)
    }

    /// The names of a container's files.
    pub(crate) fn files_of(&self, id: &str) -> Result<Vec<String>, TestError> {
        let mut names = Vec::new();
        for directory in [self.paths.state.join(id), self.paths.bundles.join(id)] {
            for entry in fs::read_dir(directory)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    pub(crate) fn assert_nothing_left(&self, id: &str) {
        for directory in [&self.paths.state, &self.paths.bundles, &self.paths.cgroups] {
            assert!(!directory.join(id).exists(), "{directory:?} still has {id}");
        }
    }
}

pub(crate) async fn read_to_end(stream: &mut DuplexStream) -> Result<Vec<u8>, TestError> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

pub(crate) async fn read_until(stream: &mut DuplexStream, end: &str) -> Result<String, TestError> {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(
            stream
                .read_u8()
                .await
                .map_err(|error| format!("{error} after {:?}", String::from_utf8_lossy(&text)))?,
        );
    }
    Ok(String::from_utf8(text)?)
}

/// Waits until it is so.
pub(crate) async fn runs(condition: impl AsyncFn() -> bool) -> TestResult {
    while !condition().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

pub(crate) fn open_descriptors() -> Result<usize, TestError> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}
