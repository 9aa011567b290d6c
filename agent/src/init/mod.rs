//! What PID 1 does before it serves: a root that containers can leave, the kernel's file systems, the cgroup tree, limits
//! and sysctls. Runs once, in the main thread, before the event loop.

mod root;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};

use crate::log::LineLog;

/// Why the guest cannot be brought up. It ends then.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// mount(2).
    #[error("mount {kind} on {target:?}")]
    Mount {
        /// The file system's type.
        kind: &'static str,
        /// The mount point.
        target: PathBuf,
        /// The cause.
        #[source]
        source: nix::Error,
    },
    /// A file or directory.
    #[error("{action} {path:?}")]
    File {
        /// What was done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another system call.
    #[error("{0}")]
    Call(&'static str, #[source] nix::Error),
}

/// A file system that is always there.
struct KernelMount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
    /// The guest can do without: a kernel may be built without it.
    optional: bool,
}

const NO_EXEC: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

const MOUNTS: [KernelMount; 7] = [
    KernelMount {
        kind: "proc",
        target: "/proc",
        flags: NO_EXEC,
        data: "",
        optional: false,
    },
    KernelMount {
        kind: "sysfs",
        target: "/sys",
        flags: NO_EXEC,
        data: "",
        optional: false,
    },
    KernelMount {
        kind: "devtmpfs",
        target: "/dev",
        flags: MsFlags::MS_NOSUID,
        data: "mode=0755",
        optional: false,
    },
    KernelMount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "gid=5,mode=0620,ptmxmode=0666",
        optional: false,
    },
    KernelMount {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=1777",
        optional: false,
    },
    KernelMount {
        kind: "mqueue",
        target: "/dev/mqueue",
        flags: NO_EXEC,
        data: "",
        optional: true,
    },
    KernelMount {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: NO_EXEC,
        // Moving a process into its container's cgroup shall not wait for a grace period of RCU.
        data: "nsdelegate,favordynmods",
        optional: false,
    },
];

const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Sysctls, as files below `/proc/sys`. A kernel without one does without it.
const SYSCTLS: [(&str, &str); 4] = [
    // An address that is removed must not take the others of its network along.
    ("net/ipv4/conf/all/promote_secondaries", "1"),
    ("net/ipv4/conf/default/promote_secondaries", "1"),
    // As hosts with systemd have it: ping without privileges.
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("kernel/pid_max", "4194304"),
];

/// The most files that a process of the guest may open, and how many the agent itself may.
const OPEN_FILES: u64 = 1 << 20;

/// Brings the guest up as far as it can be without its network.
///
/// # Errors
/// See [`InitError`].
pub fn bring_up() -> Result<(), InitError> {
    root::leave_rootfs()?;
    for kernel_mount in &MOUNTS {
        kernel_mount.make()?;
    }
    log()?;
    for (target, link) in LINKS {
        std::os::unix::fs::symlink(target, link).map_err(|source| InitError::File {
            action: "make the link",
            path: link.into(),
            source,
        })?;
    }
    for directory in ["/etc", "/tmp", "/run/hull"] {
        make_directory(Path::new(directory))?;
    }
    enable_controllers(Path::new("/sys/fs/cgroup"))?;
    for (name, value) in SYSCTLS {
        match fs::write(Path::new("/proc/sys").join(name), value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(name, %error, "setting a sysctl failed");
            }
            _ => {}
        }
    }
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .map_err(|source| InitError::Call("set the limit of open files", source))?;
    nix::unistd::sethostname("hull")
        .map_err(|source| InitError::Call("set the host name", source))?;
    Ok(())
}

/// From here on there is a log to write to.
fn log() -> Result<(), InitError> {
    let failed = |source| InitError::File {
        action: "open the log",
        path: "/dev/kmsg".into(),
        source,
    };
    let log = LineLog::kernel().map_err(failed)?;
    tracing::subscriber::set_global_default(log).map_err(|error| failed(io::Error::other(error)))
}

impl KernelMount {
    fn make(&self) -> Result<(), InitError> {
        let target = Path::new(self.target);
        make_directory(target)?;
        let result = mount(
            Some(self.kind),
            target,
            Some(self.kind),
            self.flags,
            Some(self.data).filter(|data| !data.is_empty()),
        );
        match result {
            Err(source) if !self.optional => Err(InitError::Mount {
                kind: self.kind,
                target: target.to_owned(),
                source,
            }),
            _ => Ok(()),
        }
    }
}

fn make_directory(path: &Path) -> Result<(), InitError> {
    fs::create_dir_all(path).map_err(|source| InitError::File {
        action: "make the directory",
        path: path.to_owned(),
        source,
    })
}

/// Makes the parent of the containers' cgroups, and gives it all controllers for them.
fn enable_controllers(root: &Path) -> Result<(), InitError> {
    let parent = root.join("hull");
    make_directory(&parent)?;
    let path = root.join("cgroup.controllers");
    let available = fs::read_to_string(&path).map_err(|source| InitError::File {
        action: "read",
        path,
        source,
    })?;
    // All at once: each change goes through the whole tree.
    let all: Vec<String> = available
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    for directory in [root, &parent] {
        let path = directory.join("cgroup.subtree_control");
        fs::write(&path, all.join(" ")).map_err(|source| InitError::File {
            action: "enable controllers in",
            path,
            source,
        })?;
    }
    Ok(())
}
