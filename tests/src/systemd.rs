//! systemd as the first process of namespaces of its own, below a cgroup of its own, for cases of a machine that it has
//! booted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::command::{command_within, eventually, finish, wait};

/// Below the mount point of cgroups.
const CGROUP: &str = "/sys/fs/cgroup/hull-case-systemd";

/// What makes a machine in which only a target of nothing is started: cgroups and `/run` as they are to systemd there.
const BOOT: &str = r#"
mkdir "$CGROUP"
echo 0 > "$CGROUP/cgroup.procs"
exec unshare --cgroup sh -c '
    umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t tmpfs -o mode=755 tmpfs /run &&
    exec /usr/lib/systemd/systemd --system --unit=case.target --log-target=null --show-status=no'
"#;

/// It ends, with all that runs in it, when this value goes.
#[derive(Debug)]
pub struct Systemd {
    unshare: Child,
    first: String,
    _units: TempDir,
}

impl Systemd {
    /// Starts it, and waits until it takes calls.
    ///
    /// # Panics
    /// It is not installed, or does not start.
    #[must_use]
    pub fn start() -> Self {
        let units = TempDir::with_prefix("systemd-").expect("temporary directory");
        let target = "[Unit]\nDescription=Nothing\nDefaultDependencies=no\n";
        fs::write(units.path().join("case.target"), target).expect("a unit");
        // Scopes are read anew from the second.
        let path = format!("{}:/run/systemd/transient", units.path().display());
        let unshare = Command::new("unshare")
            .args(["--mount", "--uts", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "sh", "-c", BOOT])
            .env("CGROUP", CGROUP)
            .env("container", "hull-case")
            .env("SYSTEMD_UNIT_PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare");
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let mut first = String::new();
        assert!(eventually(|| {
            first = fs::read_to_string(&children).unwrap_or_default();
            first = first.trim().to_owned();
            let socket = format!("/proc/{first}/root/run/systemd/private");
            !first.is_empty() && Path::new(&socket).exists()
        }));
        Self {
            unshare,
            first,
            _units: units,
        }
    }

    /// A cgroup that it knows by `path`.
    #[must_use]
    pub fn cgroup(&self, path: &str) -> PathBuf {
        Path::new(CGROUP).join(path)
    }

    /// The words before a command that is to run where it is the first process.
    #[must_use]
    pub fn enter(&self) -> Vec<String> {
        let enter = format!("echo 0 > {CGROUP}/init.scope/cgroup.procs && exec \"$@\"");
        let namespaces = ["--mount", "--pid", "--cgroup", "--uts", "--"];
        ["sh", "-c", &enter, "sh", "nsenter", "--target", &self.first]
            .into_iter()
            .chain(namespaces)
            .map(str::to_owned)
            .collect()
    }

    /// Has it read its units anew.
    ///
    /// # Panics
    /// It does not.
    pub fn reload(&self) {
        self.run_ok("systemctl", &["daemon-reload"]);
    }

    /// Runs `program`, which must succeed, where it is the first process, and gives its standard output.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn run_ok(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = command_within(&self.enter(), program);
        finish(command.args(arguments), Vec::new()).expect(0).text()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        wait(&mut self.unshare);
        // The deepest first, once what was in them has ended.
        let removed = eventually(|| {
            let mut find = Command::new("find");
            find.arg(CGROUP).args(["-depth", "-type", "d", "-delete"]);
            find.stderr(Stdio::null()).status().is_ok() && !Path::new(CGROUP).exists()
        });
        if !removed {
            eprintln!("{CGROUP} stays");
        }
    }
}
