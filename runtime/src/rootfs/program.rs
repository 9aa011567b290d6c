//! Whether a container's program is there, as far as the host can tell without running anything: the check that saves
//! a VM's boot. What it cannot tell (the program lies in a mount) is left to the guest.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use oci_spec::runtime::Process;

use super::RootfsError;
use crate::bundle::Bundle;

/// What PATH is where a process has none; runc's too.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks for the program of `bundle`'s process as the kernel would in the container. Symbolic links are followed within
/// the root file system.
///
/// # Errors
/// It is not there, or may not be executed.
pub fn check(bundle: &Bundle) -> Result<(), RootfsError> {
    let mounts: Vec<&Path> = bundle
        .spec
        .mounts()
        .iter()
        .flatten()
        .map(|mount| mount.destination().as_path())
        .collect();
    let Ok(root) = File::open(&bundle.rootfs) else {
        // The mount of the root file system will say why.
        return Ok(());
    };
    let rootfs = Rootfs {
        root,
        path: &bundle.rootfs,
        mounts: &mounts,
    };
    find(&bundle.process, |path| rootfs.look(path))
}

/// What there is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Executable,
    NotExecutable,
    Nothing,
    /// In a mount, or not to be seen by this process.
    Unknown,
}

fn find(process: &Process, look: impl Fn(&Path) -> Found) -> Result<(), RootfsError> {
    let Some(program) = process.args().iter().flatten().next().cloned() else {
        return Ok(());
    };
    if program.contains('/') {
        return match look(&process.cwd().join(&program)) {
            Found::Executable | Found::Unknown => Ok(()),
            Found::NotExecutable => Err(RootfsError::NotExecutable { program }),
            Found::Nothing => Err(RootfsError::NoProgram { program }),
        };
    }
    let path = process
        .env()
        .iter()
        .flatten()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut not_executable = false;
    for directory in path.split(':').filter(|_| !program.is_empty()) {
        match look(&process.cwd().join(directory).join(&program)) {
            Found::Executable | Found::Unknown => return Ok(()),
            Found::NotExecutable => not_executable = true,
            Found::Nothing => {}
        }
    }
    if not_executable {
        Err(RootfsError::NotExecutable { program })
    } else {
        Err(RootfsError::NotInPath { program })
    }
}

struct Rootfs<'a> {
    root: File,
    path: &'a Path,
    /// Where the container has mounts.
    mounts: &'a [&'a Path],
}

