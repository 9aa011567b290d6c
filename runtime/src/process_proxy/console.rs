//! The terminal on the host's side: a pair whose master the caller gets, and whose slave the proxy copies from and to.
//! The slave is raw, for the terminal in the guest does all line editing, and it is the proxy's controlling terminal,
//! so that a change of its size reaches the proxy as a signal.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hull_vmm_protocol::socket::with_short_path;
use nix::pty::openpty;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::ProxyError;
use crate::sys::{self, WindowSize};

/// Makes a terminal, sends its master to `socket`, and gives its slave. The calling process must be a session leader.
pub(super) fn open(socket: &Path, size: Option<(u16, u16)>) -> Result<OwnedFd, ProxyError> {
    let pty =
        openpty(None, None).map_err(|errno| ProxyError::host("make a terminal")(errno.into()))?;
    for fd in [&pty.master, &pty.slave] {
        close_on_exec(fd.as_fd()).map_err(ProxyError::host("set up the terminal"))?;
    }
    make_raw(pty.slave.as_fd())
        .and_then(|()| sys::set_controlling_terminal(pty.slave.as_fd()))
        .map_err(ProxyError::host("set up the terminal"))?;
    if let Some((rows, columns)) = size {
        sys::set_window_size(pty.slave.as_fd(), WindowSize { rows, columns })
            .map_err(ProxyError::host("set the terminal's size"))?;
    }
    send_master(socket, pty.master.as_fd())?;
    Ok(pty.slave)
}

/// A message with one descriptor; its text, which runc makes the master's name, is for people.
fn send_master(path: &Path, master: BorrowedFd<'_>) -> Result<(), ProxyError> {
    let fail = |operation| {
        move |source: io::Error| ProxyError::ConsoleSocket {
            path: path.into(),
            operation,
            source,
        }
    };
    let socket = with_short_path(path, |address| {
        UnixStream::connect(address.path().ok_or(io::ErrorKind::InvalidInput)?)
    })
    .map_err(fail("connect"))?;
    let fds = [master.as_raw_fd()];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"/dev/ptmx")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(|errno| fail("send the terminal")(errno.into()))?;
    Ok(())
}

fn make_raw(terminal: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = tcgetattr(terminal)?;
    cfmakeraw(&mut attributes);
    tcsetattr(terminal, SetArg::TCSANOW, &attributes)?;
    Ok(())
}

fn close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}
