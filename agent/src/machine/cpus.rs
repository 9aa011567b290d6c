//! Brings CPUs online: a guest boots with one, which is faster, and gets the others while it works.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::container::spec::parse_cpus;

/// Why CPUs could not be counted or brought online.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A file of `/sys/devices/system/cpu`.
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
    /// A list that is none.
    #[error("{0:?} does not list CPUs")]
    List(PathBuf),
}

/// Brings CPUs online until `count` are, as far as there are so many, and says how many are. Blocks while the kernel
/// starts them. `root` is `/sys/devices/system/cpu`.
///
/// # Errors
/// See [`CpuError`].
pub fn bring_online(root: &Path, count: u32) -> Result<u32, CpuError> {
    let list = |name: &str| {
        let path = root.join(name);
        let text = fs::read_to_string(&path).map_err(|source| CpuError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        parse_cpus(&text).ok_or(CpuError::List(path))
    };
    let present = list("present")?;
    let mut online = list("online")?;
    for cpu in present {
        if online.len() >= usize::try_from(count).unwrap_or(usize::MAX) {
            break;
        }
        if online.contains(&cpu) {
            continue;
        }
        let path = root.join(format!("cpu{cpu}/online"));
        fs::write(&path, "1").map_err(|source| CpuError::File {
            action: "write",
            path,
            source,
        })?;
        online.insert(cpu);
    }
    Ok(u32::try_from(online.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_as_many_as_asked_for_are_brought_online() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("present"), "0-3\n").unwrap();
        fs::write(root.path().join("online"), "0\n").unwrap();
        for cpu in 1..4 {
            let directory = root.path().join(format!("cpu{cpu}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("online"), "0").unwrap();
        }
        assert_eq!(bring_online(root.path(), 3).unwrap(), 3);
        let state =
            |cpu: u32| fs::read_to_string(root.path().join(format!("cpu{cpu}/online"))).unwrap();
        assert_eq!([state(1), state(2), state(3)], ["1", "1", "0"]);
        assert_eq!(bring_online(root.path(), 1).unwrap(), 1);
    }
}
