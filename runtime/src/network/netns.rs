//! A network namespace, held by an open file.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::netlink::Netlink;
use crate::sys::namespace_type;

/// The calling thread's own network namespace.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It stays alive as long as this is, or a process is in it, or something is mounted on it.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
}

/// Tells network namespaces apart while they live: device and inode of the namespace's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    /// The device of the namespace file system.
    pub device: u64,
    /// The namespace's inode.
    pub inode: u64,
}

impl NetnsId {
    /// Of the namespace that a file stands for.
    pub(crate) fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
        }
    }
}

impl Netns {
    /// Opens the namespace at `path`: `/proc/<pid>/ns/net`, or a file that it is mounted on.
    ///
    /// # Errors
    /// It cannot be opened, or is no network namespace.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::OpenNetns {
            path: path.into(),
            source,
        };
        // Not blocking: the path comes from a caller and may name a FIFO.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(fail)?;
        if namespace_type(file.as_fd()) != Some(CloneFlags::CLONE_NEWNET) {
            return Err(Error::NotANetns { path: path.into() });
        }
        let metadata = file.metadata().map_err(fail)?;
        let id = NetnsId::of(&metadata);
        Ok(Self { file, id })
    }

    /// Makes a new namespace with its loopback interface up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create() -> Result<Self, Error> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Enter {
                operation: "make a network namespace",
                source: errno.into(),
            })?;
            let netlink = Netlink::connect()?;
            if let Some(loopback) = netlink.link_by_name("lo")? {
                netlink.set_up(&loopback)?;
            }
            Self::open(Path::new(OWN_NETNS))
        })?
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new(OWN_NETNS))
    }

    /// What tells this namespace from others.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` in the namespace: in a thread of its own, so that the caller's namespace never changes. Waits for
    /// it; a panic in `work` goes on in the caller.
    ///
    /// # Errors
    /// The thread cannot be made, or may not enter the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        in_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Enter {
                operation: "enter the network namespace",
                source: errno.into(),
            })?;
            Ok(work())
        })?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|source: io::Error| Error::Enter {
                operation: "make a thread for the network namespace",
                source,
            })?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_in_the_namespace_and_the_caller_stays_where_it_is() {
        let before = Netns::current().unwrap().id();
        let netns = Netns::create().unwrap();
        let inside = netns.run(|| Netns::current().unwrap().id()).unwrap();
        assert_eq!(inside, netns.id());
        assert_ne!(inside, before);
        assert_eq!(Netns::current().unwrap().id(), before);
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        for path in ["/etc/passwd", "/proc/self/ns/mnt", "/proc"] {
            let error = Netns::open(Path::new(path)).unwrap_err();
            assert!(matches!(error, Error::NotANetns { .. }), "{path}: {error}");
        }
        let error = Netns::open(Path::new("/proc/4194305/ns/net")).unwrap_err();
        assert!(error.is_gone(), "{error}");
    }
}
