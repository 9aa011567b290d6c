//! The stdio streams of a process, each a vsock connection of its own to port [`crate::ports::STDIO`].
//!
//! The host opens one with a single line, `<kind> <container id> <exec id>\n`, in which an empty exec id (a
//! container's first process) is written `-`; the agent answers `ok\n`, or `error <sentence>\n` and closes. From
//! then on the connection carries the stream's bytes and nothing else:
//!
//! - `stdin`: host to guest. The host's half-close (`shutdown(SHUT_WR)`) is the end of the process's input.
//! - `stdout`, `stderr`: guest to host. The agent's half-close is the end of the process's output.
//! - `terminal`: both ways, a terminal's master. The agent's half-close says that the last process left it.
//! - `notify`: guest to host, of a container's first process only: what its programs say to their service manager
//!   ([`crate::notify`]). The agent's half-close is the end of the process.
//! - `out-of-memory`: guest to host, of a container's first process only: a byte each time that the kernel's OOM killer
//!   has ended processes of the container. The agent's half-close is the end of the process, which is told after it.
//! - `file-3` and so on: an open file that the process has as this descriptor. A pipe is as `stdin` or `stdout` is; a
//!   connected socket goes both ways, and either half-close is carried. Of a socket that listens each such stream is one
//!   connection that it gets: so this one is opened as often as the host's socket accepts one.
//! - `lease`: no bytes. Whoever holds it stands for the process: if it is closed before the process has ended, the agent
//!   kills the process.
//!
//! What a process writes before its streams are connected waits in its pipe; nothing is lost. A stream may be
//! opened once.

use std::fmt;
use std::str::FromStr;

/// Which of a process's streams a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Host to guest.
    Stdin,
    /// Guest to host.
    Stdout,
    /// Guest to host.
    Stderr,
    /// Both ways.
    Terminal,
    /// Guest to host: messages of [`crate::notify`].
    Notify,
    /// Guest to host: a byte for each event.
    OutOfMemory,
    /// As the file is: this descriptor of the process, 3 or more.
    File(u32),
    /// Neither way.
    Lease,
}

/// The first descriptor after the stdio.
pub const FIRST_FILE: u32 = 3;

/// What [`StreamKind::File`] is written with.
const FILE: &str = "file-";

impl fmt::Display for StreamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Terminal => "terminal",
            Self::Notify => "notify",
            Self::OutOfMemory => "out-of-memory",
            Self::Lease => "lease",
            Self::File(number) => return write!(f, "{FILE}{number}"),
        })
    }
}

/// The line that opens a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamRequest {
    /// Which stream.
    pub kind: StreamKind,
    /// The container.
    pub container_id: String,
    /// The process; empty for the container's first.
    pub exec_id: String,
}

/// A line that opens no stream.
#[derive(Debug, PartialEq, Eq)]
pub struct BadStreamRequest;

impl fmt::Display for BadStreamRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not `<kind> <container id> <exec id>`")
    }
}

impl std::error::Error for BadStreamRequest {}

/// The longest opening line or answer, with its newline, in bytes.
pub const MAX_LINE: usize = 4096;

impl fmt::Display for StreamRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exec_id = if self.exec_id.is_empty() {
            "-"
        } else {
            &self.exec_id
        };
        write!(f, "{} {} {exec_id}", self.kind, self.container_id)
    }
}

impl FromStr for StreamRequest {
    type Err = BadStreamRequest;

    fn from_str(line: &str) -> Result<Self, BadStreamRequest> {
        let mut words = line.split(' ');
        let (Some(kind), Some(container_id), Some(exec_id), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(BadStreamRequest);
        };
        let kind = match kind {
            "stdin" => StreamKind::Stdin,
            "stdout" => StreamKind::Stdout,
            "stderr" => StreamKind::Stderr,
            "terminal" => StreamKind::Terminal,
            "notify" => StreamKind::Notify,
            "out-of-memory" => StreamKind::OutOfMemory,
            "lease" => StreamKind::Lease,
            kind => {
                let number = kind
                    .strip_prefix(FILE)
                    .and_then(|digits| digits.parse().ok());
                let number = number.filter(|number| *number >= FIRST_FILE);
                StreamKind::File(number.ok_or(BadStreamRequest)?)
            }
        };
        if container_id.is_empty() || exec_id.is_empty() {
            return Err(BadStreamRequest);
        }
        let exec_id = if exec_id == "-" { "" } else { exec_id };
        Ok(Self {
            kind,
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_as_it_was_written() {
        for (kind, exec_id) in [
            (StreamKind::Stdin, ""),
            (StreamKind::Terminal, "e1"),
            (StreamKind::Stderr, ""),
            (StreamKind::Notify, ""),
            (StreamKind::OutOfMemory, ""),
            (StreamKind::Lease, "e1"),
            (StreamKind::File(3), "e1"),
        ] {
            let request = StreamRequest {
                kind,
                container_id: "c".into(),
                exec_id: exec_id.into(),
            };
            assert_eq!(request.to_string().parse(), Ok(request));
        }
    }

    #[test]
    fn a_line_of_another_shape_is_refused() {
        for line in [
            "",
            "stdin",
            "stdin c",
            "stdin c - x",
            "stdfoo c -",
            "file-2 c -",
            "file- c -",
            "stdin  -",
        ] {
            assert_eq!(
                line.parse::<StreamRequest>(),
                Err(BadStreamRequest),
                "{line:?}"
            );
        }
    }
}
