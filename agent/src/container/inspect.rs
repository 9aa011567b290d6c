//! ListProcesses and StatsContainer.

use std::collections::HashMap;
use std::fs;

use super::{Container, Error};

/// One process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its pid in the guest.
    pub pid: u32,
    /// Its parent's.
    pub ppid: u32,
    /// Its real user.
    pub uid: u32,
    /// Its command line, or its name in brackets when it has none.
    pub command: String,
}

impl Container {
    /// All its processes, as `/proc` has them.
    ///
    /// # Errors
    /// When its cgroup cannot be read.
    pub fn list(&self) -> Result<Vec<ProcessInfo>, Error> {
        let pids = self.cgroup.processes()?;
        // One that has ended in between is not listed.
        Ok(pids.into_iter().filter_map(info).collect())
    }

    /// The files of its cgroup that tell its use of resources.
    pub fn stats(&self) -> HashMap<String, String> {
        self.cgroup.stats()
    }
}

fn info(pid: i32) -> Option<ProcessInfo> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        status.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .split_whitespace()
                .next()
        })
    };
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    let command = match line.trim_end_matches('\0').replace('\0', " ") {
        empty if empty.is_empty() => format!("[{}]", field("Name").unwrap_or_default()),
        line => line,
    };
    Some(ProcessInfo {
        pid: u32::try_from(pid).ok()?,
        ppid: field("PPid")?.parse().ok()?,
        uid: field("Uid")?.parse().ok()?,
        command,
    })
}
