//! Cgroups that systemd makes: a container's is that of a scope, a unit of processes that somebody else has started.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use libcgroups::common::DEFAULT_CGROUP_ROOT;
use oci_spec::runtime::LinuxResources;

use super::dbus::{Body, DbusError, call};

/// It is there where systemd is the first process (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// The slice of scopes that name none.
const DEFAULT_SLICE: &str = "system.slice";
/// What systemd calls a unit that it does not know, or no longer.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// How long systemd may take to start or end a scope.
const LIMIT: Duration = Duration::from_secs(60);
/// How often that is looked for meanwhile.
const INTERVAL: Duration = Duration::from_millis(10);

/// How systemd does not make a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// Another init does.
    #[error("systemd is not the first process here")]
    NotBooted,
    /// It makes them where the container's limits are not looked for.
    #[error("cgroups made by systemd have to be of version 2")]
    Version1,
    /// Not of the form that has all it takes.
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
    )]
    Path {
        /// `linux.cgroupsPath`.
        path: PathBuf,
    },
    /// Slices are named by their way from the root: `a-b.slice` is in `a.slice`.
    #[error("invalid slice name: {slice}")]
    Slice {
        /// The name.
        slice: String,
    },
    /// A call of it has failed.
    #[error(transparent)]
    Call(#[from] DbusError),
    /// It goes on with what it was told to do.
    #[error("systemd takes more than {LIMIT:?} to {job} {unit}")]
    Slow {
        /// What it does.
        job: &'static str,
        /// The scope.
        unit: String,
    },
    /// A cgroup's file, or a process's.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
}

/// A scope, which may not be there.
#[derive(Debug)]
pub(super) struct Scope {
    unit: String,
    slice: String,
    /// Its cgroup, below the mount point.
    pub(super) path: PathBuf,
}

