//! Results that are expensive to make, kept outside the checkout under the hash of their inputs.
//!
//! The cache is `$HULL_CACHE`, or `~/.cache/hull`. An entry is a directory that appears whole (it is
//! filled under another name and then renamed) and never changes afterwards, so a clean clone finds
//! what another checkout made, and a build that was interrupted leaves nothing that looks finished.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// The cache's directory, made if it is missing.
pub(crate) fn root() -> Result<PathBuf> {
    let root = match std::env::var_os("HULL_CACHE") {
        Some(path) if !path.is_empty() => std::path::absolute(PathBuf::from(path))?,
        _ => {
            let home = std::env::var_os("HOME").context("neither HULL_CACHE nor HOME is set")?;
            PathBuf::from(home).join(".cache/hull")
        }
    };
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    Ok(root)
}

/// Whether the entry at `path` is there.
pub(crate) fn has(path: &str) -> Result<bool> {
    Ok(root()?.join(path).exists())
}

/// The entry at `path` (below the cache's directory), filled by `fill` if it is not there yet.
///
/// `fill` is given an empty directory. Others who want an entry of the same name meanwhile, in this
/// process or another, wait for it.
pub(crate) fn entry(path: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let finished = root()?.join(path);
    if finished.exists() {
        return Ok(finished);
    }
    let parent = finished.parent().context("a cache entry has a parent")?;
    fs::create_dir_all(parent)?;
    let _lock = lock(&with_suffix(&finished, ".lock"))?;
    if finished.exists() {
        return Ok(finished);
    }
    let unfinished = with_suffix(&finished, ".unfinished");
    remove_tree(&unfinished)?;
    fs::create_dir(&unfinished)?;
    fill(&unfinished)?;
    fs::rename(&unfinished, &finished)
        .with_context(|| format!("cannot publish {}", finished.display()))?;
    Ok(finished)
}

/// Holds an exclusive lock on the file `path` until the result is dropped.
pub(crate) fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => {
            return Err(errno).with_context(|| format!("cannot lock {}", path.display()));
        }
    };
    eprintln!("waiting for another run, which holds {}", path.display());
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("cannot lock {}", path.display()))
}

/// Copies `source` over `target` in one step, so that whoever has the old file open keeps it, and
/// leaves `target` alone when it has the same content already.
pub(crate) fn install(source: &Path, target: &Path) -> Result<()> {
    if same_content(source, target)? {
        return Ok(());
    }
    let parent = target.parent().context("an installed file has a parent")?;
    fs::create_dir_all(parent)?;
    let unfinished = with_suffix(target, ".unfinished");
    fs::copy(source, &unfinished)
        .and_then(|_| fs::rename(&unfinished, target))
        .with_context(|| format!("cannot copy {} to {}", source.display(), target.display()))
}

fn same_content(left: &Path, right: &Path) -> Result<bool> {
    let right_metadata = match fs::metadata(right) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| right.display().to_string()),
    };
    let left_metadata =
        fs::metadata(left).with_context(|| format!("cannot read {}", left.display()))?;
    if left_metadata.len() != right_metadata.len()
        || left_metadata.permissions() != right_metadata.permissions()
    {
        return Ok(false);
    }
    Ok(fs::read(left)? == fs::read(right)?)
}

/// Removes a directory with all below it, if it is there.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// The SHA-256 hash of named inputs, in the order in which they were added.
#[derive(Default)]
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    /// Adds the input `name` with its content; both are delimited by their lengths.
    pub(crate) fn add(&mut self, name: &str, content: impl AsRef<[u8]>) {
        for part in [name.as_bytes(), content.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    /// Adds the input `name` with the content of the file `path`.
    pub(crate) fn add_file(&mut self, name: &str, path: &Path) -> Result<()> {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(name, content);
        Ok(())
    }

    /// The hash's first 128 bits in hexadecimal, as a name for a cache entry.
    pub(crate) fn name(self) -> String {
        self.0
            .finalize()
            .iter()
            .take(16)
            .fold(String::new(), |mut name, byte| {
                // Writing to a string cannot fail.
                let _ = write!(name, "{byte:02x}");
                name
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_tells_where_an_input_ends() {
        let mut one = Fingerprint::default();
        one.add("a", "bc");
        let mut other = Fingerprint::default();
        other.add("ab", "c");
        let (one, other) = (one.name(), other.name());
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
    }
}
