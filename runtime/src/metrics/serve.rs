//! Gives a sandbox's metrics to who asks for them by HTTP on its socket: `GET /metrics`, one request on a connection.
//!
//! A thread waits for clients, and each is answered in a thread of its own within [`CLIENT_LIMIT`] for its part: one that
//! says or reads nothing keeps nobody waiting, and so many of them that no thread is left are told so.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hull_vmm_protocol::socket::with_short_path;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, bind, listen, socket};
use prometheus::TEXT_FORMAT;

use super::{MetricsError, of_one};
use crate::container::ContainerId;
use crate::error::chain;
use crate::store::Store;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;
/// Clients that are answered at once.
const CLIENTS: usize = 4;
/// How long a client may take to say what it wants, and then to read the answer.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// After a failure to accept, for want of descriptors say.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest request, in bytes.
const MAX_REQUEST: usize = 8 * 1024;
/// The most header fields.
const MAX_HEADERS: usize = 64;

const OK: &str = "200 OK";
const MALFORMED: &str = "400 Bad Request";
const NOT_FOUND: &str = "404 Not Found";
const NOT_ALLOWED: &str = "405 Method Not Allowed";
const TOO_LARGE: &str = "431 Request Header Fields Too Large";
const FAILED: &str = "500 Internal Server Error";
const BUSY: &str = "503 Service Unavailable";

/// Starts the thread. It ends with the process.
///
/// # Errors
/// The socket cannot be listened on.
pub(crate) fn start(store: Store, sandbox: ContainerId) -> Result<(), MetricsError> {
    let path = store.metrics_socket(&sandbox);
    let listener = listen_on(&path).map_err(|source| MetricsError::Listen {
        socket: path,
        source,
    })?;
    start_on(listener, move || of_one(&store, &sandbox)).map_err(MetricsError::Thread)
}

/// Makes the socket anew: that of a monitor that was killed is there still.
fn listen_on(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    with_short_path(path, |address| Ok(bind(socket.as_raw_fd(), address)?))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

fn start_on(
    listener: UnixListener,
    metrics: impl Fn() -> Result<String, crate::Error> + Send + Sync + 'static,
) -> io::Result<()> {
    let metrics = Arc::new(metrics);
    let accept = move || {
        loop {
            let client = match listener.accept() {
                Ok((client, _)) => client,
                Err(error) => {
                    tracing::warn!(%error, "accept who asks for metrics");
                    thread::sleep(PAUSE);
                    continue;
                }
            };
            // This thread has one too.
            if Arc::strong_count(&metrics) > CLIENTS {
                // Nothing is in its buffer, so this does not wait.
                if let Err(error) = respond(&client, BUSY, "") {
                    tracing::debug!(%error, "one more who asks for metrics");
                }
                continue;
            }
            let metrics = metrics.clone();
            let answer = move || {
                if let Err(error) = answer(&client, &*metrics) {
                    tracing::debug!(%error, "who asked for metrics");
                }
            };
            let thread = thread::Builder::new().name("metrics".into());
            if let Err(error) = thread.spawn(answer) {
                tracing::warn!(%error, "start a thread for who asks for metrics");
            }
        }
    };
    let thread = thread::Builder::new().name("metrics-accept".into());
    thread.spawn(accept).map(drop)
}

fn answer(
    client: &UnixStream,
    metrics: &impl Fn() -> Result<String, crate::Error>,
) -> io::Result<()> {
    match read_request(client)? {
        OK => match metrics() {
            Ok(text) => respond(client, OK, &text),
            Err(error) => respond(client, FAILED, &format!("{}\n", chain(&error))),
        },
        status => respond(client, status, ""),
    }
}

/// Reads a request; gives the status that it deserves.
fn read_request(mut client: &UnixStream) -> io::Result<&'static str> {
    let deadline = Instant::now() + CLIENT_LIMIT;
    let mut request = Vec::new();
    loop {
        let mut part = [0; 1024];
        client.set_read_timeout(Some(left(deadline)?))?;
        let count = client.read(&mut part)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&part[..count]);
        if let Some(status) = judge(&request) {
            return Ok(status);
        }
    }
}

/// The status for a request; nothing as long as more of it is to come.
fn judge(bytes: &[u8]) -> Option<&'static str> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < MAX_REQUEST => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(TOO_LARGE);
        }
        Err(_) => return Some(MALFORMED),
        Ok(httparse::Status::Complete(_)) => {}
    }
    let path = request.path.and_then(|path| path.split('?').next());
    Some(match (request.method, path) {
        (Some("GET"), Some("/metrics")) => OK,
        (Some("GET"), _) => NOT_FOUND,
        _ => NOT_ALLOWED,
    })
}

fn respond(mut client: &UnixStream, status: &str, body: &str) -> io::Result<()> {
    let deadline = Instant::now() + CLIENT_LIMIT;
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {TEXT_FORMAT}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut rest = response.as_bytes();
    while !rest.is_empty() {
        client.set_write_timeout(Some(left(deadline)?))?;
        let count = client.write(rest)?;
        rest = &rest[count..];
    }
    Ok(())
}

/// The time until `deadline`, which is not over.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_judged_when_they_are_whole() {
        for (request, status) in [
            ("GET /metrics HTTP/1.1\r\nHost: hull\r\n\r\n", Some(OK)),
            ("GET /metrics?a=b HTTP/1.0\r\n\r\n", Some(OK)),
            ("GET /metrics HTTP/1.1\r\nHost", None),
            ("", None),
            ("GET / HTTP/1.1\r\n\r\n", Some(NOT_FOUND)),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(NOT_ALLOWED)),
            ("\u{1}\n", Some(MALFORMED)),
        ] {
            assert_eq!(judge(request.as_bytes()), status, "{request}");
        }
        let long = format!("GET /{}", "a".repeat(MAX_REQUEST));
        assert_eq!(judge(long.as_bytes()), Some(TOO_LARGE));
        let many = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(judge(many.as_bytes()), Some(TOO_LARGE));
    }

    #[test]
    fn clients_that_say_or_read_nothing_keep_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics/one.sock");
        let text = "a 1\n".repeat(1 << 20);
        let expected = text.len();
        for _ in 0..2 {
            let text = text.clone();
            start_on(listen_on(&path).unwrap(), move || Ok(text.clone())).unwrap();
        }
        let connect = || UnixStream::connect(&path).unwrap();
        let ask =
            |mut client: &UnixStream| client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let (_silent, deaf) = (connect(), connect());
        ask(&deaf);
        let mut client = connect();
        ask(&client);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(body.len(), expected);
    }
}
