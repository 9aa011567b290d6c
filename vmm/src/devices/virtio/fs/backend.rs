//! The shared directory: `fuse-backend-rs`'s passthrough file system, and what it leaves open.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{ATTR_SUBMOUNT, CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};

use super::descriptors::Descriptors;
use super::device::FsError;

type Inode = u64;
type Handle = u64;

/// How long the guest may use what it knows of a name or of attributes without asking.
const VALIDITY: Duration = Duration::from_secs(1);

/// The most that one listing may hold, in bytes: Linux asks for a page at a time, and each entry may open a file.
const MAX_LISTING: u32 = 128 << 10;
/// Where a listing goes on after "." and after "..", which are its first names. Offsets are the file system's own numbers;
/// those of Linux's file systems are small, or hashes of which these are none.
const AFTER_DOT: u64 = 0x7fff_ffff_ffff_fff1;
const AFTER_DOTS: u64 = 0x7fff_ffff_ffff_fff2;
/// XATTR_SIZE_MAX and XATTR_LIST_MAX of Linux.
const MAX_XATTR: u32 = 64 << 10;

/// Open flags that are the guest's own affair: its page cache is passed by, the host's is not, whose alignment rules
/// the guest does not know.
#[allow(clippy::cast_sign_loss, reason = "a flag word")]
const GUEST_ONLY_FLAGS: u32 = libc::O_DIRECT as u32;

#[allow(clippy::cast_sign_loss, reason = "a flag word")]
const ACCESS_MODE: u32 = libc::O_ACCMODE as u32;
#[allow(clippy::cast_sign_loss, reason = "a flag word")]
const READ_ONLY: u32 = libc::O_RDONLY as u32;

/// The guest need not ask the host when the file is closed: there is nothing to write (`linux/fuse.h`).
const FOPEN_NOFLUSH: u32 = 1 << 5;

/// Adds [`FOPEN_NOFLUSH`], which `fuse-backend-rs` does not know.
#[allow(unsafe_code)]
fn without_flush(options: OpenOptions) -> OpenOptions {
    // SAFETY: all bit patterns are valid for this wrapper of an integer, which goes to the guest as it is.
    unsafe { OpenOptions::from_bits_unchecked(options.bits() | FOPEN_NOFLUSH) }
}

fn directory(name: &[u8], ino: u64, offset: u64) -> DirEntry<'_> {
    DirEntry {
        ino,
        offset,
        type_: libc::DT_DIR.into(),
        name,
    }
}

/// A directory of the host and all that lies below it, other mounts included, also those made later.
///
/// `files` keeps about a hundred bytes for each file that the guest ever met, until the guest unmounts: that is how a
/// file gets the same node again after the guest has forgotten it. (Its other way of numbering takes 255 mounts at
/// most, over the life of the machine.)
pub(super) struct SharedDirectory {
    files: PassthroughFs,
    descriptors: Descriptors,
    /// The guest makes a mount of its own of each mount of the host (FUSE_SUBMOUNTS).
    announces_submounts: AtomicBool,
}

impl SharedDirectory {
    /// Opens the directory.
    ///
    /// # Errors
    /// It cannot be opened, is no directory, or `/proc` is missing.
    pub(super) fn open(directory: &Path) -> Result<Self, FsError> {
        let no_directory = |source| FsError::Directory {
            directory: directory.to_owned(),
            source,
        };
        let metadata = directory.metadata().map_err(no_directory)?;
        if !metadata.is_dir() {
            return Err(no_directory(io::ErrorKind::NotADirectory.into()));
        }
        let root_dir = directory
            .to_str()
            .ok_or_else(|| no_directory(io::ErrorKind::InvalidFilename.into()))?
            .to_owned();
        let config = Config {
            root_dir,
            attr_timeout: VALIDITY,
            entry_timeout: VALIDITY,
            // Contents and listings outlive a close; FUSE_AUTO_INVAL_DATA below drops them when they have changed.
            cache_policy: CachePolicy::Always,
            writeback: false,
            xattr: true,
            killpriv_v2: true,
            // Two mounts of one file are two inodes, as on the host.
            enable_mntid: true,
            ..Config::default()
        };
        let files = PassthroughFs::new(config).map_err(FsError::Proc)?;
        files.import().map_err(no_directory)?;
        let descriptors = File::open(directory)
            .and_then(Descriptors::new)
            .map_err(no_directory)?;
        Ok(Self {
            files,
            descriptors,
            announces_submounts: AtomicBool::new(false),
        })
    }

