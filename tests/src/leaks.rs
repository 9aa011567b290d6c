//! The check that a case leaves the machine as it found it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::command::{eventually, run_ok};

/// Where Debian mounts them.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Where containerd's shims have their sockets.
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// Podman before 5 leaves its store mounted on itself.
const STORE: &str = "/var/lib/containers/storage/overlay";

/// What could be left behind: processes of hull, links of this network namespace, mounts (and so named network
/// namespaces), Unix sockets, and if asked for cgroups.
#[derive(Debug)]
pub struct LeakCheck {
    before: BTreeSet<String>,
    cgroups: bool,
}

impl Default for LeakCheck {
    fn default() -> Self {
        Self::new()
    }
}

impl LeakCheck {
    /// Remembers what there is.
    #[must_use]
    pub fn new() -> Self {
        Self {
            before: present(),
            cgroups: false,
        }
    }

    /// The same with cgroups; for a case that makes none below others, for those others stay, as with runc.
    #[must_use]
    pub fn with_cgroups() -> Self {
        let mut before = present();
        add_cgroups(Path::new(CGROUPS), &mut before);
        Self {
            before,
            cgroups: true,
        }
    }

    /// Asserts that nothing is there that was not, and that `root` (hull's state directory) holds no container and no
    /// sandbox. Processes that are just ending get the time to do so.
    ///
    /// # Panics
    /// Something is left.
    #[track_caller]
    pub fn nothing_left(&self, root: &Path) {
        self.await_nothing(|| state(root));
    }

    /// Asserts that nothing is there that was not, while the containers that there were go on.
    ///
    /// # Panics
    /// Something is.
    #[track_caller]
    pub fn nothing_more(&self) {
        self.await_nothing(Vec::new);
    }

    #[track_caller]
    fn await_nothing(&self, state: impl Fn() -> Vec<String>) {
        let mut left: Vec<String> = Vec::new();
        let clean = eventually(|| {
            let mut present = present();
            if self.cgroups {
                add_cgroups(Path::new(CGROUPS), &mut present);
            }
            let more = present.difference(&self.before).cloned();
            left = more.chain(state()).collect();
            left.is_empty()
        });
        assert!(clean, "left behind: {left:#?}");
    }
}

fn present() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // By the program that it runs: process proxies and monitors call themselves otherwise.
        if name.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(program) = fs::read_link(entry.path().join("exe"))
            && program
                .file_name()
                .is_some_and(|file| file.to_string_lossy().contains("hull"))
        {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found.insert(format!("process {name}: {line}"));
        }
    }
    for line in run_ok("ip", &["-o", "link"]).lines() {
        let name = line.split(": ").nth(1).unwrap_or(line);
        found.insert(format!("link {name}"));
    }
    for line in fs::read_to_string("/proc/self/mountinfo")
        .expect("mountinfo")
        .lines()
    {
        let place = line.split(' ').nth(4).unwrap_or(line);
        if place != STORE {
            found.insert(format!("mount {place}"));
        }
    }
    for line in fs::read_to_string("/proc/net/unix").expect("unix").lines() {
        if let Some(path) = line.split_whitespace().nth(7)
            && path.contains("hull")
        {
            found.insert(format!("socket {path}"));
        }
    }
    // A shim that was killed leaves the name of its own.
    for entry in fs::read_dir(SHIM_SOCKETS).into_iter().flatten().flatten() {
        found.insert(format!("socket {}", entry.path().display()));
    }
    found
}

fn add_cgroups(directory: &Path, found: &mut BTreeSet<String>) {
    // One that is just going has no entries any more.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            found.insert(format!("cgroup {}", path.display()));
            add_cgroups(&path, found);
        }
    }
}

fn state(root: &Path) -> Vec<String> {
    ["containers", "sandboxes"]
        .iter()
        .flat_map(|kind| {
            fs::read_dir(root.join(kind))
                .into_iter()
                .flatten()
                .flatten()
        })
        .map(|entry| format!("state {}", entry.path().display()))
        .collect()
}
