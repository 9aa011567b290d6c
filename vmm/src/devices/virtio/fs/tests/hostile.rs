//! Guests that break the rules: nothing panics, nothing is touched outside the directory, and a request that has a
//! reply gets one.

use std::fs;
use std::path::PathBuf;

use fuse_backend_rs::abi::fuse_abi::{
    GetxattrIn, InHeader, InitIn, IoctlIn, LinkIn, MkdirIn, MknodIn, Opcode, ReadIn, RenameIn,
    SetxattrIn,
};
use fuse_backend_rs::api::filesystem::ROOT_ID;
use tempfile::TempDir;
use vm_memory::ByteValued;

use super::guest::{Guest, REPLY, REQUEST, ROOT, text};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::test_driver::{Buffer, READ, WRITE, write_bytes};

/// A directory with a share in it, and a file beside the share that no guest may reach.
fn share() -> (TempDir, PathBuf, Guest) {
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("secret"), "secret").expect("write");
    let share = directory.path().join("share");
    fs::create_dir_all(share.join("below")).expect("directories");
    let guest = Guest::new(&share);
    (directory, share, guest)
}

fn bytes<T: ByteValued>(structure: T, name: &str) -> Vec<u8> {
    [structure.as_slice(), &text(name)].concat()
}

#[test]
fn names_that_lead_out_are_refused() {
    let (directory, _, mut guest) = share();
    let below = guest.lookup(ROOT_ID, "below").expect("look up").nodeid;
    let mkdir = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let mknod = MknodIn {
        mode: libc::S_IFREG | 0o644,
        ..MknodIn::default()
    };
    let rename = RenameIn { newdir: ROOT_ID };
    let link = LinkIn { oldnodeid: below };
    for parent in [ROOT_ID, below] {
        for name in [
            "..",
            ".",
            "../secret",
            "../made",
            "below/../../secret",
            "/etc/passwd",
            "",
        ] {
            let from_out = [text(name), text("inside")].concat();
            let to_out = [text("below"), text(name)].concat();
            let table = [
                (Opcode::Lookup, text(name)),
                (Opcode::Mkdir, bytes(mkdir, name)),
                (Opcode::Mknod, bytes(mknod, name)),
                (Opcode::Unlink, text(name)),
                (Opcode::Rmdir, text(name)),
                (Opcode::Link, bytes(link, name)),
                (Opcode::Rename, [rename.as_slice(), &from_out].concat()),
                (Opcode::Rename, [rename.as_slice(), &to_out].concat()),
                (Opcode::Symlink, [text(name), text("/etc")].concat()),
            ];
            for (op, body) in table {
                let reply = guest.call(ROOT, op, parent, &body);
                assert_ne!(reply.errno, 0, "{op:?} {name:?} below {parent}");
            }
            assert!(guest.create(ROOT, parent, name).is_err(), "create {name:?}");
        }
    }
    let secret = fs::read_to_string(directory.path().join("secret")).expect("still there");
    assert_eq!(secret, "secret");
    assert_eq!(directory.path().read_dir().expect("list").count(), 2);
}

#[test]
fn what_is_no_file_is_not_opened_on_the_host() {
    let (_directory, _, mut guest) = share();
    for (name, kind) in [
        ("fifo", libc::S_IFIFO),
        ("disk", libc::S_IFBLK),
        ("tty", libc::S_IFCHR),
    ] {
        let mknod = MknodIn {
            mode: kind | 0o666,
            rdev: 0x0501,
            ..MknodIn::default()
        };
        let made = guest.call(ROOT, Opcode::Mknod, ROOT_ID, &bytes(mknod, name));
        assert_eq!(made.errno, 0, "{name}");
        let node = guest.lookup(ROOT_ID, name).expect("look up").nodeid;
        // Were it opened, a FIFO without a peer would hold the thread for good.
        assert_eq!(guest.open(node).err(), Some(libc::EBADF), "{name}");
    }
}

