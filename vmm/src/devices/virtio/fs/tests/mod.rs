//! The device with its threads, against a FUSE client on plain memory and real directories. They run as root.

mod guest;
mod hostile;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{
    ATTR_SUBMOUNT, AttrOut, EntryOut, GetattrIn, GetxattrIn, GetxattrOut, MkdirIn, Opcode, OpenIn,
    OpenOut, SetxattrIn, WriteOut,
};
use fuse_backend_rs::api::filesystem::{FsOptions, ROOT_ID};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use vm_memory::ByteValued;

use self::guest::{Guest, REPLY, REQUEST, ROOT, User, text};
use super::device::{Fs, FsError};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::test_driver::{READ, WRITE, eventually, write_bytes};

const USER: User = User {
    uid: 1000,
    gid: 1001,
};

#[test]
fn the_configuration_space_has_the_tag_and_one_request_queue() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let device = Fs::new("hull", directory.path()).expect("device");
    let mut config = [0xff; 44];
    device.read_config(0, &mut config);
    let mut expected = [0; 40];
    expected[..4].copy_from_slice(b"hull");
    expected[36] = 1;
    assert_eq!(config[..40], expected);
    assert_eq!(config[40..], [0xff; 4]);
    device.read_config(u64::MAX, &mut config);
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("file");
    fs::write(&file, "").expect("write");
    let tag = |tag: &str| Fs::new(tag, directory.path()).err();
    assert!(matches!(tag(""), Some(FsError::TagLength(0))));
    assert!(matches!(tag(&"x".repeat(37)), Some(FsError::TagLength(37))));
    let share = |path: &Path| Fs::new("x", path).err();
    assert!(matches!(share(&file), Some(FsError::Directory { .. })));
    let missing = directory.path().join("missing");
    assert!(matches!(share(&missing), Some(FsError::Directory { .. })));
    assert!(matches!(
        share(Path::new("a\0b")),
        Some(FsError::Directory { .. })
    ));
}

#[test]
fn the_first_exchange_agrees_on_a_megabyte_and_on_submounts() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut guest = Guest::unmounted(directory.path());
    let init = guest.init();
    assert_eq!(
        (init.major, init.max_write, init.max_pages),
        (7, 1 << 20, 256)
    );
    let agreed = FsOptions::from_bits_truncate(u64::from(init.flags));
    for option in [
        FsOptions::SUBMOUNTS,
        FsOptions::AUTO_INVAL_DATA,
        FsOptions::DO_READDIRPLUS,
        FsOptions::HANDLE_KILLPRIV_V2,
    ] {
        assert!(agreed.contains(option), "{option:?}");
    }
    assert!(!agreed.contains(FsOptions::WRITEBACK_CACHE));
    assert!(guest.interrupt.count(1) > 0);
}

#[test]
fn files_are_written_and_read() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut guest = Guest::new(directory.path());
    let (node, handle) = guest.create(ROOT, ROOT_ID, "file").expect("create");
    let data: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    let written: WriteOut = guest.write(node, handle, 7, &data).read();
    assert_eq!(written.size, 1 << 20);
    let on_host = fs::read(directory.path().join("file")).expect("read on the host");
    assert!(on_host[..7] == [0; 7] && on_host[7..] == data);

    // Changed by the host, read by the guest, in one request of a megabyte.
    fs::write(directory.path().join("file"), &data[1..]).expect("write on the host");
    let reply = guest.read(node, handle, 0, 1 << 20);
    assert_eq!(reply.errno, 0);
    assert!(reply.body == data[1..]);

    let found = guest.lookup(ROOT_ID, "file").expect("look up");
    assert_eq!(found.nodeid, node);
    assert_eq!((found.entry_valid, found.attr_valid), (1, 1));
    let other = guest.open(node).expect("open");
    assert_ne!(other, handle);
}

#[test]
fn files_belong_to_the_user_who_makes_them() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut guest = Guest::new(directory.path());
    // The guest's kernel lets the user in, by a group or a capability of which the host knows nothing.
    fs::create_dir(directory.path().join("private")).expect("make a directory");
    let closed = fs::Permissions::from_mode(0o700);
    fs::set_permissions(directory.path().join("private"), closed).expect("change the mode");
    let private = guest.lookup(ROOT_ID, "private").expect("look up").nodeid;
    guest.create(USER, private, "file").expect("create");
    let mkdir = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let body = [mkdir.as_slice(), &text("directory")].concat();
    assert_eq!(guest.call(USER, Opcode::Mkdir, private, &body).errno, 0);
    for name in ["file", "directory"] {
        let path = directory.path().join("private").join(name);
        let metadata = path.metadata().expect("metadata");
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (USER.uid, USER.gid),
            "{name}"
        );
    }
    guest.create(ROOT, private, "after").expect("create");
    let after = directory.path().join("private/after");
    assert_eq!(after.metadata().expect("metadata").uid(), 0);
}