    /// Adds "." and ".." to a listing, which the passthrough file system leaves out, if they come at `offset` or after it.
    /// Gives where the host's listing goes on; nothing if there is no room for more.
    fn add_dots(
        &self,
        context: &Context,
        inode: Inode,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<Option<u64>> {
        match offset {
            0 | AFTER_DOT => {}
            AFTER_DOTS => return Ok(Some(0)),
            offset => return Ok(Some(offset)),
        }
        let own = self.files.getattr(context, inode, None)?.0.st_ino;
        if offset == 0 && add(directory(b".", own, AFTER_DOT))? == 0 {
            return Ok(None);
        }
        // One that was removed has none.
        let parent = match self.files.lookup(context, inode, c"..") {
            Ok(entry) => {
                self.files.forget(context, entry.inode, 1);
                entry.attr.st_ino
            }
            Err(_) => own,
        };
        let room = add(directory(b"..", parent, AFTER_DOTS))?;
        Ok((room > 0).then_some(0))
    }

    /// Whether a request may open more files, now that so many are open.
    pub(super) fn may_open(&self) -> bool {
        self.descriptors.may_take()
    }

    /// Forgets everything that the guest looked up and opened.
    pub(super) fn forget_guest(&self) {
        self.files.destroy();
    }

    /// Marks a directory that lies on another file system than its parent: the guest makes it a mount, so that device
    /// and inode numbers name a file there as they do on the host.
    fn announce(&self, context: &Context, parent: Inode, mut entry: Entry) -> io::Result<Entry> {
        let is_directory = entry.attr.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if is_directory && self.announces_submounts.load(Ordering::Relaxed) {
            let (parent, _) = self.files.getattr(context, parent, None)?;
            if parent.st_dev != entry.attr.st_dev {
                entry.attr_flags |= ATTR_SUBMOUNT;
            }
        }
        Ok(entry)
    }
}

/// Methods that the passthrough file system serves as they are.
macro_rules! pass_through {
    ($(fn $method:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $method(&self, $($argument: $type),*) $(-> $result)? {
            self.files.$method($($argument),*)
        })*
    };
}

impl FileSystem for SharedDirectory {
    type Inode = Inode;
    type Handle = Handle;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let mut wanted = self.files.init(capable)?;
        wanted |= FsOptions::ASYNC_READ
            | FsOptions::ASYNC_DIO
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::INIT_EXT
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::SUBMOUNTS;
        wanted.remove(FsOptions::PERFILE_DAX);
        let submounts = capable.contains(FsOptions::SUBMOUNTS);
        self.announces_submounts.store(submounts, Ordering::Relaxed);
        Ok(wanted)
    }

    /// Linux asks for `.` and `..` only where a file system said that it exports (FUSE_EXPORT_SUPPORT).
    fn lookup(&self, context: &Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        if matches!(name.to_bytes(), b"" | b"." | b"..") {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let entry = self.files.lookup(context, parent, name)?;
        self.announce(context, parent, entry)
    }

    fn open(
        &self,
        context: &Context,
        inode: Inode,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions, Option<u32>)> {
        let flags = flags & !GUEST_ONLY_FLAGS;
        let (handle, mut options, passthrough) =
            self.files.open(context, inode, flags, fuse_flags)?;
        if flags & ACCESS_MODE == READ_ONLY {
            options = without_flush(options);
        }
        Ok((handle, options, passthrough))
    }

    fn create(
        &self,
        context: &Context,
        parent: Inode,
        name: &CStr,
        mut args: CreateIn,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions, Option<u32>)> {
        args.flags &= !GUEST_ONLY_FLAGS;
        self.files.create(context, parent, name, args)
    }

    fn read(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let flags = flags & !GUEST_ONLY_FLAGS;
        self.files.read(
            context, inode, handle, writer, size, offset, lock_owner, flags,
        )
    }

    fn write(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        reader: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let flags = flags & !GUEST_ONLY_FLAGS;
        self.files.write(
            context,
            inode,
            handle,
            reader,
            size,
            offset,
            lock_owner,
            delayed_write,
            flags,
            fuse_flags,
        )
    }

    fn getxattr(
        &self,
        context: &Context,
        inode: Inode,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        self.files
            .getxattr(context, inode, name, size.min(MAX_XATTR))
    }

    fn listxattr(&self, context: &Context, inode: Inode, size: u32) -> io::Result<ListxattrReply> {
        self.files.listxattr(context, inode, size.min(MAX_XATTR))
    }

    /// The passthrough file system would give its own inode numbers here, and the host's in attributes.
    fn readdir(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let size = size.min(MAX_LISTING);
        let Some(offset) = self.add_dots(context, inode, offset, add_entry)? else {
            return Ok(());
        };
        let mut add = |name: DirEntry<'_>, entry: Entry| {
            let added = add_entry(name);
            // It is forgotten for us if it did not fit.
            if !matches!(added, Ok(0)) {
                self.files.forget(context, entry.inode, 1);
            }
            added
        };
        self.files
            .readdirplus(context, inode, handle, size, offset, &mut add)
    }

