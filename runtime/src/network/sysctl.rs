//! Values below `/proc/sys/net`, which is that of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;

/// The file of a per-interface value: `conf("ipv6", "eth0", "disable_ipv6")`.
pub(super) fn conf(family: &str, interface: &str, name: &str) -> PathBuf {
    ["/proc/sys/net", family, "conf", interface, name]
        .iter()
        .collect()
}

/// Reads a value; none if this kernel does not have it.
pub(super) fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(value) => Ok(Some(value.trim_end().into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(fail(path, source)),
    }
}

/// Writes a value that the kernel has; without it nothing is written.
pub(super) fn write(path: &Path, value: &str) -> Result<(), Error> {
    match fs::write(path, value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(path, error)),
        _ => Ok(()),
    }
}

fn fail(path: &Path, source: io::Error) -> Error {
    Error::Sysctl {
        path: path.into(),
        source,
    }
}
