//! Files that are there whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// How often the removal of a directory is tried in which somebody makes files meanwhile.
const REMOVE_ATTEMPTS: u32 = 20;

/// Writes `bytes` to `path` with mode `mode`, by way of a temporary file beside it and a rename. When that fails,
/// what was at `path` still is, and the temporary file is gone.
///
/// # Errors
/// The disk is full, for one.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = directory.join(temporary);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        std::fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // The first failure is the one to tell; the file may not even be there.
        let _ = std::fs::remove_file(&temporary);
    })
}

/// The same in a directory of others, where a process that is killed may leave no temporary file: the file has no name
/// before it is whole. One that was at `path` is gone a moment before.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_unnamed(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let unnamed = OpenOptions::new()
        .write(true)
        .mode(mode)
        .custom_flags(libc::O_TMPFILE)
        .open(directory);
    let mut file = match unnamed {
        // A file system that has no such files.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return write_atomic(path, bytes, mode);
        }
        other => other?,
    };
    file.write_all(bytes)?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    loop {
        match linkat(
            AT_FDCWD,
            unnamed.as_str(),
            AT_FDCWD,
            path,
            AtFlags::AT_SYMLINK_FOLLOW,
        ) {
            Err(Errno::EEXIST) => std::fs::remove_file(path)?,
            answer => return Ok(answer?),
        }
    }
}

pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| StoreError::io("write", path)(source.into()))?;
    write_atomic(path, &bytes, 0o600).map_err(StoreError::io("write", path))
}

/// Nothing if there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    serde_json::from_reader(io::BufReader::new(file))
        .map(Some)
        .map_err(|source| StoreError::Damaged {
            path: path.into(),
            source,
        })
}

/// Nothing happens if there is no such directory.
pub(super) fn remove_directory(path: &Path) -> Result<(), StoreError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match std::fs::remove_dir_all(path) {
            // A VMM whose maker was killed may still be making files in it.
            Err(error)
                if error.kind() == io::ErrorKind::DirectoryNotEmpty
                    && attempts < REMOVE_ATTEMPTS => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", path)(error));
            }
            _ => return Ok(()),
        }
    }
}
