//! Files that are there whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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
