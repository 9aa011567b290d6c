//! System calls that no crate has a safe form of.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The first of the descriptors that a program is given beside its standard streams.
const FIRST: RawFd = 3;

/// Has `command` started with `fds` as its descriptors 3, 4 and so on. None of them may have such a low number itself.
#[allow(unsafe_code)]
pub(crate) fn pass_fds(command: &mut Command, fds: Vec<OwnedFd>) {
    let give = move || {
        for (place, fd) in (FIRST..).zip(&fds) {
            // SAFETY: dup2 takes integers, and may be called between fork and exec.
            if unsafe { libc::dup2(fd.as_raw_fd(), place) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: what runs in the child makes system calls only, and allocates nothing.
    unsafe {
        command.pre_exec(give);
    }
}

/// A descriptor whose becoming readable a task can wait for.
#[allow(unsafe_code)]
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor names the same open file for as long as it lives, and lives in what this gives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
