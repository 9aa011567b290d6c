//! Connections to ports of the guest, through the Unix socket of the VMM's hybrid vsock.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hull_agent_protocol::ports;
use hull_agent_protocol::stdio::{MAX_LINE, StreamRequest};
use hull_vmm_protocol::socket::with_short_path;

/// How often a refused connection is tried again while the guest boots.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// How often a wait looks whether the VM still lives.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long the first attempt waits before another is made in its place: it may have met a driver in its infancy, and
/// its packet be lost. Each waits twice as long as the one before, for a guest may also be that slow.
const FIRST_ATTEMPT: Duration = Duration::from_millis(100);
/// How long the opening of a stream may take.
const STREAM_LIMIT: Duration = Duration::from_secs(30);

/// How a connection to the guest fails.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Nobody listens on the Unix socket: the VMM has not come to it yet, or has ended.
    #[error("connect to {}", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The VMM or the guest closed the connection before it was made.
    #[error("nothing in the guest listens on vsock port {port}")]
    Refused {
        /// The port.
        port: u32,
    },
    /// The connection broke.
    #[error("connection to vsock port {port}")]
    Io {
        /// The port.
        port: u32,
        /// How.
        source: io::Error,
    },
    /// The VMM or the guest said something else than it should.
    #[error("unexpected answer from vsock port {port}: {line:?}")]
    Unexpected {
        /// The port.
        port: u32,
        /// What it said, cut short.
        line: String,
    },
    /// No answer in time.
    #[error("no answer from vsock port {port} within {} s", limit.as_secs())]
    Timeout {
        /// The port.
        port: u32,
        /// How long was waited.
        limit: Duration,
    },
    /// The VM ended while it was waited for.
    #[error("the VM ended before its agent answered")]
    VmEnded,
}

/// Connects to `port`.
pub(crate) fn connect(socket: &Path, port: u32, limit: Duration) -> Result<UnixStream, VsockError> {
    attempt(socket, port, limit, &|| true)
}

/// Connects to a port that nothing may listen on yet.
pub(crate) fn await_port(
    socket: &Path,
    port: u32,
    limit: Duration,
    alive: impl Fn() -> bool,
) -> Result<UnixStream, VsockError> {
    let deadline = Instant::now() + limit;
    let mut attempt_limit = FIRST_ATTEMPT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(VsockError::Timeout { port, limit });
        }
        match attempt(socket, port, left.min(attempt_limit), &alive) {
            Ok(stream) => return Ok(stream),
            Err(VsockError::Refused { .. } | VsockError::Socket { .. } | VsockError::Io { .. }) => {
                if !alive() {
                    return Err(VsockError::VmEnded);
                }
                std::thread::sleep(RETRY_INTERVAL);
            }
            Err(VsockError::Timeout { .. }) => attempt_limit = attempt_limit.saturating_mul(2),
            Err(error) => return Err(error),
        }
    }
}

/// Opens one of a process's streams.
pub(crate) fn open_stream(
    socket: &Path,
    request: &StreamRequest,
) -> Result<UnixStream, VsockError> {
    let port = ports::STDIO;
    let mut stream = connect(socket, port, STREAM_LIMIT)?;
    let fail = |source| VsockError::Io { port, source };
    stream
        .write_all(format!("{request}\n").as_bytes())
        .map_err(fail)?;
    let answer = read_line(&mut stream, port, STREAM_LIMIT, &|| true)?;
    if answer != "ok" {
        return Err(unexpected(port, &answer));
    }
    stream.set_read_timeout(None).map_err(fail)?;
    Ok(stream)
}

fn attempt(
    socket: &Path,
    port: u32,
    limit: Duration,
    alive: &dyn Fn() -> bool,
) -> Result<UnixStream, VsockError> {
    let fail = |source| VsockError::Io { port, source };
    let mut stream = with_short_path(socket, |address| {
        UnixStream::connect(address.path().ok_or(io::ErrorKind::InvalidInput)?)
    })
    .map_err(|source| VsockError::Socket {
        socket: socket.into(),
        source,
    })?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .map_err(fail)?;
    let answer = read_line(&mut stream, port, limit, alive)?;
    if !answer.starts_with("OK ") {
        return Err(unexpected(port, &answer));
    }
    stream.set_read_timeout(None).map_err(fail)?;
    Ok(stream)
}

fn unexpected(port: u32, line: &str) -> VsockError {
    VsockError::Unexpected {
        port,
        line: line.chars().take(200).collect(),
    }
}

/// Reads up to a newline, byte by byte: what follows belongs to the stream.
fn read_line(
    stream: &mut UnixStream,
    port: u32,
    limit: Duration,
    alive: &dyn Fn() -> bool,
) -> Result<String, VsockError> {
    let deadline = Instant::now() + limit;
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(VsockError::Timeout { port, limit });
        }
        let fail = |source| VsockError::Io { port, source };
        stream
            .set_read_timeout(Some(left.min(LIVENESS_INTERVAL)))
            .map_err(fail)?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(VsockError::Refused { port }),
            Ok(_) if byte[0] == b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            Ok(_) if line.len() == MAX_LINE => {
                return Err(unexpected(port, &String::from_utf8_lossy(&line)));
            }
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                if !alive() {
                    return Err(VsockError::VmEnded);
                }
            }
            Err(source) => return Err(fail(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hull_agent_protocol::stdio::StreamKind;
    use std::os::unix::net::UnixListener;

    /// A VMM's socket whose connections are each served by one of `answers`: what is read first, then what is
    /// written.
    fn serve(answers: Vec<Vec<(&'static str, &'static str)>>) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                for (expected, reply) in answer {
                    let mut read = vec![0; expected.len()];
                    stream.read_exact(&mut read).unwrap();
                    assert_eq!(read, expected.as_bytes());
                    stream.write_all(reply.as_bytes()).unwrap();
                }
            }
        });
        (directory, path)
    }

    #[test]
    fn a_port_is_awaited_until_something_listens() {
        let refused = vec![("CONNECT 1024\n", "")];
        let accepted = vec![("CONNECT 1024\n", "OK 1073741824\nafter")];
        let (_directory, path) = serve(vec![refused.clone(), refused, accepted]);
        let mut stream = await_port(&path, 1024, Duration::from_secs(60), || true).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "after");
    }

    #[test]
    fn waiting_ends_with_the_vm_or_the_limit() {
        let missing = Path::new("/nonexistent/agent.sock");
        let error = await_port(missing, 1024, Duration::from_secs(60), || false).unwrap_err();
        assert!(matches!(error, VsockError::VmEnded), "{error}");
        let error = await_port(missing, 1024, Duration::from_millis(20), || true).unwrap_err();
        assert!(matches!(error, VsockError::Timeout { .. }), "{error}");
    }

    #[test]
    fn a_stream_is_opened_with_its_line() {
        let stdout = StreamRequest {
            kind: StreamKind::Stdout,
            container_id: "c".into(),
            exec_id: String::new(),
        };
        let greeting = ("CONNECT 1025\n", "OK 5\n");
        let (_directory, path) = serve(vec![
            vec![greeting, ("stdout c -\n", "ok\nbytes")],
            vec![greeting, ("stdout c -\n", "error it is open already\n")],
        ]);
        let mut bytes = String::new();
        let mut stream = open_stream(&path, &stdout).unwrap();
        stream.read_to_string(&mut bytes).unwrap();
        assert_eq!(bytes, "bytes");
        let error = open_stream(&path, &stdout).unwrap_err();
        assert!(error.to_string().contains("it is open already"), "{error}");
    }
}
