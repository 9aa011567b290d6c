//! A container's cgroup (v2) below `/sys/fs/cgroup/hull`, by its files.
//!
//! `Documentation/admin-guide/cgroup-v2.rst` of the kernel. `libcontainer` sets its limits.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::below_mount;

/// A file of a cgroup that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?}")]
pub struct CgroupError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Files that [`Cgroup::stats`] reads.
const STATS: [&str; 18] = [
    "cpu.max",
    "cpu.pressure",
    "cpu.stat",
    "cpu.weight",
    "cpuset.cpus.effective",
    "io.pressure",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.max",
    "memory.peak",
    "memory.pressure",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
    "pids.current",
    "pids.max",
    "pids.peak",
];

/// Controllers that a cgroup may hand on and have processes of its own all the same: those that count threads.
const THREADED: [&str; 4] = ["cpu", "cpuset", "perf_event", "pids"];

/// How long what was asked of the kernel may take: all killed processes gone, or all stopped.
const SETTLING: Duration = Duration::from_secs(10);

/// One container's cgroup.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup at `path`, which need not be there yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Makes it.
    pub(super) fn make(&self) -> Result<(), CgroupError> {
        fs::create_dir_all(&self.path).map_err(|source| CgroupError {
            action: "make",
            path: self.path.clone(),
            source,
        })
    }

    /// Its directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.path.join(file);
        fs::read_to_string(&path).map_err(|source| CgroupError {
            action: "read",
            path,
            source,
        })
    }

    fn write(&self, file: &str, text: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, text).map_err(|source| CgroupError {
            action: "write",
            path,
            source,
        })
    }

    /// The pids of its processes, as the agent sees them.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub(super) fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for directory in below(&self.path) {
            let list = Cgroup::new(directory).read("cgroup.procs")?;
            pids.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        Ok(pids)
    }

    /// Kills every process in it and in cgroups below it, also of those that are being started.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Stops all its processes, or lets them go on, and waits until they have.
    ///
    /// # Errors
    /// When the files cannot be written or read.
    pub(super) async fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let wanted = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", wanted)?;
        self.settled("frozen", wanted).await.map(drop)
    }

    /// Whether its processes are stopped, or about to be.
    pub(super) fn is_frozen(&self) -> Result<bool, CgroupError> {
        Ok(self.read("cgroup.freeze")?.trim_end() == "1")
    }

    /// Waits until `key` of cgroup.events has the value. False: it has not got it in time.
    async fn settled(&self, key: &str, wanted: &str) -> Result<bool, CgroupError> {
        let end = tokio::time::Instant::now() + SETTLING;
        let mut pause = Duration::from_micros(200);
        loop {
            let events = self.read("cgroup.events")?;
            if value(&events, key) == Some(wanted) {
                return Ok(true);
            }
            if tokio::time::Instant::now() > end {
                return Ok(false);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// The cgroup `path` below it, as a path from it.
    ///
    /// # Errors
    /// It is not there. The caller has seen that `path` does not lead out of it.
    pub(super) fn below(&self, path: &Path) -> Result<PathBuf, CgroupError> {
        let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_));
        let path: PathBuf = path.components().filter(is_name).collect();
        Cgroup::new(self.path.join(&path)).read("cgroup.procs")?;
        Ok(path)
    }

    /// The cgroup that a process which is added joins, as a path from this one: this one itself, or, where it hands on
    /// controllers that the kernel then lets no process use in it ("No Internal Process Constraint"), that of `first`, the
    /// container's first process.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(super) fn joined(&self, first: i32) -> Result<PathBuf, CgroupError> {
        let handed_on = self.read("cgroup.subtree_control")?;
        if handed_on
            .split_whitespace()
            .all(|name| THREADED.contains(&name))
        {
            return Ok(PathBuf::new());
        }
        let own = Cgroup::new(format!("/proc/{first}").into()).read("cgroup")?;
        let own = Path::new(own.trim_end().strip_prefix("0::/").unwrap_or_default());
        let below = own.strip_prefix(below_mount(&self.path));
        Ok(below.unwrap_or(Path::new("")).to_owned())
    }

    /// How many of its processes the kernel's OOM killer has ended.
    pub(super) fn oom_kills(&self) -> u64 {
        self.read("memory.events")
            .map_or(0, |events| oom_kills(&events))
    }

    /// The files that tell its use of resources, as they read; those that are not there are left out.
    pub(super) fn stats(&self) -> HashMap<String, String> {
        STATS
            .iter()
            .filter_map(|file| Some(((*file).to_owned(), self.read(file).ok()?)))
            .collect()
    }

    /// Kills what is in it, waits until it is empty, and removes it with the cgroups below it. A cgroup that is not there
    /// is removed.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(super) async fn remove(&self) -> Result<(), CgroupError> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill()?;
        self.settled("populated", "0").await?;
        for directory in below(&self.path).into_iter().rev() {
            remove_directory(&directory).await?;
        }
        Ok(())
    }
}

/// rmdir(2) of a cgroup may find it busy for a moment after its last process has gone.
async fn remove_directory(path: &Path) -> Result<(), CgroupError> {
    let mut tries = 0;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) if source.raw_os_error() == Some(libc::EBUSY) && tries < 100 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(source) => {
                return Err(CgroupError {
                    action: "remove",
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
}

/// The directory and all below it, parents first.
fn below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        let Ok(entries) = fs::read_dir(directory) else {
            next += 1;
            continue;
        };
        let children: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(children);
        next += 1;
    }
    found
}

/// How many processes the OOM killer has ended, by the text of `memory.events`.
pub(super) fn oom_kills(events: &str) -> u64 {
    value(events, "oom_kill")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// The value of `key` in a file of lines `key value`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_key() {
        let events = "low 0\noom 3\noom_kill 2\n";
        assert_eq!(value(events, "oom_kill"), Some("2"));
        assert_eq!(value(events, "oom"), Some("3"));
        assert_eq!(value(events, "oo"), None);
    }

    #[test]
    fn parents_come_before_what_is_below_them() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        let names = below(root.path());
        assert_eq!(
            names,
            [
                root.path().to_owned(),
                root.path().join("a"),
                root.path().join("a/b")
            ]
        );
    }
}
