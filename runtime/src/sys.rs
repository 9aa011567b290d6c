//! The system calls that neither std nor nix wraps: process descriptors, the mount API by descriptors, and control
//! calls of terminals and namespaces. Each function is one call with its types made safe; nothing here decides anything.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::NixPath;
use nix::sched::CloneFlags;

/// `pidfd_open(2)`: a descriptor of the process that has `pid` now. It is close-on-exec.
#[allow(unsafe_code)]
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of this process.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(answer)
}

/// `pidfd_send_signal(2)` with signal `number` (1 to 64; 0 only checks).
#[allow(unsafe_code)]
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed, and the descriptor is open for the length of the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            info,
            0,
        )
    };
    done(answer)
}

/// `close_range(2)`: marks every descriptor from `first` on as close-on-exec, so that nothing that a caller of hull
/// left open reaches the VMM.
///
/// # Errors
/// The kernel is older than 5.11.
#[allow(unsafe_code)]
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes three integers; with CLOEXEC no descriptor is closed under its owner.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    done(answer)
}

/// `open_tree(2)` with `OPEN_TREE_CLONE`: a detached copy of the mount at `path`, with what is mounted below it if
/// `recursive`.
#[allow(unsafe_code)]
pub(crate) fn clone_mount_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    let answer = path.with_nix_path(|path| {
        // SAFETY: the path is a terminated string that lives for the length of the call.
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) }
    })?;
    owned(answer)
}

/// `move_mount(2)`: attaches a detached mount at `target`, an `O_PATH` descriptor in the caller's mount namespace.
#[allow(unsafe_code)]
pub(crate) fn attach_mount_tree(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both paths are the empty string, which the flags say to take the descriptors themselves for.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    done(answer)
}

/// `mount_setattr(2)` on a detached mount: sets the attributes `set` (`MOUNT_ATTR_*`) and the propagation type (0
/// leaves it).
#[allow(unsafe_code)]
pub(crate) fn set_mount_attributes(
    tree: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    propagation: u64,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the structure lives for the length of the call, and its size is passed with it.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    done(answer)
}

/// A terminal's size, as the kernel keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Rows of characters; 0: unknown.
    pub rows: u16,
    /// Columns of characters; 0: unknown.
    pub columns: u16,
}

/// `TIOCGWINSZ`.
#[allow(unsafe_code)]
pub(crate) fn window_size(terminal: BorrowedFd<'_>) -> io::Result<WindowSize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure is of the type that this ioctl fills in, and lives for the length of the call.
    let answer = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    done(answer.into())?;
    Ok(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// `TIOCSWINSZ`.
///
/// # Errors
/// `terminal` is none.
#[allow(unsafe_code)]
pub fn set_window_size(terminal: BorrowedFd<'_>, size: WindowSize) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure is of the type that this ioctl reads, and lives for the length of the call.
    let answer = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    done(answer.into())
}

mod ioctl {
    // NS_GET_NSTYPE of <linux/nsfs.h>.
    nix::ioctl_none_bad!(ns_get_nstype, nix::request_code_none!(0xb7, 3));
}

/// The type of the namespace that a file stands for; none if it stands for none.
#[allow(unsafe_code)]
pub(crate) fn namespace_type(file: BorrowedFd<'_>) -> Option<CloneFlags> {
    // SAFETY: the call takes no argument and answers a number.
    let kind = unsafe { ioctl::ns_get_nstype(file.as_raw_fd()) };
    CloneFlags::from_bits(kind.ok()?)
}

/// `TIOCSCTTY`: makes `terminal` the controlling terminal of the calling session leader.
#[allow(unsafe_code)]
pub(crate) fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this ioctl takes an integer and touches no memory of this process.
    let answer = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    done(answer.into())
}

/// Takes over a descriptor that the command line names and that the parent process left open for this one.
///
/// # Errors
/// `EBADF`: it is not open; or it is one of the three standard ones.
#[allow(unsafe_code)]
pub fn take_inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the call takes integers; it fails if the descriptor is not open.
    let answer = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    done(answer.into())?;
    // SAFETY: the descriptor is open, it came from the parent, and nothing else in this process knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[allow(unsafe_code)]
fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(answer).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn done(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
