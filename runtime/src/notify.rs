//! What a container's programs say to their service manager (sd_notify(3)): from the guest's socket, by a stream
//! ([`hull_agent_protocol::notify`]), to a datagram socket of the host.
//!
//! There are two ways, as with runc. A caller that has NOTIFY_SOCKET in its environment is a service: `start` waits until
//! the container says that it is ready, hands that on with the pid of the container's proxy, and ends
//! ([`ReadyNotice`]). An engine that has mounted a socket of its own hears all that is said for as long as the container
//! lives, from the proxy ([`carry`]).
//!
//! The guest is hostile: what it says is bounded, and only what concerns a service's state is handed on. The pid of a
//! main process, descriptors to be kept, and whatever else speaks of processes would be those of another kernel.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::PathBuf;

use hull_agent_protocol::notify::MAX_MESSAGE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe2;

use crate::error::chain;

/// The variable of the environment that names the socket.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// What is handed on; what begins otherwise is not.
const STATE: [&str; 9] = [
    "READY=",
    "RELOADING=",
    "STOPPING=",
    "STATUS=",
    "ERRNO=",
    "BUSERROR=",
    "WATCHDOG=",
    "WATCHDOG_USEC=",
    "EXTEND_TIMEOUT_USEC=",
];

/// How long a service manager has to take note of what it was told, in milliseconds, as with runc: one that does not
/// know of barriers never says so.
const BARRIER_LIMIT: u16 = 30_000;

/// How notifications fail.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The service manager's socket.
    #[error("notification socket {}: {operation}", socket.display())]
    Socket {
        /// Its address, as the environment has it.
        socket: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The guest's stream.
    #[error("notifications of the guest")]
    Guest(#[source] io::Error),
}

/// A socket of the host that hears notifications.
#[derive(Debug)]
struct Listener {
    address: PathBuf,
    socket: UnixDatagram,
}

impl Listener {
    /// `address` is a path, or begins with `@` and is an abstract name (sd_notify(3)).
    fn connect(address: &OsStr) -> Result<Self, NotifyError> {
        let socket = connect(address).map_err(|source| NotifyError::Socket {
            socket: address.into(),
            operation: "connect",
            source,
        })?;
        Ok(Self {
            address: address.into(),
            socket,
        })
    }

    fn say(&self, message: &str) -> Result<(), NotifyError> {
        let sent = self.socket.send(message.as_bytes());
        sent.map(drop).map_err(self.fail("send"))
    }

    /// Waits until the service manager has taken note of all that it was told: it closes the descriptor that comes with
    /// the last message.
    fn barrier(&self) -> Result<(), NotifyError> {
        let (closed, held) =
            pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| self.fail("pipe")(errno.into()))?;
        let fds = [held.as_raw_fd()];
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(b"BARRIER=1")],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|errno| self.fail("send")(errno.into()))?;
        drop(held);
        let mut fds = [PollFd::new(closed.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(BARRIER_LIMIT)) {
            Ok(0) => {
                tracing::warn!(socket = %self.address.display(), "no answer to a barrier");
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(errno) => Err(self.fail("wait")(errno.into())),
        }
    }

    fn fail(&self, operation: &'static str) -> impl FnOnce(io::Error) -> NotifyError {
        let socket = self.address.clone();
        move |source| NotifyError::Socket {
            socket,
            operation,
            source,
        }
    }
}

/// A socket that sends to `address`, which [`Listener::connect`] tells of.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    if let Some(name) = address.as_bytes().strip_prefix(b"@") {
        socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    } else {
        // The kernel takes 107 bytes of a path, and Podman's are longer.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(address)?;
        socket.connect(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    }
    Ok(socket)
}

/// A container's word that it is ready, which its caller's service manager waits for.
#[derive(Debug)]
pub struct ReadyNotice {
    guest: UnixStream,
    host: Listener,
}

impl ReadyNotice {
    /// The word will come by the stream `guest`, and is for whoever listens on `address`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(crate) fn new(guest: UnixStream, address: &OsStr) -> Result<Self, NotifyError> {
        Ok(Self {
            guest,
            host: Listener::connect(address)?,
        })
    }

    /// Waits until the container is ready, or has ended, and tells the service manager so, and that `main_pid` is the
    /// service's main process from now on.
    ///
    /// # Errors
    /// See [`NotifyError`].
    pub fn hand_on(mut self, main_pid: u32) -> Result<(), NotifyError> {
        while let Some(message) = read_message(&mut self.guest).map_err(NotifyError::Guest)? {
            let ready = message.lines().find(|line| line.starts_with("READY="));
            if let Some(ready) = ready {
                self.host.say(&format!("{ready}\n"))?;
                self.host.say(&format!("MAINPID={main_pid}\n"))?;
                return self.host.barrier();
            }
        }
        Ok(())
    }
}