/// One property of a unit.
enum Property<'a> {
    Text(&'static str, &'a str),
    Flag(&'static str, bool),
    Number(&'static str, u64),
    Pids(&'static str, u32),
}

impl Scope {
    /// The scope that `slice:prefix:name` means.
    pub(super) fn of(path: &Path) -> Result<Self, SystemdError> {
        if !Path::new(BOOTED).exists() {
            return Err(SystemdError::NotBooted);
        }
        if !Path::new(DEFAULT_CGROUP_ROOT)
            .join("cgroup.controllers")
            .exists()
        {
            return Err(SystemdError::Version1);
        }
        let parts: Option<Vec<&str>> = path.to_str().map(|path| path.split(':').collect());
        let Some(&[slice, prefix, name]) = parts.as_deref() else {
            return Err(SystemdError::Path { path: path.into() });
        };
        let slice = if slice.is_empty() {
            DEFAULT_SLICE
        } else {
            slice
        };
        let unit = format!("{prefix}-{name}.scope");
        Ok(Self {
            path: root()?.join(slice_path(slice)?).join(&unit),
            slice: slice.to_owned(),
            unit,
        })
    }

    /// Puts a process into it, and starts it if it does not run.
    pub(super) fn add(&self, pid: i32, description: &str) -> Result<(), SystemdError> {
        let pid = pid.unsigned_abs();
        let mut attach = Body::default();
        attach.string(&self.unit);
        attach.string("");
        attach.array(4, |pids| pids.u32(pid));
        match call("AttachProcessesToUnit", "ssau", &attach) {
            Err(DbusError::Failed { name, .. }) if name == NO_SUCH_UNIT => {}
            attached => return Ok(attached?),
        }
        let mut start = Body::default();
        start.string(&self.unit);
        start.string("fail");
        properties(
            &mut start,
            &[
                Property::Text("Description", description),
                Property::Text("Slice", &self.slice),
                Property::Text("CollectMode", "inactive-or-failed"),
                // All controllers, and no processes of others.
                Property::Flag("Delegate", true),
                Property::Flag("CPUAccounting", true),
                Property::Flag("MemoryAccounting", true),
                Property::Flag("IOAccounting", true),
                Property::Flag("TasksAccounting", true),
                // Or it would end before its engine when the host shuts down.
                Property::Flag("DefaultDependencies", false),
                Property::Pids("PIDs", pid),
            ],
        );
        // Auxiliary units.
        start.array(8, |_| {});
        call("StartTransientUnit", "ssa(sv)a(sa(sv))", &start)?;
        let deadline = Instant::now() + LIMIT;
        while !self.has(pid) {
            self.wait("start", deadline)?;
        }
        Ok(())
    }

    fn has(&self, pid: u32) -> bool {
        let procs = fs::read_to_string(self.file("cgroup.procs"));
        procs.is_ok_and(|pids| pids.lines().any(|line| line == pid.to_string()))
    }

    /// Tells systemd of what the files of its cgroup have been given for the limits that are named, lest it should set
    /// them back to what it knows.
    pub(super) fn keep(&self, named: &LinuxResources) -> Result<(), SystemdError> {
        let mut limits = Vec::new();
        let mut files = named.unified().iter().flatten();
        if named.cpu().is_some() || files.any(|(name, _)| name.starts_with("cpu.")) {
            let quota = self.read("cpu.max")?;
            let (quota, period) = quota.split_once(' ').unwrap_or((&quota, ""));
            let period = period.parse().unwrap_or(100_000);
            let per_second = u128::from(number(quota)) * 1_000_000 / u128::from(period);
            limits.push(Property::Number(
                "CPUQuotaPerSecUSec",
                u64::try_from(per_second).unwrap_or(u64::MAX),
            ));
            limits.push(Property::Number("CPUQuotaPeriodUSec", period));
            limits.push(Property::Number(
                "CPUWeight",
                number(&self.read("cpu.weight")?),
            ));
        }
        if named.memory().is_some() {
            for (property, file) in [
                ("MemoryMax", "memory.max"),
                ("MemoryLow", "memory.low"),
                ("MemorySwapMax", "memory.swap.max"),
            ] {
                limits.push(Property::Number(property, number(&self.read(file)?)));
            }
        }
        let mut set = Body::default();
        set.string(&self.unit);
        // Until it ends, and not in a file.
        set.u32(1);
        properties(&mut set, &limits);
        Ok(call("SetUnitProperties", "sba(sv)", &set)?)
    }

    fn read(&self, file: &str) -> Result<String, SystemdError> {
        read(&self.file(file))
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(DEFAULT_CGROUP_ROOT).join(&self.path).join(name)
    }

    /// Ends it, once there is no process in it.
    pub(super) fn stop(&self) -> Result<(), SystemdError> {
        let mut stop = Body::default();
        stop.string(&self.unit);
        stop.string("replace");
        let deadline = Instant::now() + LIMIT;
        loop {
            match call("StopUnit", "ss", &stop) {
                Err(DbusError::Failed { name, .. }) if name == NO_SUCH_UNIT => return Ok(()),
                stopped => stopped?,
            }
            self.wait("stop", deadline)?;
        }
    }

    fn wait(&self, job: &'static str, deadline: Instant) -> Result<(), SystemdError> {
        if Instant::now() >= deadline {
            let unit = self.unit.clone();
            return Err(SystemdError::Slow { job, unit });
        }
        thread::sleep(INTERVAL);
        Ok(())
    }
}

/// `a(sv)`.
fn properties(body: &mut Body, all: &[Property<'_>]) {
    body.array(8, |body| {
        for property in all {
            body.structure(|body| property.marshal(body));
        }
    });
}

impl Property<'_> {
    fn marshal(&self, body: &mut Body) {
        match *self {
            Self::Text(name, text) => {
                body.string(name);
                body.signature("s");
                body.string(text);
            }
            Self::Flag(name, flag) => {
                body.string(name);
                body.signature("b");
                body.u32(u32::from(flag));
            }
            Self::Number(name, number) => {
                body.string(name);
                body.signature("t");
                body.u64(number);
            }
            Self::Pids(name, pid) => {
                body.string(name);
                body.signature("au");
                body.array(4, |pids| pids.u32(pid));
            }
        }
    }
}

/// A limit as cgroups have it; `max` is that of systemd too.
fn number(text: &str) -> u64 {
    text.parse().unwrap_or(u64::MAX)
}

/// The cgroup that systemd has all of its own in.
fn root() -> Result<PathBuf, SystemdError> {
    let text = read(Path::new("/proc/1/cgroup"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = Path::new(own.unwrap_or_default());
    let is_scope = own.ends_with("init.scope");
    Ok(own.parent().filter(|_| is_scope).unwrap_or(own).to_owned())
}

/// `a.slice/a-b.slice` for `a-b.slice`.
fn slice_path(slice: &str) -> Result<PathBuf, SystemdError> {
    let parts: Option<Vec<&str>> = slice
        .strip_suffix(".slice")
        .map(|name| name.split('-').collect());
    let is_root = slice == "-.slice";
    match parts {
        Some(_) if is_root => Ok(PathBuf::new()),
        Some(parts)
            if parts
                .iter()
                .all(|part| !part.is_empty() && !part.contains('/')) =>
        {
            let ways = (1..=parts.len()).map(|count| parts[..count].join("-"));
            Ok(ways.map(|name| format!("{name}.slice")).collect())
        }
        _ => Err(SystemdError::Slice {
            slice: slice.to_owned(),
        }),
    }
}

fn read(path: &Path) -> Result<String, SystemdError> {
    let text = fs::read_to_string(path).map_err(|source| SystemdError::File {
        path: path.into(),
        source,
    })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_named_by_their_way() {
        let path = |slice| slice_path(slice).ok();
        assert_eq!(
            path("a-b-c.slice"),
            Some("a.slice/a-b.slice/a-b-c.slice".into())
        );
        assert_eq!(path("-.slice"), Some(PathBuf::new()));
        for wrong in ["", ".slice", "a", "a--b.slice", "-a.slice", "../a.slice"] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }
}
