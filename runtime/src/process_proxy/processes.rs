//! `/proc` among the files of a container's proxy: the processes that the guest has. `podman top` joins the proxy's mount
//! namespace and reads there what it would find of processes of this kernel.
//!
//! It is a file system in memory, which is written anew whenever somebody opens its root: fanotify(7) has them wait for
//! it. What the guest says goes into these files only, and they have room for little.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hull_agent_protocol::agent::DescribeProcessesResponse;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags,
    Response,
};

use super::ProxyError;
use crate::agent_client::AgentError;
use crate::error::chain;

/// Room for the thousand processes that an agent tells of.
const ROOM: &str = "size=16m,nr_inodes=8k,mode=755";
/// An auxiliary vector (getauxval(3)) of nothing but the clock's ticks in a second, in which processes' times are.
const TICKS: [u64; 4] = [libc::AT_CLKTCK, 100, libc::AT_NULL, 0];
/// The fields of a process's `stat` that readers count on (proc_pid_stat(5)), behind its name.
const FIELDS: usize = 21;

/// The file system.
#[derive(Debug)]
pub(super) struct Processes {
    root: OwnedFd,
    opened: Fanotify,
    /// The processes that it has.
    pids: BTreeSet<u32>,
}

impl Processes {
    /// Mounts it below `tree`, the root of the calling thread's files; none where the container has no place for it, or
    /// the kernel does not tell who opens files.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub(super) fn mount(tree: BorrowedFd<'_>) -> Result<Option<Self>, ProxyError> {
        let fail = |errno: Errno| ProxyError::host("show the processes")(errno.into());
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
        let opened = match Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC) {
            // There are as many for a user as fs.fanotify.max_user_groups says.
            Err(errno @ (Errno::EMFILE | Errno::ENOSYS | Errno::EINVAL)) => {
                tracing::warn!(%errno, "the container's processes are not shown to podman top");
                return Ok(None);
            }
            opened => opened.map_err(fail)?,
        };
        let Some(root) = mount_memory(tree, "proc").map_err(fail)? else {
            return Ok(None);
        };
        // Where the processes' terminals are looked for.
        if open_directory(tree, "dev/pts", OFlag::O_PATH)
            .map_err(fail)?
            .is_none()
            && let Some(devices) = mount_memory(tree, "dev").map_err(fail)?
        {
            fs::create_dir(path_of(&devices).join("pts"))
                .map_err(ProxyError::host("show the processes"))?;
        }
        let ticks: Vec<u8> = TICKS.iter().flat_map(|word| word.to_ne_bytes()).collect();
        fs::create_dir(path_of(&root).join("self"))
            .and_then(|()| fs::write(path_of(&root).join("self/auxv"), ticks))
            .map_err(ProxyError::host("show the processes"))?;
        let opening = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ONDIR;
        opened
            .mark(MarkFlags::FAN_MARK_ADD, opening, &root, None::<&Path>)
            .map_err(fail)?;
        Ok(Some(Self {
            root,
            opened,
            pids: BTreeSet::new(),
        }))
    }

    /// Has whoever opens it find what `describe` gives, for as long as this process lives.
    pub(super) fn serve(
        mut self,
        describe: impl Fn() -> Result<DescribeProcessesResponse, AgentError>,
    ) {
        loop {
            let events = match self.opened.read_events() {
                Ok(events) => events,
                Err(error) => {
                    tracing::error!(%error, "process proxy: nobody is shown the processes");
                    return;
                }
            };
            let written = describe().map_err(ProxyError::Processes).and_then(|found| {
                self.write(&found)
                    .map_err(ProxyError::host("show the processes"))
            });
            let answer = match written {
                Ok(()) => Response::FAN_ALLOW,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "who asks for processes is refused");
                    Response::FAN_DENY
                }
            };
            for file in events.iter().filter_map(FanotifyEvent::fd) {
                let answer = FanotifyResponse::new(file, answer);
                if let Err(error) = self.opened.write_response(answer) {
                    tracing::warn!(%error, "who asks for processes is not answered");
                }
            }
        }
    }

    fn write(&mut self, found: &DescribeProcessesResponse) -> io::Result<()> {
        let root = path_of(&self.root);
        let shown = found.processes.iter().filter(|one| is_stat(&one.stat));
        let pids: BTreeSet<u32> = shown.clone().map(|one| one.pid).collect();
        for gone in self.pids.difference(&pids) {
            fs::remove_dir_all(root.join(gone.to_string()))?;
        }
        self.pids.retain(|pid| pids.contains(pid));
        replace(
            &root,
            "stat",
            format!("btime {}\n", found.boot_time).as_bytes(),
        )?;
        for process in shown {
            let directory = root.join(process.pid.to_string());
            if self.pids.insert(process.pid) {
                fs::create_dir_all(directory.join("ns"))?;
                symlink("pid:[guest]", directory.join("ns/pid"))?;
            }
            for (name, content) in [
                ("stat", process.stat.as_bytes()),
                ("status", process.status.as_bytes()),
                ("cmdline", &process.cmdline),
            ] {
                replace(&root, &format!("{}/{name}", process.pid), content)?;
            }
        }
        Ok(())
    }
}

/// Mounts a file system in memory at a directory of `tree`, and opens its root; none if that is no directory.
fn mount_memory(tree: BorrowedFd<'_>, name: &str) -> nix::Result<Option<OwnedFd>> {
    let Some(point) = open_directory(tree, name, OFlag::O_PATH)? else {
        return Ok(None);
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("hull"),
        &path_of(&point),
        Some("tmpfs"),
        flags,
        Some(ROOM),
    )?;
    open_directory(tree, name, OFlag::O_RDONLY)
}

/// Opens what is a directory of `tree`: the container may have put anything else there.
fn open_directory(tree: BorrowedFd<'_>, name: &str, flags: OFlag) -> nix::Result<Option<OwnedFd>> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(tree, name, how) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        opened => opened.map(Some),
    }
}

/// A path to what is open, for threads with the host's files.
fn path_of(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Replaces a file at once: somebody may be reading it.
fn replace(root: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let new = root.join("new");
    fs::write(&new, content)?;
    fs::rename(new, root.join(name))
}

fn is_stat(stat: &str) -> bool {
    let parts = stat
        .split_once(" (")
        .and_then(|(_, rest)| rest.rsplit_once(')'));
    parts.is_some_and(|(_, fields)| fields.split_whitespace().count() >= FIELDS)
}
