//! The Unix sockets that carry control calls: packets with descriptors, and paths of any length.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    getsockopt, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::time::TimeVal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::{Failure, MAX_FDS, MAX_PACKET, Request, Response};

/// How a control call fails on the caller's side.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The VMM cannot be reached, or went away.
    #[error("control socket of the VMM")]
    Socket(#[from] io::Error),
    /// It answered something that is no answer.
    #[error("answer of the VMM")]
    Json(#[from] serde_json::Error),
    /// It refused.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// A caller's connection to a VMM.
#[derive(Debug)]
pub struct ControlClient {
    socket: OwnedFd,
}

impl ControlClient {
    /// Connects to the socket at `path`; no call on it takes longer than `timeout`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let socket = seqpacket()?;
        with_short_path(path, |address| {
            Ok(nix::sys::socket::connect(socket.as_raw_fd(), address)?)
        })?;
        let timeout = TimeVal::new(timeout.as_secs().try_into().unwrap_or(i64::MAX), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
        Ok(Self { socket })
    }

    /// The pid of the VMM: of the process that made the listening socket.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn server_pid(&self) -> io::Result<u32> {
        let credentials = getsockopt(&self.socket, sockopt::PeerCredentials)?;
        u32::try_from(credentials.pid()).map_err(|_| io::ErrorKind::NotFound.into())
    }

    /// Makes one call and waits for its answer; [`Response::Failed`] comes back as an error.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Response, CallError> {
        send(&self.socket, request, fds)?;
        match receive(&self.socket)? {
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Some((packet, _)) => match serde_json::from_slice(&packet)? {
                Response::Failed(failure) => Err(failure.into()),
                response => Ok(response),
            },
        }
    }
}

/// Makes the listening socket of a VMM at `path`, for its owner alone.
///
/// # Errors
/// The path is taken or cannot be made.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket()?;
    with_short_path(path, |address| {
        Ok(nix::sys::socket::bind(socket.as_raw_fd(), address)?)
    })?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(16)?)?;
    Ok(socket)
}

/// Sends one packet.
///
/// # Errors
/// The peer is gone, or the message is too large.
pub fn send<T: Serialize>(socket: &OwnedFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[io::IoSlice::new(&bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives one packet, or nothing when the peer has closed.
///
/// # Errors
/// The packet was cut off, or receiving failed or timed out.
pub fn receive(socket: &OwnedFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; MAX_FDS]);
    let mut buffers = [io::IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let length = message.bytes;
    let flags = message.flags;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made these descriptors for this process, and nothing else owns them.
            #[allow(unsafe_code)]
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if length == 0 {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some((bytes, fds)))
}

/// Parses a packet.
///
/// # Errors
/// It is not JSON of that shape.
pub fn parse<T: DeserializeOwned>(packet: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(packet)
}

/// Gives `use_address` an address of the socket at `path`, however long that is: `sun_path` holds 108 bytes, so a
/// long path is named through a descriptor of its directory.
///
/// # Errors
/// The directory cannot be opened, or what `use_address` says.
pub fn with_short_path<T>(
    path: &Path,
    use_address: impl FnOnce(&UnixAddr) -> io::Result<T>,
) -> io::Result<T> {
    if let Ok(address) = UnixAddr::new(path) {
        return use_address(&address);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = open(
        directory,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let short = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    use_address(&UnixAddr::new(&short)?)
}

fn seqpacket() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_call_carries_its_descriptors_over_a_long_path() {
        let directory = std::env::temp_dir()
            .join(format!("hull-control-{}", std::process::id()))
            .join("d".repeat(120));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("control.sock");
        let listener = listen(&path).unwrap();
        let server = std::thread::spawn(move || {
            let raw = nix::sys::socket::accept(listener.as_raw_fd()).unwrap();
            #[allow(unsafe_code)]
            // SAFETY: accept has just made it.
            let socket = unsafe { OwnedFd::from_raw_fd(raw) };
            let (packet, fds) = receive(&socket).unwrap().unwrap();
            assert_eq!(parse::<Request>(&packet).unwrap(), Request::Stop);
            assert_eq!(fds.len(), 2);
            send(&socket, &Response::Done, &[]).unwrap();
            assert!(receive(&socket).unwrap().is_none());
        });
        let client = ControlClient::connect(&path, Duration::from_secs(60)).unwrap();
        assert_eq!(client.server_pid().unwrap(), std::process::id());
        let stdin = io::stdin();
        let answer = client
            .call(&Request::Stop, &[stdin.as_fd(), stdin.as_fd()])
            .unwrap();
        assert_eq!(answer, Response::Done);
        drop(client);
        server.join().unwrap();
        std::fs::remove_dir_all(directory.parent().unwrap()).unwrap();
    }
}
