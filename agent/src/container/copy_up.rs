//! `tmpcopyup`, an option of tmpfs mounts that runc knows and engines use: the tmpfs begins with what the image has in
//! its place. Such a tmpfs is mounted and filled beside the container, and bound into it. One without the option has only
//! the mode of what is in its place.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use oci_spec::runtime::Spec;
use pathrs::Root;
use pathrs::flags::OpenFlags;

use super::Error;
use crate::mounts::Storage;

const OPTION: &str = "tmpcopyup";

/// The mounts beside a container, which go with this value; what is bound into the container stays.
#[derive(Debug, Default)]
pub(super) struct Filled(Vec<PathBuf>);

impl Drop for Filled {
    fn drop(&mut self) {
        for path in &self.0 {
            let unmounted = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            if let Err(error) = unmounted
                .map_err(io::Error::from)
                .and_then(|()| fs::remove_dir(path))
            {
                tracing::error!(?path, %error, "a tmpfs stays beside its container");
            }
        }
    }
}

/// Mounts and fills, below `directory`, what `spec` has with the option, and takes the option out of `spec`; gives the
/// other tmpfs their modes. Blocks.
///
/// # Errors
/// The image's files cannot be read, or are more than the tmpfs holds.
pub(super) fn fill(spec: &mut Spec, directory: &Path) -> Result<Filled, Error> {
    let mut filled = Filled::default();
    let root = spec
        .root()
        .as_ref()
        .and_then(|root| Root::open(root.path()).ok());
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        let mut options = mount.options().clone().unwrap_or_default();
        let all = options.len();
        options.retain(|option| option != OPTION);
        let copies = options.len() < all;
        if !copies && mount.typ().as_deref() != Some("tmpfs") {
            continue;
        }
        let has_mode = options.iter().any(|option| option.starts_with("mode="));
        let place = root.as_ref().and_then(|root| {
            // With nothing there, there is nothing to copy.
            root.open_subpath(mount.destination(), OpenFlags::O_DIRECTORY)
                .ok()
        });
        if let Some(place) = place.as_ref().filter(|_| !copies && !has_mode) {
            options.push(mode_of(place, mount.destination())?);
        } else if let Some(place) = place.filter(|_| copies) {
            let path = directory.join(format!("tmpfs-{index}"));
            Storage {
                kind: "tmpfs".into(),
                source: "tmpfs".into(),
                target: path.clone(),
                options: options
                    .iter()
                    .filter(|option| *option != "ro")
                    .cloned()
                    .collect(),
            }
            .mount(|| Ok(()))?;
            filled.0.push(path.clone());
            copy(&place, &path, !has_mode).map_err(|source| Error::File {
                action: "copy the image's files to",
                path: mount.destination().clone(),
                source,
            })?;
            // What only a tmpfs knows is done.
            options.retain(|option| !option.contains('='));
            options.push("bind".into());
            mount.set_typ(Some("bind".into())).set_source(Some(path));
        }
        mount.set_options(Some(options));
    }
    Ok(filled)
}

/// The option for a tmpfs that is to have the mode of the directory in its place.
fn mode_of(place: &File, destination: &Path) -> Result<String, Error> {
    let metadata = place.metadata().map_err(|source| Error::File {
        action: "look at",
        path: destination.to_owned(),
        source,
    })?;
    Ok(format!("mode={:o}", metadata.mode() & 0o7777))
}

/// Copies what is in a directory, with owners and modes, and if asked for the directory's own.
fn copy(from: &File, to: &Path, with_own: bool) -> io::Result<()> {
    if with_own {
        adopt(to, &from.metadata()?)?;
    }
    let from = PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd()));
    let mut directories = vec![(from, to.to_owned())];
    while let Some((from, to)) = directories.pop() {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let metadata = entry.metadata()?;
            let kind = metadata.file_type();
            if kind.is_symlink() {
                symlink(fs::read_link(&from)?, &to)?;
                lchown(&to, Some(metadata.uid()), Some(metadata.gid()))?;
                continue;
            }
            if kind.is_dir() {
                fs::create_dir(&to)?;
                directories.push((from, to.clone()));
            } else if kind.is_file() {
                fs::copy(&from, &to)?;
            } else if kind.is_socket() {
                // Nobody listens.
                continue;
            } else {
                let kind = SFlag::from_bits_truncate(metadata.mode()) & SFlag::S_IFMT;
                mknod(&to, kind, Mode::empty(), metadata.rdev())?;
            }
            adopt(&to, &metadata)?;
        }
    }
    Ok(())
}

/// Gives a file the owner and the mode of another. The owner first: a new one takes the set-user-id bit away.
fn adopt(path: &Path, metadata: &Metadata) -> io::Result<()> {
    chown(path, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_copied_with_links_and_modes() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        let deep = from.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "text").unwrap();
        fs::set_permissions(deep.join("file"), fs::Permissions::from_mode(0o4711)).unwrap();
        symlink("/nowhere", from.path().join("link")).unwrap();
        fs::set_permissions(from.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        copy(&File::open(from.path()).unwrap(), to.path(), true).unwrap();
        assert_eq!(to.path().metadata().unwrap().mode() & 0o7777, 0o1777);
        let file = to.path().join("a/b/file");
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o4711);
        assert_eq!(fs::read_to_string(file).unwrap(), "text");
        let link = fs::read_link(to.path().join("link")).unwrap();
        assert_eq!(link, Path::new("/nowhere"));
    }
}