impl Rootfs<'_> {
    fn look(&self, path: &Path) -> Found {
        if self.is_mounted(path) {
            return Found::Unknown;
        }
        match self.resolve(path) {
            Ok((resolved, _)) if self.is_mounted(&resolved) => Found::Unknown,
            Ok((_, metadata)) if metadata.is_file() && metadata.mode() & 0o111 != 0 => {
                Found::Executable
            }
            Ok(_) => Found::NotExecutable,
            // A link may lead through a directory that is a mount: only what is missing without one is missing.
            Err(Errno::ENOENT | Errno::ENOTDIR) if !self.leads_into_mount(path) => Found::Nothing,
            Err(_) => Found::Unknown,
        }
    }

    fn is_mounted(&self, path: &Path) -> bool {
        self.mounts
            .iter()
            .any(|mount| *mount != Path::new("/") && path.starts_with(mount))
    }

    /// Whether the longest existing part of `path`, or a link at its end, could lead into a mount.
    fn leads_into_mount(&self, path: &Path) -> bool {
        let is_link = |path: &Path| {
            let inside = path.strip_prefix("/").unwrap_or(path);
            std::fs::symlink_metadata(self.path.join(inside))
                .is_ok_and(|metadata| metadata.is_symlink())
        };
        // A dangling link is rare; the guest then has the word.
        is_link(path)
            || path.ancestors().skip(1).any(|part| {
                self.resolve(part)
                    .is_ok_and(|(resolved, _)| self.is_mounted(&resolved))
                    || (self.resolve(part).is_err() && is_link(part))
            })
    }

    /// Opens `path` as if the root file system were the root; gives what it came to, seen from there.
    fn resolve(&self, path: &Path) -> Result<(PathBuf, std::fs::Metadata), Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = File::from(openat2(self.root.as_fd(), path, how)?);
        let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let metadata = file.metadata().map_err(errno)?;
        let resolved =
            std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(errno)?;
        let resolved = resolved
            .strip_prefix(self.path)
            .map_or_else(|_| resolved.clone(), |inside| Path::new("/").join(inside));
        Ok((resolved, metadata))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn process(args: &[&str], path: Option<&str>, cwd: &str) -> Process {
        let mut process = Process::default();
        process
            .set_args(Some(args.iter().map(|arg| (*arg).to_owned()).collect()))
            .set_env(path.map(|path| vec![format!("PATH={path}")]))
            .set_cwd(cwd.into());
        process
    }

    fn check_in(root: &Path, mounts: &[&str], process: &Process) -> Result<(), RootfsError> {
        let mounts: Vec<&Path> = mounts.iter().map(Path::new).collect();
        let rootfs = Rootfs {
            root: File::open(root).unwrap(),
            path: root,
            mounts: &mounts,
        };
        find(process, |path| rootfs.look(path))
    }

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        for made in ["usr/bin", "etc", "work"] {
            std::fs::create_dir_all(root.join(made)).unwrap();
        }
        for (file, mode) in [
            ("usr/bin/busybox", 0o755),
            ("etc/passwd", 0o644),
            ("work/run", 0o700),
        ] {
            std::fs::write(root.join(file), "").unwrap();
            std::fs::set_permissions(root.join(file), PermissionsExt::from_mode(mode)).unwrap();
        }
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/bin/busybox", root.join("usr/bin/sh")).unwrap();
        symlink("../../../../../../etc/passwd", root.join("usr/bin/out")).unwrap();
        symlink("/dev/init", root.join("usr/bin/init")).unwrap();
        (directory, root)
    }

    #[test]
    fn programs_are_found_within_the_root_file_system() {
        let (_directory, root) = tree();
        for process in [
            process(&["sh", "-c", "x"], Some("/sbin:/bin"), "/"),
            process(&["busybox"], None, "/"),
            process(&["/bin/sh"], Some(""), "/"),
            process(&["./run"], None, "/work"),
            process(&["run"], Some("."), "/work"),
        ] {
            check_in(&root, &[], &process).unwrap();
        }
    }

    #[test]
    fn what_is_missing_or_no_program_is_told_apart() {
        let (_directory, root) = tree();
        let missing = check_in(&root, &[], &process(&["nosuch"], Some("/bin"), "/")).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "exec: \"nosuch\": executable file not found in $PATH"
        );
        let nameless = check_in(&root, &[], &process(&[""], Some("/bin"), "/")).unwrap_err();
        assert!(matches!(nameless, RootfsError::NotInPath { .. }));
        let missing = check_in(&root, &[], &process(&["/bin/nosuch"], None, "/")).unwrap_err();
        assert!(matches!(missing, RootfsError::NoProgram { .. }));
        for program in ["/etc/passwd", "/usr/bin/out", "/etc"] {
            let error = check_in(&root, &[], &process(&[program], None, "/")).unwrap_err();
            assert!(
                matches!(error, RootfsError::NotExecutable { .. }),
                "{program}"
            );
        }
    }

    #[test]
    fn what_lies_in_a_mount_is_left_to_the_guest() {
        let (_directory, root) = tree();
        let mounts = ["/dev", "/opt", "/proc"];
        for program in ["/opt/tool", "/dev/init", "/usr/bin/init"] {
            check_in(&root, &mounts, &process(&[program], None, "/")).unwrap();
        }
        check_in(&root, &["/usr"], &process(&["/bin/nosuch"], None, "/")).unwrap();
    }
}
