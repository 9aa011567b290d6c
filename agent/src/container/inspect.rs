//! ListProcesses, DescribeProcesses and StatsContainer.

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

/// The most processes of a container that are described.
const MOST_DESCRIBED: usize = 1000;
/// The most bytes of a command line in a description.
const MOST_OF_CMDLINE: usize = 1024;

/// What `/proc` in the container has of one of its processes: all pids are those of its pid namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub pid: u32,
    pub stat: String,
    pub status: String,
    pub cmdline: Vec<u8>,
}

impl Container {
    /// Describes its processes, or the first of them.
    ///
    /// # Errors
    /// When its cgroup cannot be read.
    pub fn describe(&self) -> Result<Vec<Description>, Error> {
        let pids = self.cgroup.processes()?;
        let read = |pid: i32| {
            let file = |name| fs::read(format!("/proc/{pid}/{name}")).ok();
            // The name of a process may be no text.
            let text = |name| Some(String::from_utf8_lossy(&file(name)?).into_owned());
            let mut cmdline = file("cmdline")?;
            cmdline.truncate(MOST_OF_CMDLINE);
            Some((text("stat")?, text("status")?, cmdline))
        };
        let found: Vec<_> = pids
            .into_iter()
            .filter_map(read)
            .take(MOST_DESCRIBED)
            .collect();
        let pids: HashMap<&str, &str> = found
            .iter()
            .filter_map(|(_, status, _)| Some((field(status, "Pid")?, inner(status, "NSpid")?)))
            .collect();
        let describe = |(stat, status, cmdline): &(String, String, Vec<u8>)| {
            Some(Description {
                pid: inner(status, "NSpid")?.parse().ok()?,
                stat: inner_stat(stat, status, &pids)?,
                status: inner_status(status, &pids)?,
                cmdline: cmdline.clone(),
            })
        };
        Ok(found.iter().filter_map(describe).collect())
    }

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
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    let command = match line.trim_end_matches('\0').replace('\0', " ") {
        empty if empty.is_empty() => format!("[{}]", field(&status, "Name").unwrap_or_default()),
        line => line,
    };
    Some(ProcessInfo {
        pid: u32::try_from(pid).ok()?,
        ppid: field(&status, "PPid")?.parse().ok()?,
        uid: field(&status, "Uid")?.parse().ok()?,
        command,
    })
}

/// The values of a line of `/proc/PID/status`.
fn fields<'a>(status: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let mut lines = status.lines();
    let values = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    values.unwrap_or_default().split_whitespace()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    fields(status, name).next()
}

/// The value of a line with one for each pid namespace, from the guest's inwards, in the container's own: the next, if it
/// has one of its own.
fn inner<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let mut values = fields(status, name);
    let outermost = values.next();
    values.next().or(outermost)
}

/// `pids` has those of the container by those of the guest. A process that is not in it has 0 there, as the kernel has it
/// for the parent of a container's first.
fn inner_status(status: &str, pids: &HashMap<&str, &str>) -> Option<String> {
    let mut lines = String::new();
    for line in status.lines() {
        let (name, value) = line.split_once(':')?;
        let value = match name {
            "Pid" => inner(status, "NSpid")?,
            "Tgid" => inner(status, "NStgid")?,
            "PPid" | "TracerPid" => pids.get(value.trim()).copied().unwrap_or("0"),
            "NSpid" | "NStgid" | "NSpgid" | "NSsid" => inner(status, name)?,
            _ => value.trim(),
        };
        lines.extend([name, ":\t", value, "\n"]);
    }
    Some(lines)
}

/// The same for `/proc/PID/stat` (proc_pid_stat(5)).
fn inner_stat(stat: &str, status: &str, pids: &HashMap<&str, &str>) -> Option<String> {
    let name = stat.get(stat.find('(')?..=stat.rfind(')')?)?;
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    let parent = pids.get(fields.next()?).copied().unwrap_or("0");
    let [_group, _session, terminal, foreground] = [
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    ];
    let own = [
        inner(status, "NSpid")?,
        name,
        state,
        parent,
        inner(status, "NSpgid")?,
        inner(status, "NSsid")?,
        terminal,
        pids.get(foreground).copied().unwrap_or("-1"),
    ];
    let rest: Vec<&str> = own.into_iter().chain(fields).collect();
    Some(rest.join(" ") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_has_the_pids_of_the_container() {
        let status = "Name:\ta b\nTgid:\t42\nPid:\t42\nPPid:\t40\nTracerPid:\t0\nUid:\t5\t5\t5\t5\n\
                      NStgid:\t42\t7\t1\nNSpid:\t42\t7\t1\nNSpgid:\t40\t1\t0\nNSsid:\t40\t1\t0\nThreads:\t1\n";
        let pids = HashMap::from([("40", "1"), ("42", "7")]);
        assert_eq!(
            inner_status(status, &pids).unwrap(),
            "Name:\ta b\nTgid:\t7\nPid:\t7\nPPid:\t1\nTracerPid:\t0\nUid:\t5\t5\t5\t5\n\
             NStgid:\t7\nNSpid:\t7\nNSpgid:\t1\nNSsid:\t1\nThreads:\t1\n"
        );
        let stat = "42 (a) b) S 40 40 40 34816 42 4194560 1 2 3";
        assert_eq!(
            inner_stat(stat, status, &pids).unwrap(),
            "7 (a) b) S 1 1 1 34816 7 4194560 1 2 3\n"
        );
        assert_eq!(inner_status("no line of a status\n", &pids), None);
        assert_eq!(inner_stat("42 (a", status, &pids), None);
    }
}