#[test]
fn listings_and_attributes_have_the_same_inode_numbers() {
    let directory = tempfile::tempdir().expect("temporary directory");
    for name in ["a", "b"] {
        fs::write(directory.path().join(name), "").expect("write");
    }
    fs::create_dir_all(directory.path().join("d/e")).expect("directories");
    let mut guest = Guest::new(directory.path());
    for op in [Opcode::Readdir, Opcode::Readdirplus] {
        let names = guest.list(ROOT_ID, op);
        assert_eq!(names.len(), 5);
        for (name, ino) in names {
            // The directory that is shared has nothing above it.
            let ino_of = match name.as_str() {
                "." | ".." => directory.path().metadata().expect("metadata").ino(),
                name => guest.lookup(ROOT_ID, name).expect("look up").attr.ino,
            };
            assert_eq!(ino_of, ino, "{name}");
        }
    }
    let below = guest.lookup(ROOT_ID, "d").expect("look up").nodeid;
    let names = guest.list(below, Opcode::Readdirplus);
    let names: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [".", "..", "e"]);
}

#[test]
fn links_are_given_to_the_guest_and_not_followed() {
    let directory = tempfile::tempdir().expect("temporary directory");
    symlink("/etc", directory.path().join("out")).expect("symlink");
    let mut guest = Guest::new(directory.path());
    let link = guest.lookup(ROOT_ID, "out").expect("look up");
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    let target = guest.call(ROOT, Opcode::Readlink, link.nodeid, &[]);
    assert_eq!(target.body, b"/etc");
    assert_eq!(
        guest.lookup(link.nodeid, "passwd").err(),
        Some(libc::ENOTDIR)
    );
    assert_eq!(guest.open(link.nodeid).err(), Some(libc::EBADF));
    assert_eq!(guest.create(ROOT, ROOT_ID, "out").err(), Some(libc::EBADF));
}

#[test]
fn mounts_that_appear_later_are_announced_and_crossed() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().to_owned();
    // The mounts are this thread's, and those of the device's threads, which it starts.
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let none: Option<&str> = None;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).expect("private mounts");
        fs::create_dir_all(path.join("c/rootfs")).expect("directories");
        fs::create_dir(path.join("again")).expect("a directory");

        let mut guest = Guest::new(&path);
        let before = guest.walk("c/rootfs");
        assert_eq!(before.attr.flags & ATTR_SUBMOUNT, 0);

        mount(
            Some("tmpfs"),
            &path.join("c/rootfs"),
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .expect("mount");
        fs::write(path.join("c/rootfs/file"), "inside").expect("write");
        let rootfs = path.join("c/rootfs");
        mount(
            Some(&rootfs),
            &path.join("again"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .expect("bind");

        let after = guest.walk("c/rootfs");
        assert_ne!(after.nodeid, before.nodeid);
        assert_eq!(after.attr.flags & ATTR_SUBMOUNT, ATTR_SUBMOUNT);
        let file = guest.walk("c/rootfs/file");
        assert_eq!(file.attr.size, 6);
        // The same file by another mount is another node, for the guest sees two mounts.
        assert_ne!(guest.walk("again/file").nodeid, file.nodeid);

        let listed = guest.list(ROOT_ID, Opcode::Readdirplus);
        assert_eq!(listed.len(), 4);
        let handle = guest.open(file.nodeid).expect("open");
        assert_eq!(guest.read(file.nodeid, handle, 0, 100).body, b"inside");
    })
    .join()
    .expect("the test's thread");
}

