//! The host's side of the socket device: where its programs' connections come from and go to.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Makes connections with programs of the host. Every stream it gives is non-blocking.
pub(super) trait HostSockets: Send + 'static {
    /// Readable when [`Self::accept`] has something to give.
    fn listener(&self) -> BorrowedFd<'_>;

    /// A connection that a program has made.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; otherwise the host refused.
    fn accept(&self) -> io::Result<UnixStream>;

    /// Connects to the program that listens for the guest's connections to `port`, without waiting.
    ///
    /// # Errors
    /// Nothing listens there, or its backlog is full.
    fn connect(&self, port: u32) -> io::Result<UnixStream>;
}

/// Unix sockets in the file system.
#[derive(Debug)]
pub(super) struct UnixSockets {
    listener: UnixListener,
    prefix: PathBuf,
}

impl UnixSockets {
    /// Programs connect to `listener`; those that listen for port P do so at `<prefix>_P`.
    ///
    /// # Errors
    /// The listener cannot be made non-blocking.
    pub(super) fn new(listener: UnixListener, prefix: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, prefix })
    }
}

impl HostSockets for UnixSockets {
    fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.prefix);
        path.push(format!("_{port}"));
        let address = UnixAddr::new(path.as_os_str())?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(stream.as_raw_fd(), &address)?;
        Ok(UnixStream::from(stream))
    }
}
