//! The control socket and its connections.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use hull_vmm_protocol::control::{Failure, FailureKind, Request, Response};
use hull_vmm_protocol::socket;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 16;
/// How long sending an answer may take.
const SEND_TIMEOUT_SECONDS: i64 = 1;

/// A request and the descriptors that came with it.
pub struct Call {
    /// The request.
    pub request: Request,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

/// The server.
pub struct Server {
    epoll: Epoll,
    /// A `UnixListener` accepts on a socket of any type.
    listener: UnixListener,
    connections: BTreeMap<RawFd, OwnedFd>,
}

impl Server {
    /// Serves on a listening socket.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let server = Self {
            epoll: Epoll::new()?,
            listener,
            connections: BTreeMap::new(),
        };
        server.watch(server.listener.as_raw_fd())?;
        Ok(server)
    }

    /// Serves what is ready, one call for each connection.
    ///
    /// # Errors
    /// The host refused to wait for events. An error of one connection ends that connection.
    pub fn serve(&mut self, answer: &mut dyn FnMut(Call) -> Response) -> io::Result<()> {
        let mut events = [EpollEvent::default(); MAX_CONNECTIONS + 1];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            let fd = event.fd();
            if fd == self.listener.as_raw_fd() {
                self.accept()?;
            } else if let Some(connection) = self.connections.get(&fd)
                && !serve_one(connection, answer)
            {
                self.close(fd)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "accept a control connection");
                return Ok(());
            }
        };
        let connection = OwnedFd::from(stream);
        let timeout = TimeVal::new(SEND_TIMEOUT_SECONDS, 0);
        setsockopt(&connection, sockopt::SendTimeout, &timeout)?;
        self.watch(connection.as_raw_fd())?;
        self.connections.insert(connection.as_raw_fd(), connection);
        if self.connections.len() == MAX_CONNECTIONS {
            self.unwatch(self.listener.as_raw_fd())?;
        }
        Ok(())
    }

    fn close(&mut self, fd: RawFd) -> io::Result<()> {
        self.unwatch(fd)?;
        self.connections.remove(&fd);
        if self.connections.len() == MAX_CONNECTIONS - 1 {
            self.watch(self.listener.as_raw_fd())?;
        }
        Ok(())
    }

    fn watch(&self, fd: RawFd) -> io::Result<()> {
        // Descriptors are not negative.
        let token = u64::try_from(fd).unwrap_or(u64::MAX);
        self.epoll.ctl(
            ControlOperation::Add,
            fd,
            EpollEvent::new(EventSet::IN, token),
        )
    }

    fn unwatch(&self, fd: RawFd) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }
}

impl AsRawFd for Server {
    /// Readable when there is something to serve.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// Takes one call and answers it. False when the connection is to be closed.
fn serve_one(connection: &OwnedFd, answer: &mut dyn FnMut(Call) -> Response) -> bool {
    let (packet, fds) = match socket::receive(connection) {
        Ok(Some(received)) => received,
        Ok(None) => return false,
        Err(error) => {
            tracing::debug!(%error, "receive a control call");
            return false;
        }
    };
    let response = match socket::parse(&packet) {
        Ok(request) => answer(Call { request, fds }),
        Err(error) => Response::Failed(Failure {
            kind: FailureKind::Invalid,
            message: format!("the request is not one: {error}"),
        }),
    };
    match socket::send(connection, &response, &[]) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "answer a control call");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hull_vmm_protocol::socket::{CallError, ControlClient};
    use std::time::Duration;

    fn serve_until_idle(server: &mut Server, answer: &mut dyn FnMut(Call) -> Response) {
        let deadline = std::time::Instant::now() + Duration::from_millis(300);
        while std::time::Instant::now() < deadline {
            server.serve(answer).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn calls_are_answered_and_broken_ones_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let mut server = Server::new(socket::listen(&path).unwrap()).unwrap();
        let caller = std::thread::spawn({
            let path = path.clone();
            move || {
                let client = ControlClient::connect(&path, Duration::from_secs(5)).unwrap();
                let done = client.call(&Request::Stop, &[]).unwrap();
                let raw = std::os::unix::net::UnixDatagram::unbound().unwrap();
                assert!(raw.connect(&path).is_err(), "not a datagram socket");
                let refused = client.call(&Request::Detach { id: "x".into() }, &[]);
                (done, refused)
            }
        });
        let mut calls = 0;
        serve_until_idle(&mut server, &mut |call| {
            calls += 1;
            match call.request {
                Request::Stop => Response::Done,
                _ => Response::Failed(Failure {
                    kind: FailureKind::NotFound,
                    message: "no".into(),
                }),
            }
        });
        let (done, refused) = caller.join().unwrap();
        assert_eq!(done, Response::Done);
        assert!(
            matches!(refused, Err(CallError::Failed(failure)) if failure.kind == FailureKind::NotFound)
        );
        assert_eq!(calls, 2);
        server.serve(&mut |_| Response::Done).unwrap();
        assert!(server.connections.is_empty());
    }

    #[test]
    fn more_callers_than_connections_wait_their_turn() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let mut server = Server::new(socket::listen(&path).unwrap()).unwrap();
        let callers: Vec<_> = (0..MAX_CONNECTIONS + 8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || {
                    let client = ControlClient::connect(&path, Duration::from_secs(5)).unwrap();
                    client.call(&Request::Status, &[]).unwrap()
                })
            })
            .collect();
        serve_until_idle(&mut server, &mut |_| Response::Done);
        for caller in callers {
            assert_eq!(caller.join().unwrap(), Response::Done);
        }
    }
}