#[test]
fn malformed_messages_get_an_error() {
    let (_directory, _, mut guest) = share();
    let listing = ReadIn {
        size: u32::MAX,
        ..ReadIn::default()
    };
    let attribute = GetxattrIn {
        size: u32::MAX,
        ..GetxattrIn::default()
    };
    let wrong_length = SetxattrIn { size: 99, flags: 0 };
    let ioctl = IoctlIn {
        in_size: u32::MAX,
        out_size: u32::MAX,
        ..IoctlIn::default()
    };
    let old = InitIn {
        major: 6,
        ..InitIn::default()
    };
    let table: &[(&str, u32, u64, Vec<u8>)] = &[
        ("no such operation", 9999, ROOT_ID, vec![]),
        ("operation 0", 0, ROOT_ID, vec![]),
        ("no such node", Opcode::Getattr as u32, 0xdead, vec![0; 16]),
        ("node 0", Opcode::Lookup as u32, 0, text("below")),
        (
            "a name without an end",
            Opcode::Lookup as u32,
            ROOT_ID,
            b"below".to_vec(),
        ),
        ("no name", Opcode::Lookup as u32, ROOT_ID, vec![]),
        (
            "half a structure",
            Opcode::Getattr as u32,
            ROOT_ID,
            vec![0; 3],
        ),
        (
            "a rename with one name",
            Opcode::Rename as u32,
            ROOT_ID,
            bytes(RenameIn::default(), "x"),
        ),
        (
            "an endless listing",
            Opcode::Readdir as u32,
            ROOT_ID,
            listing.as_slice().to_vec(),
        ),
        (
            "an endless attribute",
            Opcode::Getxattr as u32,
            ROOT_ID,
            bytes(attribute, "user.x"),
        ),
        (
            "attributes without a name",
            Opcode::Setxattr as u32,
            ROOT_ID,
            vec![0; 8],
        ),
        (
            "an attribute of another size",
            Opcode::Setxattr as u32,
            ROOT_ID,
            bytes(wrong_length, "user.x"),
        ),
        (
            "an endless ioctl",
            Opcode::Ioctl as u32,
            ROOT_ID,
            ioctl.as_slice().to_vec(),
        ),
        (
            "an old protocol",
            Opcode::Init as u32,
            0,
            old.as_slice().to_vec(),
        ),
        (
            "reading what is not open",
            Opcode::Read as u32,
            ROOT_ID,
            vec![0xff; 40],
        ),
        (
            "writing to what is not open",
            Opcode::Write as u32,
            ROOT_ID,
            vec![0xff; 40],
        ),
        (
            "mapping",
            Opcode::SetupMapping as u32,
            ROOT_ID,
            vec![0xff; 64],
        ),
        (
            "unmapping",
            Opcode::RemoveMapping as u32,
            ROOT_ID,
            vec![0xff; 64],
        ),
        ("polling", Opcode::Poll as u32, ROOT_ID, vec![0xff; 64]),
    ];
    for (name, op, node, body) in table {
        let message = guest.message(ROOT, *op, *node, body);
        write_bytes(&guest.memory, REQUEST, &message);
        let length = u32::try_from(message.len()).expect("small");
        let written = guest.exchange(&[(REQUEST, length, READ), (REPLY, 0x2_0000, WRITE)]);
        assert_ne!(guest.reply(written).errno, 0, "{name}");
    }
    guest.lookup(ROOT_ID, "below").expect("it still works");
}

#[test]
fn headers_that_lie_about_the_length_get_an_error() {
    let (_directory, _, mut guest) = share();
    for claimed in [0, 1, 39, 40, 47, 0x1000, 0x10_1000, 0x10_1001, u32::MAX] {
        let mut message = guest.message(ROOT, Opcode::Lookup as u32, ROOT_ID, &text("below"));
        message[..4].copy_from_slice(&claimed.to_le_bytes());
        write_bytes(&guest.memory, REQUEST, &message);
        let length = u32::try_from(message.len()).expect("small");
        let written = guest.exchange(&[(REQUEST, length, READ), (REPLY, 0x1000, WRITE)]);
        assert_ne!(guest.reply(written).errno, 0, "{claimed}");
    }
}

