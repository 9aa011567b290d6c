//! System calls that neither the standard library nor `nix` offers as safe functions.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigHandler, Signal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Takes ownership of a descriptor that this process was started with, by its number.
///
/// # Errors
/// When `number` is not an open descriptor, or one of stdin, stdout and stderr.
#[allow(unsafe_code)]
pub(crate) fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD only looks whether the descriptor is open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, came with exec(2), and nothing else in this process has taken it: the one
    // caller does so once for each, at the start of the helper's main function.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A copy of `fd` with the number `first` or a later one, which programs that are executed do not get.
#[allow(unsafe_code)]
pub(crate) fn duplicate_from(fd: &OwnedFd, first: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers.
    let number = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Puts `fd` in the place `number`, where nothing is open and where programs that are executed find it. It is nobody's to
/// close then.
#[allow(unsafe_code)]
pub(crate) fn place(fd: OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 takes integers; nothing of this process is open at the new one.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reads once from a stream socket, and takes a descriptor that came with the bytes (SCM_RIGHTS).
pub(crate) fn receive_with_fd(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> nix::Result<(usize, Option<OwnedFd>)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut received = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            received = fds.into_iter().map(own_received).next_back();
        }
    }
    Ok((message.bytes, received))
}

#[allow(unsafe_code)]
fn own_received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for the SCM_RIGHTS message; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Registers a descriptor with the event loop.
///
/// # Errors
/// When it cannot be watched, as a file of a disk cannot.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watched_for(fd, Interest::READABLE | Interest::WRITABLE)
}

/// The same for the events `interest` only.
///
/// # Errors
/// See [`watched`].
#[allow(unsafe_code)]
pub(crate) fn watched_for(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and closes it when it is dropped,
    // which the `AsyncFd` that owns it from here on does after it has deregistered it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// TIOCSWINSZ.
#[allow(unsafe_code)]
pub(crate) fn set_window_size(
    terminal: BorrowedFd<'_>,
    rows: u16,
    columns: u16,
) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the ioctl reads one `winsize`, which outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(result).map(drop)
}

/// Adds `data` to the kernel's entropy pool, credited in full, and reseeds its generator (RNDADDENTROPY, RNDRESEEDCRNG).
#[allow(unsafe_code)]
pub(crate) fn add_entropy(random: BorrowedFd<'_>, data: &[u8]) -> nix::Result<()> {
    const RNDADDENTROPY: libc::c_ulong =
        nix::request_code_write!(b'R', 0x03, size_of::<[libc::c_int; 2]>());
    const RNDRESEEDCRNG: libc::c_ulong = nix::request_code_none!(b'R', 0x07);
    // struct rand_pool_info: the entropy in bits, the length in bytes, then the bytes.
    let length = i32::try_from(data.len()).map_err(|_| nix::errno::Errno::EINVAL)?;
    let bits = length.checked_mul(8).ok_or(nix::errno::Errno::EINVAL)?;
    let mut pool = Vec::with_capacity(8 + data.len());
    pool.extend_from_slice(&bits.to_ne_bytes());
    pool.extend_from_slice(&length.to_ne_bytes());
    pool.extend_from_slice(data);
    // SAFETY: the ioctl reads the two integers and `length` bytes behind them, all of which `pool` holds. It copies
    // them byte-wise from user space, so their alignment does not matter.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) };
    nix::errno::Errno::result(result)?;
    // SAFETY: the ioctl takes no argument.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) };
    nix::errno::Errno::result(result).map(drop)
}

/// kill(2), for any signal that the kernel has: real-time ones are beyond `nix`.
#[allow(unsafe_code)]
pub(crate) fn send_signal(pid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: kill(2) takes two numbers and touches nothing of this process's memory.
    nix::errno::Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Reaps a child that has ended, if there is one: its pid, and its status, 128 + N when signal N ended it. (`nix` fails
/// for real-time signals after it has reaped.)
#[allow(unsafe_code)]
pub(crate) fn reap_any() -> nix::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes the one integer, which outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match nix::errno::Errno::result(pid)? {
        0 => Ok(None),
        pid if libc::WIFEXITED(status) => Ok(Some((pid, libc::WEXITSTATUS(status)))),
        pid => Ok(Some((pid, 128 + libc::WTERMSIG(status)))),
    }
}

/// Gives SIGPIPE its default action back, which Rust's start-up code has set to "ignore" and exec(2) would keep.
#[allow(unsafe_code)]
pub(crate) fn default_sigpipe() -> nix::Result<()> {
    // SAFETY: the default action runs no code of this process.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)
}

/// Loads a seccomp filter, which is this thread's from now on and that of whatever it starts.
///
/// # Errors
/// seccomp(2).
#[allow(unsafe_code)]
pub(crate) fn load_seccomp_filter(
    filter: &[libc::sock_filter],
    flags: libc::c_ulong,
) -> io::Result<()> {
    let too_long = |_| io::Error::from_raw_os_error(libc::E2BIG);
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(too_long)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions, which outlive the call, and writes none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