    fn readdirplus(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let size = size.min(MAX_LISTING);
        // The guest's kernel looks for no node of theirs.
        let mut add_dot = |name: DirEntry<'_>| add_entry(name, Entry::default());
        let Some(offset) = self.add_dots(context, inode, offset, &mut add_dot)? else {
            return Ok(());
        };
        let mut add = |name: DirEntry<'_>, entry: Entry| {
            let child = entry.inode;
            let added = self
                .announce(context, inode, entry)
                .and_then(|entry| add_entry(name, entry));
            if added.is_err() {
                self.files.forget(context, child, 1);
            }
            added
        };
        self.files
            .readdirplus(context, inode, handle, size, offset, &mut add)
    }

    pass_through! {
        fn destroy();
        fn forget(context: &Context, inode: Inode, count: u64);
        fn batch_forget(context: &Context, requests: Vec<(Inode, u64)>);
        fn getattr(context: &Context, inode: Inode, handle: Option<Handle>) -> io::Result<(stat64, Duration)>;
        fn setattr(
            context: &Context, inode: Inode, attributes: stat64, handle: Option<Handle>, valid: SetattrValid
        ) -> io::Result<(stat64, Duration)>;
        fn readlink(context: &Context, inode: Inode) -> io::Result<Vec<u8>>;
        fn symlink(context: &Context, target: &CStr, parent: Inode, name: &CStr) -> io::Result<Entry>;
        fn mknod(
            context: &Context, parent: Inode, name: &CStr, mode: u32, device: u32, umask: u32
        ) -> io::Result<Entry>;
        fn mkdir(context: &Context, parent: Inode, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry>;
        fn unlink(context: &Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn rmdir(context: &Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn rename(
            context: &Context, parent: Inode, name: &CStr, new_parent: Inode, new_name: &CStr, flags: u32
        ) -> io::Result<()>;
        fn link(context: &Context, inode: Inode, new_parent: Inode, new_name: &CStr) -> io::Result<Entry>;
        fn flush(context: &Context, inode: Inode, handle: Handle, lock_owner: u64) -> io::Result<()>;
        fn fsync(context: &Context, inode: Inode, data_only: bool, handle: Handle) -> io::Result<()>;
        fn fallocate(
            context: &Context, inode: Inode, handle: Handle, mode: u32, offset: u64, length: u64
        ) -> io::Result<()>;
        fn release(
            context: &Context, inode: Inode, flags: u32, handle: Handle, flush: bool, unlock: bool,
            lock_owner: Option<u64>
        ) -> io::Result<()>;
        fn statfs(context: &Context, inode: Inode) -> io::Result<statvfs64>;
        fn setxattr(context: &Context, inode: Inode, name: &CStr, value: &[u8], flags: u32) -> io::Result<()>;
        fn removexattr(context: &Context, inode: Inode, name: &CStr) -> io::Result<()>;
        fn opendir(context: &Context, inode: Inode, flags: u32) -> io::Result<(Option<Handle>, OpenOptions)>;
        fn releasedir(context: &Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()>;
        fn fsyncdir(context: &Context, inode: Inode, data_only: bool, handle: Handle) -> io::Result<()>;
        fn access(context: &Context, inode: Inode, mask: u32) -> io::Result<()>;
        fn lseek(context: &Context, inode: Inode, handle: Handle, offset: u64, whence: u32) -> io::Result<u64>;
    }
}