#[test]
fn extended_attributes_are_kept() {
    const NAME: &str = "trusted.hull";
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("file"), "x").expect("write");
    let mut guest = Guest::new(directory.path());
    let node = guest.lookup(ROOT_ID, "file").expect("look up").nodeid;
    let set = SetxattrIn { size: 5, flags: 0 };
    let body = [set.as_slice(), &text(NAME), b"value"].concat();
    assert_eq!(guest.call(ROOT, Opcode::Setxattr, node, &body).errno, 0);
    let get = |size| {
        let get = GetxattrIn {
            size,
            ..GetxattrIn::default()
        };
        [get.as_slice(), &text(NAME)].concat()
    };
    let value = guest.call(ROOT, Opcode::Getxattr, node, &get(u32::MAX));
    assert_eq!(value.body, b"value");
    let length: GetxattrOut = guest.call(ROOT, Opcode::Getxattr, node, &get(0)).read();
    assert_eq!(length.size, 5);
    let short = guest.call(ROOT, Opcode::Getxattr, node, &get(4));
    assert_eq!(short.errno, libc::ERANGE);
    let names = guest.call(ROOT, Opcode::Listxattr, node, &get(1000));
    assert!(
        names
            .body
            .split(|byte| *byte == 0)
            .any(|name| name == NAME.as_bytes())
    );
    let removed = guest.call(ROOT, Opcode::Removexattr, node, &text(NAME));
    assert_eq!(removed.errno, 0);
    let gone = guest.call(ROOT, Opcode::Getxattr, node, &get(1000));
    assert_eq!(gone.errno, libc::ENODATA);
}

#[test]
fn what_is_opened_for_reading_is_closed_without_asking() {
    const FOPEN_NOFLUSH: u32 = 1 << 5;
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("file"), "x").expect("write");
    let mut guest = Guest::new(directory.path());
    let node = guest.lookup(ROOT_ID, "file").expect("look up").nodeid;
    for (flags, unasked) in [
        (libc::O_RDONLY, true),
        (libc::O_RDWR, false),
        (libc::O_WRONLY, false),
    ] {
        let open = OpenIn {
            flags: u32::try_from(flags).expect("positive"),
            fuse_flags: 0,
        };
        let opened: OpenOut = guest.call(ROOT, Opcode::Open, node, open.as_slice()).read();
        assert_eq!(opened.open_flags & FOPEN_NOFLUSH != 0, unasked, "{flags}");
    }
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("file"), "x").expect("write");
    let mut guest = Guest::new(directory.path());
    let message = guest.message(ROOT, Opcode::Lookup as u32, ROOT_ID, &text("file"));
    write_bytes(&guest.memory, REQUEST, &message);
    let length = u32::try_from(message.len()).expect("small");
    let size = u32::try_from(16 + size_of::<EntryOut>()).expect("small");
    for slot in 0..200_u64 {
        let room = (REPLY + slot * 0x1000, 0x1000, WRITE);
        guest.requests.offer_chain(&[(REQUEST, length, READ), room]);
    }
    guest.kick.write(1).expect("kick");
    let mut heads = BTreeSet::new();
    eventually("all replies", || {
        while let Some((head, written)) = guest.requests.take_used() {
            assert_eq!(written, size);
            heads.insert(head);
        }
        heads.len() == 200
    });
}

#[test]
fn a_reset_is_prompt_and_forgets_the_guest() {
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("file"), "x").expect("write");
    let mut guest = Guest::new(directory.path());
    let node = guest.lookup(ROOT_ID, "file").expect("look up").nodeid;
    let handle = guest.open(node).expect("open");
    // The queue is full of work when the device is told to stop.
    let message = guest.message(ROOT, Opcode::Readdirplus as u32, ROOT_ID, &[0; 40]);
    write_bytes(&guest.memory, REQUEST, &message);
    let length = u32::try_from(message.len()).expect("small");
    for _ in 0..500 {
        guest.requests.offer_chain(&[(REQUEST, length, READ)]);
    }
    guest.kick.write(1).expect("kick");
    let start = Instant::now();
    guest.device.reset();
    assert!(start.elapsed() < Duration::from_secs(2));

    guest.activate();
    guest.init();
    let attributes = GetattrIn::default();
    let reply = guest.call(ROOT, Opcode::Getattr, node, attributes.as_slice());
    assert_eq!(reply.errno, libc::EBADF);
    assert_eq!(guest.read(node, handle, 0, 1).errno, libc::EBADF);
    let root: AttrOut = guest
        .call(ROOT, Opcode::Getattr, ROOT_ID, attributes.as_slice())
        .read();
    assert_eq!(
        root.attr.ino,
        directory.path().metadata().expect("metadata").ino()
    );
}
