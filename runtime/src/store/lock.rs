//! The lock of a sandbox: `flock(2)` on a file, freed by the kernel when its holder ends, however it ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::StoreError;

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Makes the lock file, and takes the lock.
    pub(super) fn create(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::io("make", path))?;
        Self::of(file, path)
    }

    /// Waits for the lock; nothing if the file is gone, or is gone once it is this process's turn.
    pub(super) fn acquire(path: &Path) -> Result<Option<Self>, StoreError> {
        loop {
            let file = match OpenOptions::new().write(true).open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(StoreError::io("open", path)(error)),
            };
            let opened = file.metadata().map_err(StoreError::io("open", path))?.ino();
            let lock = Self::of(file, path)?;
            // Whoever had the lock may have removed the file, and another sandbox may have made a new one.
            match std::fs::metadata(path) {
                Ok(metadata) if metadata.ino() == opened => return Ok(Some(lock)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(StoreError::io("open", path)(error)),
            }
        }
    }

    fn of(mut file: File, path: &Path) -> Result<Self, StoreError> {
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(file) => return Ok(Self { _file: file }),
                Err((returned, nix::errno::Errno::EINTR)) => file = returned,
                Err((_, errno)) => return Err(StoreError::io("lock", path)(errno.into())),
            }
        }
    }
}