#[test]
fn chains_that_hold_no_request_are_returned() {
    let (_directory, _, mut guest) = share();
    let header = u32::try_from(size_of::<InHeader>()).expect("small");
    let message = guest.message(ROOT, Opcode::Lookup as u32, ROOT_ID, &text("below"));
    write_bytes(&guest.memory, REQUEST, &message);
    let length = u32::try_from(message.len()).expect("small");
    let table: &[&[Buffer]] = &[
        &[(REPLY, 0x1000, WRITE)],
        &[(REQUEST, header - 1, READ), (REPLY, 0x1000, WRITE)],
        &[(REQUEST, 0, READ)],
        &[(REQUEST, length, READ)],
        &[(REQUEST, length, READ), (REPLY, 15, WRITE)],
        &[(0x7f_fff0, 0x1000, READ), (REPLY, 0x1000, WRITE)],
        &[(u64::MAX - 8, 64, READ), (REPLY, 0x1000, WRITE)],
        &[(REQUEST, length, READ), (0x7000_0000, 0x1000, WRITE)],
    ];
    for chain in table {
        assert_eq!(guest.exchange(chain), 0, "{chain:?}");
    }
    // Far more room, or far more data, than any request needs; both overlap, which costs the guest nothing.
    let room = [(REPLY, 0x20_0000, WRITE); 8];
    let written = guest.exchange(&[&[(REQUEST, length, READ)], &room[..]].concat());
    assert_eq!(guest.reply(written).errno, libc::E2BIG);
    let data = [(REQUEST, 0x20_0000, READ); 8];
    let written = guest.exchange(&[&data[..], &[(REPLY, 0x1000, WRITE)]].concat());
    assert_eq!(guest.reply(written).errno, libc::E2BIG);
    guest.lookup(ROOT_ID, "below").expect("it still works");
}

#[test]
fn forgetting_needs_no_reply() {
    let (_directory, _, mut guest) = share();
    let node = guest.lookup(ROOT_ID, "below").expect("look up").nodeid;
    for (op, node, body) in [
        (Opcode::Forget, node, u64::MAX.to_le_bytes().to_vec()),
        (Opcode::Forget, ROOT_ID, u64::MAX.to_le_bytes().to_vec()),
        (Opcode::Forget, 0xdead, 1_u64.to_le_bytes().to_vec()),
        (Opcode::Forget, ROOT_ID, vec![]),
        (Opcode::BatchForget, 0, vec![0xff; 8]),
        (Opcode::BatchForget, 0, vec![2, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        let message = guest.message(ROOT, op as u32, node, &body);
        write_bytes(&guest.memory, REQUEST, &message);
        let length = u32::try_from(message.len()).expect("small");
        assert_eq!(guest.exchange(&[(REQUEST, length, READ)]), 0, "{op:?}");
    }
    guest
        .lookup(ROOT_ID, "below")
        .expect("the root cannot be forgotten");
}

#[test]
fn a_broken_ring_is_left_alone_until_the_next_activation() {
    let (_directory, _, mut guest) = share();
    guest.requests.set_avail_index(40_000);
    guest.kick.write(1).expect("kick");
    guest.device.reset();
    guest.activate();
    guest.init();
    guest.lookup(ROOT_ID, "below").expect("it works again");
}

#[test]
fn messages_of_noise_stay_in_the_share() {
    let (directory, _, mut guest) = share();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..2_000 {
        let op = u32::try_from(random(53)).expect("small");
        let length = usize::try_from(random(120)).expect("small");
        let mut body: Vec<u8> = (0..length).map(|_| random(256).to_le_bytes()[0]).collect();
        // Small numbers, so that some handles, sizes and nodes exist; and sometimes a name at the end.
        for (place, byte) in body.iter_mut().enumerate() {
            if place % 8 != 0 {
                *byte = 0;
            }
        }
        if random(2) == 0 {
            body.extend_from_slice(&text(
                ["below", "..", "x", "a/b"][usize::try_from(random(4)).expect("small")],
            ));
        }
        let node = random(6);
        let message = guest.message(ROOT, op, node, &body);
        write_bytes(&guest.memory, REQUEST, &message);
        let length = u32::try_from(message.len()).expect("small");
        let room = u32::try_from(random(0x2_0000)).expect("small");
        guest.exchange(&[(REQUEST, length, READ), (REPLY, room, WRITE)]);
    }
    let secret = fs::read_to_string(directory.path().join("secret")).expect("still there");
    assert_eq!(secret, "secret");
    assert_eq!(directory.path().read_dir().expect("list").count(), 2);
    guest.init();
}
