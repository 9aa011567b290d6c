//! The root file system of a bundle: the mounts that containerd's snapshotter wants, made on the host, where the runtime
//! library finds them and shows them to the guest; or a disk, which the guest gets and mounts.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use hull_runtime::sandbox::disk::RootDisk;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::error::Error;

/// Where it is in the bundle.
pub(crate) const DIRECTORY: &str = "rootfs";
/// The most that options may be, in bytes: one page, which is what mount(2) copies.
const MAX_DATA: usize = 4095;

/// Options that are flags of mount(2), and whether they set or clear it.
const FLAGS: [(&str, MsFlags, bool); 26] = [
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("atime", MsFlags::MS_NOATIME, false),
    ("bind", MsFlags::MS_BIND, true),
    ("defaults", MsFlags::empty(), true),
    ("dev", MsFlags::MS_NODEV, false),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("mand", MsFlags::MS_MANDLOCK, true),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("nodev", MsFlags::MS_NODEV, true),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("nomand", MsFlags::MS_MANDLOCK, false),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("nostrictatime", MsFlags::MS_STRICTATIME, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    (
        "rbind",
        MsFlags::from_bits_truncate(libc::MS_BIND | libc::MS_REC),
        true,
    ),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("remount", MsFlags::MS_REMOUNT, true),
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("silent", MsFlags::MS_SILENT, true),
];

/// What options mean to mount(2).
#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    flags: MsFlags,
    data: String,
}

/// The disk that the root file system is; none if it is not a single one, or one that the guest cannot have.
pub(crate) fn disk(mounts: &[Mount]) -> Option<RootDisk> {
    match mounts {
        [wanted] if wanted.target.is_empty() => {
            RootDisk::of_mount(Path::new(&wanted.source), &wanted.type_, &wanted.options)
        }
        _ => None,
    }
}

/// Makes the mounts at `target`, a directory of the bundle, one over the other. When one fails none is left.
pub(crate) fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), Error> {
    if mounts.is_empty() {
        return Ok(());
    }
    if let Err(error) = std::fs::create_dir(target)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(Error::io("make", target)(error));
    }
    for wanted in mounts {
        if let Err(error) = mount_one(wanted, target) {
            if let Err(error) = unmount(target) {
                tracing::warn!(%error, path = %target.display(), "unmount");
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Takes off all that is mounted at `target`.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or there is no such directory.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn mount_one(wanted: &Mount, target: &Path) -> Result<(), Error> {
    if wanted.options.iter().any(|option| option == "loop") {
        let what = format!(
            "a root file system in the image {} (option loop)",
            wanted.source
        );
        return Err(Error::Unsupported(what));
    }
    let parsed = parse(&wanted.options);
    let place = place(target, &wanted.target)?;
    let fail = || Error::io("mount the root file system on", &place);
    if parsed.data.len() <= MAX_DATA {
        return mount_with(wanted, &place, &parsed).map_err(fail());
    }
    let short = shorten(&wanted.options).ok_or_else(|| Error::Invalid {
        what: "mount options",
        problem: format!("{} bytes are more than the kernel takes", parsed.data.len()),
    })?;
    // A thread of its own, for a directory of its own.
    std::thread::scope(|scope| {
        let mounted = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(&short.base)?;
            mount_with(wanted, &place, &parse(&short.options))
        });
        mounted
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(fail())
}

/// Where in the root file system a mount goes; containerd names a place in it only with several.
fn place(root: &Path, target: &str) -> Result<PathBuf, Error> {
    let relative = Path::new(target.trim_start_matches('/'));
    let is_plain = relative
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if !is_plain {
        return Err(Error::Invalid {
            what: "mount target",
            problem: target.into(),
        });
    }
    Ok(if target.is_empty() {
        root.into()
    } else {
        root.join(relative)
    })
}

fn mount_with(wanted: &Mount, place: &Path, parsed: &Parsed) -> io::Result<()> {
    let data = (!parsed.data.is_empty()).then_some(parsed.data.as_str());
    mount(
        Some(wanted.source.as_str()),
        place,
        Some(wanted.type_.as_str()),
        parsed.flags,
        data,
    )?;
    // A bind mount takes its flags only when it is mounted once more.
    let others = parsed.flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
    if parsed.flags.contains(MsFlags::MS_BIND) && !others.is_empty() {
        let again = parsed.flags | MsFlags::MS_REMOUNT;
        mount(None::<&str>, place, None::<&str>, again, None::<&str>)?;
    }
    Ok(())
}

fn parse(options: &[String]) -> Parsed {
    let mut flags = MsFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, flag, sets)) => flags.set(*flag, *sets),
            None => data.push(option),
        }
    }
    Parsed {
        flags,
        data: data.join(","),
    }
}

/// Options of an overlay whose layers are named from a directory that is above all of them.
struct Short {
    base: PathBuf,
    options: Vec<String>,
}

fn shorten(options: &[String]) -> Option<Short> {
    const LAYERS: &str = "lowerdir=";
    let layers = options
        .iter()
        .find_map(|option| option.strip_prefix(LAYERS))?;
    let layers: Vec<&Path> = layers.split(':').map(Path::new).collect();
    let base = layers
        .first()?
        .ancestors()
        .skip(1)
        .find(|base| layers.iter().all(|layer| layer.starts_with(base)))?;
    let relative: Option<Vec<&str>> = layers
        .iter()
        .map(|layer| layer.strip_prefix(base).ok()?.to_str())
        .collect();
    let relative = relative?.join(":");
    let options = options
        .iter()
        .map(|option| match option.strip_prefix(LAYERS) {
            Some(_) => format!("{LAYERS}{relative}"),
            None => option.clone(),
        })
        .collect();
    let short = Short {
        base: base.into(),
        options,
    };
    (parse(&short.options).data.len() <= MAX_DATA).then_some(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn options_are_flags_or_data() {
        let parsed = parse(&strings(&[
            "ro",
            "nosuid",
            "rw",
            "lowerdir=/a:/b",
            "userxattr",
        ]));
        assert_eq!(parsed.flags, MsFlags::MS_NOSUID);
        assert_eq!(parsed.data, "lowerdir=/a:/b,userxattr");
        let parsed = parse(&strings(&["rbind", "ro"]));
        assert_eq!(
            parsed.flags,
            MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY
        );
    }

    #[test]
    fn layers_are_named_from_a_directory_above_them() {
        let layer = |number: usize| format!("/var/lib/containerd/snapshots/{number}/fs");
        let many: Vec<String> = (0..150).map(layer).collect();
        let options = strings(&["index=off", &format!("lowerdir={}", many.join(":"))]);
        assert!(parse(&options).data.len() > MAX_DATA);
        let short = shorten(&options).unwrap();
        assert_eq!(short.base, Path::new("/var/lib/containerd/snapshots"));
        assert_eq!(short.options[0], "index=off");
        assert!(short.options[1].starts_with("lowerdir=0/fs:1/fs:"));
        assert!(shorten(&strings(&["index=off"])).is_none());
    }

    #[test]
    fn a_mount_stays_in_the_root_file_system() {
        let root = Path::new("/b/rootfs");
        assert_eq!(place(root, "").unwrap(), root);
        assert_eq!(place(root, "/data").unwrap(), root.join("data"));
        place(root, "../x").unwrap_err();
    }

    #[test]
    fn an_image_in_a_file_is_refused() {
        let mut mount = Mount::new();
        mount.source = "/image".into();
        mount.options = strings(&["loop"]);
        let error = mount_one(&mount, Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("/image"), "{error}");
    }
}
