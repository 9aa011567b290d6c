//! A FUSE client on plain memory: the guest's kernel, as far as these tests need it.

use std::path::Path;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, EntryOut, InHeader, InitIn, InitIn2, InitOut, Opcode, OpenIn, OpenOut, OutHeader,
    ReadIn, WriteIn,
};
use fuse_backend_rs::api::filesystem::{FsOptions, ROOT_ID};
use vm_memory::ByteValued;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::device::{Activation, ActiveQueue, VirtioDevice};
use crate::devices::virtio::fs::device::Fs;
use crate::devices::virtio::test_driver::{
    Buffer, READ, TestDriver, TestInterrupt, WRITE, eventually, guest_memory, read_bytes,
    write_bytes,
};
use crate::memory::{GuestMemory, SharedMemory};

const HIPRIO_RING: u64 = 0;
const REQUEST_RING: u64 = 0x1_0000;
pub(super) const REQUEST: u64 = 0x10_0000;
pub(super) const REPLY: u64 = 0x40_0000;
const REPLY_ROOM: u32 = 0x11_0000;

/// Who asks.
#[derive(Clone, Copy, Default)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

pub(super) const ROOT: User = User { uid: 0, gid: 0 };

/// A reply: 0 or an errno, and what follows the header.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) errno: i32,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// The structure that a good reply begins with.
    pub(super) fn read<T: ByteValued>(&self) -> T {
        assert_eq!(self.errno, 0, "an error");
        *T::from_slice(&self.body[..size_of::<T>()]).expect("an aligned structure")
    }
}

pub(super) struct Guest {
    pub(super) device: Fs,
    pub(super) memory: GuestMemory,
    pub(super) hiprio: TestDriver,
    pub(super) requests: TestDriver,
    pub(super) kick: EventFd,
    pub(super) interrupt: Arc<TestInterrupt>,
    unique: u64,
}

impl Guest {
    /// A guest whose driver is at work, and which has not said INIT.
    pub(super) fn unmounted(directory: &Path) -> Self {
        let device = Fs::new("hull", directory).expect("a directory to share");
        let memory = guest_memory(0x80_0000);
        let mut guest = Self {
            hiprio: TestDriver::new(&memory, HIPRIO_RING, 128),
            requests: TestDriver::new(&memory, REQUEST_RING, 512),
            device,
            memory,
            kick: EventFd::new(EFD_NONBLOCK).expect("eventfd"),
            interrupt: Arc::default(),
            unique: 0,
        };
        guest.activate();
        guest
    }

    /// A guest that has the directory mounted.
    pub(super) fn new(directory: &Path) -> Self {
        let mut guest = Self::unmounted(directory);
        let init = guest.init();
        assert_eq!(init.major, 7);
        guest
    }

    /// Activates the device with fresh queues.
    pub(super) fn activate(&mut self) {
        self.hiprio = TestDriver::new(&self.memory, HIPRIO_RING, 128);
        self.requests = TestDriver::new(&self.memory, REQUEST_RING, 512);
        self.kick = EventFd::new(EFD_NONBLOCK).expect("eventfd");
        write_bytes(&self.memory, HIPRIO_RING, &[0; 0x2_0000]);
        let unused = EventFd::new(EFD_NONBLOCK).expect("eventfd");
        let kick = self.kick.try_clone().expect("clone an eventfd");
        let activation = Activation {
            memory: SharedMemory::new(self.memory.clone()),
            features: 0,
            queues: vec![
                ActiveQueue {
                    queue: self.hiprio.queue(),
                    kick: unused,
                },
                ActiveQueue {
                    queue: self.requests.queue(),
                    kick,
                },
            ],
            interrupt: self.interrupt.clone(),
        };
        self.device.activate(activation).expect("activate");
    }

    /// Offers a chain and waits until the device is done with it; gives the length of what it wrote.
    pub(super) fn exchange(&mut self, chain: &[Buffer]) -> u32 {
        let head = self.requests.offer_chain(chain);
        self.kick.write(1).expect("kick");
        let mut used = None;
        eventually("the request is done", || {
            used = self.requests.take_used();
            used.is_some()
        });
        let (used_head, written) = used.expect("a used chain");
        assert_eq!(used_head, head);
        written
    }

