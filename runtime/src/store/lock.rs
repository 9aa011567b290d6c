//! The locks of sandboxes, and of containers that are being deleted: `flock(2)` on a file or a directory, freed by the
//! kernel when its holder ends, however it ends.

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

    /// Waits for the lock that a directory is; nothing if there is none, or it is gone once it is this process's turn.
    pub(super) fn of_directory(path: &Path) -> Result<Option<Self>, StoreError> {
        let directory = match File::open(path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open", path)(error)),
        };
        let opened = directory.metadata();
        let opened = opened.map_err(StoreError::io("open", path))?.ino();
        let lock = Self::of(directory, path)?;
        match std::fs::metadata(path) {
            // Another with the same name is another container's.
            Ok(metadata) => Ok((metadata.ino() == opened).then_some(lock)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("open", path)(error)),
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