/// Carries what is said of a service's state to the engine's socket at `address`, until the container has ended.
pub(crate) fn carry(mut guest: UnixStream, address: &OsStr) {
    let mut listener = None;
    loop {
        let message = match read_message(&mut guest) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "notifications of the guest");
                return;
            }
        };
        let message = of_state(&message);
        if message.is_empty() {
            continue;
        }
        // An engine that starts to listen late hears what is said from then on.
        let said = match listener.take() {
            Some(listener) => Ok(listener),
            None => Listener::connect(address),
        }
        .and_then(|connected| {
            connected.say(&message)?;
            listener = Some(connected);
            Ok(())
        });
        if let Err(error) = said {
            tracing::warn!(error = %chain(&error), "a notification is lost");
        }
    }
}

/// The lines of a message that are handed on.
fn of_state(message: &str) -> String {
    let is_state = |line: &&str| STATE.iter().any(|name| line.starts_with(name));
    let lines: Vec<&str> = message.lines().filter(is_state).collect();
    lines.join("\n")
}

/// The next message; none at the end of the stream.
fn read_message(guest: &mut UnixStream) -> io::Result<Option<String>> {
    let mut length = [0; 2];
    match guest.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        // The VM is gone.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    guest.read_exact(&mut message)?;
    Ok(Some(String::from_utf8_lossy(&message).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    fn frame(message: &str) -> Vec<u8> {
        let length = u16::try_from(message.len()).unwrap();
        [&length.to_be_bytes()[..], message.as_bytes()].concat()
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 8192];
        // Descriptors that come along are closed: there is no room for them.
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn the_first_ready_is_handed_on_with_the_main_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let host = UnixDatagram::bind(&path).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let (mut guest, ours) = UnixStream::pair().unwrap();
        let notice = ReadyNotice::new(ours, path.as_os_str()).unwrap();
        let waiting = std::thread::spawn(move || notice.hand_on(7));
        guest.write_all(&frame("STATUS=soon")).unwrap();
        guest
            .write_all(&frame("MAINPID=1\nREADY=1\nSTATUS=up"))
            .unwrap();
        let heard = [receive(&host), receive(&host), receive(&host)];
        assert_eq!(heard, ["READY=1\n", "MAINPID=7\n", "BARRIER=1"]);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn a_container_that_ends_unready_is_no_failure_and_nobody_to_tell_is() {
        let (guest, ours) = UnixStream::pair().unwrap();
        let address = format!("@hull-test-{}", std::process::id());
        ReadyNotice::new(ours.try_clone().unwrap(), address.as_ref()).unwrap_err();
        let name = SocketAddr::from_abstract_name(&address.as_bytes()[1..]).unwrap();
        let _host = UnixDatagram::bind_addr(&name).unwrap();
        let notice = ReadyNotice::new(ours, address.as_ref()).unwrap();
        drop(guest);
        notice.hand_on(7).unwrap();
    }

    #[test]
    fn an_engine_hears_of_the_state_only_and_bad_frames_end_the_stream() {
        let directory = tempfile::tempdir().unwrap();
        // Longer than a socket's address may be.
        let long = directory.path().join("long".repeat(30));
        std::fs::create_dir(&long).unwrap();
        let path = directory.path().join("s");
        let host = UnixDatagram::bind(&path).unwrap();
        std::fs::rename(&path, long.join("s")).unwrap();
        let path = long.join("s");
        host.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let (mut guest, ours) = UnixStream::pair().unwrap();
        for message in [
            "MAINPID=1",
            "FDSTORE=1\nSTATUS=up\nMAINPID=1\nREADY=1",
            "STOPPING=1",
        ] {
            guest.write_all(&frame(message)).unwrap();
        }
        guest.write_all(&[0xff, 0xff, b'x']).unwrap();
        carry(ours, path.as_os_str());
        assert_eq!(receive(&host), "STATUS=up\nREADY=1");
        assert_eq!(receive(&host), "STOPPING=1");
    }
}