    /// The bytes of a request.
    pub(super) fn message(&mut self, user: User, op: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 1;
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>() + body.len()).expect("small"),
            opcode: op,
            unique: self.unique,
            nodeid: node,
            uid: user.uid,
            gid: user.gid,
            ..InHeader::default()
        };
        [header.as_slice(), body].concat()
    }

    /// Asks, and reads the reply.
    pub(super) fn call(&mut self, user: User, op: Opcode, node: u64, body: &[u8]) -> Reply {
        let message = self.message(user, op as u32, node, body);
        write_bytes(&self.memory, REQUEST, &message);
        let length = u32::try_from(message.len()).expect("small");
        let written = self.exchange(&[(REQUEST, length, READ), (REPLY, REPLY_ROOM, WRITE)]);
        self.reply(written)
    }

    /// Reads the reply that the device wrote.
    pub(super) fn reply(&self, written: u32) -> Reply {
        let mut bytes = read_bytes(&self.memory, REPLY, written as usize);
        let header = *OutHeader::from_slice(&bytes[..16]).expect("an aligned header");
        assert_eq!((header.len, header.unique), (written, self.unique));
        Reply {
            errno: -header.error,
            body: bytes.split_off(16),
        }
    }

    pub(super) fn init(&mut self) -> InitOut {
        let capable = FsOptions::all().bits();
        let init = InitIn {
            major: 7,
            minor: 38,
            max_readahead: 0x2_0000,
            flags: u32::try_from(capable & 0xffff_ffff).expect("masked"),
        };
        let more = InitIn2 {
            flags2: u32::try_from(capable >> 32).expect("shifted"),
            ..InitIn2::default()
        };
        let body = [init.as_slice(), more.as_slice()].concat();
        self.call(ROOT, Opcode::Init, 0, &body).read()
    }

    /// Looks a name up, or says why it cannot be.
    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        let reply = self.call(ROOT, Opcode::Lookup, parent, &text(name));
        match reply.errno {
            0 => Ok(reply.read()),
            errno => Err(errno),
        }
    }

    /// Looks up a path below the root.
    pub(super) fn walk(&mut self, path: &str) -> EntryOut {
        let mut parent = ROOT_ID;
        let mut found = None;
        for name in path.split('/') {
            let entry = self.lookup(parent, name).expect("a name");
            parent = entry.nodeid;
            found = Some(entry);
        }
        found.expect("a path")
    }

    /// Creates and opens a file; gives its node and its handle.
    pub(super) fn create(
        &mut self,
        user: User,
        parent: u64,
        name: &str,
    ) -> Result<(u64, u64), i32> {
        let create = CreateIn {
            flags: u32::try_from(libc::O_RDWR).expect("positive"),
            mode: 0o100_644,
            ..CreateIn::default()
        };
        let body = [create.as_slice(), &text(name)].concat();
        let reply = self.call(user, Opcode::Create, parent, &body);
        if reply.errno != 0 {
            return Err(reply.errno);
        }
        let entry: EntryOut = reply.read();
        let opened = &reply.body[size_of::<EntryOut>()..][..size_of::<OpenOut>()];
        let opened = *OpenOut::from_slice(opened).expect("an aligned structure");
        Ok((entry.nodeid, opened.fh))
    }

    /// Opens a node for reading and writing.
    pub(super) fn open(&mut self, node: u64) -> Result<u64, i32> {
        let open = OpenIn {
            flags: u32::try_from(libc::O_RDWR).expect("positive"),
            fuse_flags: 0,
        };
        let reply = self.call(ROOT, Opcode::Open, node, open.as_slice());
        match reply.errno {
            0 => Ok(reply.read::<OpenOut>().fh),
            errno => Err(errno),
        }
    }

    /// Writes in one request; the data lies in pages of its own, as Linux sends it.
    pub(super) fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Reply {
        let write = WriteIn {
            fh: handle,
            offset,
            size: u32::try_from(data.len()).expect("small"),
            flags: u32::try_from(libc::O_RDWR).expect("positive"),
            ..WriteIn::default()
        };
        let body = [write.as_slice(), data].concat();
        let message = self.message(ROOT, Opcode::Write as u32, node, &body);
        write_bytes(&self.memory, REQUEST, &message);
        let mut chain = vec![(REQUEST, 80, READ)];
        let mut at = REQUEST + 80;
        for page in data.chunks(4096) {
            let length = u32::try_from(page.len()).expect("a page");
            chain.push((at, length, READ));
            at += u64::from(length);
        }
        chain.push((REPLY, REPLY_ROOM, WRITE));
        let written = self.exchange(&chain);
        self.reply(written)
    }

    pub(super) fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Reply {
        let read = ReadIn {
            fh: handle,
            offset,
            size,
            flags: u32::try_from(libc::O_RDWR).expect("positive"),
            ..ReadIn::default()
        };
        self.call(ROOT, Opcode::Read, node, read.as_slice())
    }

    /// Lists a directory: names with the inode numbers that the listing gives.
    pub(super) fn list(&mut self, node: u64, op: Opcode) -> Vec<(String, u64)> {
        let open = OpenIn::default();
        let handle = self
            .call(ROOT, Opcode::Opendir, node, open.as_slice())
            .read::<OpenOut>()
            .fh;
        let read = ReadIn {
            fh: handle,
            size: 0x1_0000,
            ..ReadIn::default()
        };
        let skipped = match op {
            Opcode::Readdirplus => size_of::<EntryOut>(),
            _ => 0,
        };
        let reply = self.call(ROOT, op, node, read.as_slice());
        assert_eq!(reply.errno, 0);
        let mut names = Vec::new();
        let mut rest = &reply.body[..];
        while !rest.is_empty() {
            let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().expect("8"));
            // struct fuse_dirent: ino, offset, name length and type, name padded to 8 bytes.
            let ino = number(skipped);
            let length = usize::try_from(number(skipped + 16) & 0xffff_ffff).expect("small");
            let name = &rest[skipped + 24..][..length];
            names.push((String::from_utf8(name.to_vec()).expect("text"), ino));
            rest = &rest[(skipped + 24 + length).next_multiple_of(8)..];
        }
        names.sort();
        names
    }
}

/// A name as FUSE carries it.
pub(super) fn text(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
