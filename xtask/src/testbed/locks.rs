//! File locks, which the kernel lets go of when their holder ends, however it ends.

use std::fs::{File, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Waits for the lock on `path` that only one can hold.
pub(super) fn exclusive(path: &Path) -> Result<Flock<File>> {
    wait(path, FlockArg::LockExclusive)
}

/// Waits for the lock on `path` that many can hold.
pub(super) fn shared(path: &Path) -> Result<Flock<File>> {
    wait(path, FlockArg::LockShared)
}

/// Takes the exclusive lock on `path`, unless somebody holds one.
pub(super) fn try_exclusive(path: &Path) -> Result<Option<Flock<File>>> {
    match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn wait(path: &Path, kind: FlockArg) -> Result<Flock<File>> {
    Flock::lock(open(path)?, kind)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("cannot lock {}", path.display()))
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}
