//! Calls of systemd over its private socket: as much of the D-Bus specification as they take. Only root may connect
//! there, and no message bus has to run.
//!
//! No library, for those that were tried do not get on with that socket: zbus 5.19 panics at its answers, whose sender
//! is no unique name, and the client of libcgroups 0.7 waits for ever when systemd reads its call together with `BEGIN`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Where systemd takes calls without a bus.
const SOCKET: &str = "/run/systemd/private";
/// How long an answer may take: systemd makes units one after the other.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// No answer to what is called here comes near it.
const LONGEST_MESSAGE: usize = 1 << 20;

/// Types of messages ("Message Format").
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// Codes of header fields ("Header Fields").
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const SIGNATURE: u8 = 8;

/// What goes before the fields: endianness, type, flags, version, length of the body, serial, length of the fields.
const FIXED_LENGTH: usize = 16;

/// How systemd cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum DbusError {
    /// There is nobody, or nobody answers.
    #[error("{SOCKET}")]
    Io(#[from] io::Error),
    /// It does not take root for root.
    #[error("{SOCKET}: AUTH EXTERNAL is answered with {answer:?}")]
    Refused {
        /// Its line.
        answer: String,
    },
    /// What comes is no message.
    #[error("{SOCKET}: a malformed answer to {method}")]
    Malformed {
        /// What was called.
        method: &'static str,
    },
    /// The method has failed.
    #[error("{method}: {message} ({name})")]
    Failed {
        /// What was called.
        method: &'static str,
        /// The error's name.
        name: String,
        /// In words.
        message: String,
    },
}

/// Arguments, or a part of them, marshalled ("Marshaling (Wire Format)") in little-endian order.
#[derive(Debug, Default)]
pub(super) struct Body(Vec<u8>);

impl Body {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    /// Also an object's path.
    pub(super) fn string(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.byte(0);
    }

    pub(super) fn signature(&mut self, text: &str) {
        self.byte(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.byte(0);
    }

    /// Elements, whose type is aligned to so many bytes.
    pub(super) fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        elements(self);
        let bytes = length(self.0.len() - start).to_le_bytes();
        self.0[at..at + 4].copy_from_slice(&bytes);
    }

    pub(super) fn structure(&mut self, members: impl FnOnce(&mut Self)) {
        self.align(8);
        members(self);
    }
}

/// Of something that a caller's words are a part of: far from 4 GiB.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Calls a method of systemd's manager, whose arguments are of the types `signature`.
///
/// # Errors
/// See [`DbusError`].
pub(super) fn call(
    method: &'static str,
    signature: &str,
    arguments: &Body,
) -> Result<(), DbusError> {
    call_at(Path::new(SOCKET), method, signature, arguments)
}

fn call_at(
    socket: &Path,
    method: &'static str,
    signature: &str,
    arguments: &Body,
) -> Result<(), DbusError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    // The uid as hexadecimal digits of its decimal ones. `BEGIN` goes along, as sd-bus has it: systemd does not look at a
    // call that comes in the same breath as `BEGIN` until there is another.
    stream.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
    let answer = read_line(&mut stream)?;
    if !answer.starts_with("OK ") {
        return Err(DbusError::Refused { answer });
    }
    stream.write_all(&message(method, signature, arguments))?;
    loop {
        match read_answer(&mut stream, method)? {
            Answer::Return => return Ok(()),
            Answer::Error { name, message } => {
                return Err(DbusError::Failed {
                    method,
                    name,
                    message,
                });
            }
            Answer::Other => {}
        }
    }
}

fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") && line.len() < 256 {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn message(method: &str, signature: &str, arguments: &Body) -> Vec<u8> {
    let mut message = Body(vec![b'l', METHOD_CALL, 0, 1]);
    message.u32(length(arguments.0.len()));
    message.u32(1);
    message.array(8, |fields| {
        let mut field = |code, kind, value: &str| {
            fields.structure(|field| {
                field.byte(code);
                field.signature(kind);
                match kind {
                    "g" => field.signature(value),
                    _ => field.string(value),
                }
            });
        };
        field(PATH, "o", "/org/freedesktop/systemd1");
        field(INTERFACE, "s", "org.freedesktop.systemd1.Manager");
        field(MEMBER, "s", method);
        field(SIGNATURE, "g", signature);
    });
    message.align(8);
    message.0.extend(&arguments.0);
    message.0
}

enum Answer {
    Return,
    Error {
        name: String,
        message: String,
    },
    /// A signal.
    Other,
}

fn read_answer(stream: &mut UnixStream, method: &'static str) -> Result<Answer, DbusError> {
    let mut fixed = [0; FIXED_LENGTH];
    stream.read_exact(&mut fixed)?;
    let number = |at: usize| usize::try_from(u32_at(&fixed, at)?).ok();
    let lengths = number(4).zip(number(12));
    let (body, fields) = lengths
        .filter(|(body, fields)| body.max(fields) < &LONGEST_MESSAGE)
        .ok_or(DbusError::Malformed { method })?;
    let mut rest = vec![0; fields.next_multiple_of(8) + body];
    stream.read_exact(&mut rest)?;
    let (fields, body) = rest.split_at(fields.next_multiple_of(8));
    Ok(match fixed[1] {
        METHOD_RETURN => Answer::Return,
        ERROR => Answer::Error {
            name: error_name(fields).unwrap_or_default(),
            // An error's first argument, if it is a string.
            message: string_at(body, 0).unwrap_or_default(),
        },
        _ => Answer::Other,
    })
}

/// Finds the error's name among the fields of a message, which are all of strings, signatures and 32-bit numbers.
fn error_name(fields: &[u8]) -> Option<String> {
    let mut at: usize = 0;
    loop {
        at = at.next_multiple_of(8);
        let (code, kind) = (*fields.get(at)?, *fields.get(at + 2)?);
        at += 4;
        if code == ERROR_NAME {
            return string_at(fields, at);
        }
        at += match kind {
            b'g' => usize::from(*fields.get(at)?) + 2,
            b'u' => 4,
            _ => usize::try_from(u32_at(fields, at)?).ok()? + 5,
        };
    }
}

fn string_at(bytes: &[u8], at: usize) -> Option<String> {
    let length = usize::try_from(u32_at(bytes, at)?).ok()?;
    let text = bytes.get(at + 4..)?.get(..length)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Answers one call with `answer`, and gives what it was sent.
    fn call_of_one_that_answers(answer: Vec<u8>) -> (Result<(), DbusError>, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("private");
        let listener = UnixListener::bind(&path).unwrap();
        let systemd = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut opening = [0; 26];
            stream.read_exact(&mut opening).unwrap();
            assert_eq!(&opening, b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n");
            stream.write_all(b"OK 0123\r\n").unwrap();
            let mut call = vec![0; 1024];
            let length = stream.read(&mut call).unwrap();
            call.truncate(length);
            stream.write_all(&answer).unwrap();
            call
        });
        let mut arguments = Body::default();
        arguments.string("a.scope");
        arguments.array(4, |pids| pids.u32(7));
        (
            call_at(&path, "Method", "sau", &arguments),
            systemd.join().unwrap(),
        )
    }

    fn answer(kind: u8, fields: &Body, body: &Body) -> Vec<u8> {
        let mut bytes = Body(vec![b'l', kind, 0, 1]);
        bytes.u32(length(body.0.len()));
        bytes.u32(9);
        bytes.u32(length(fields.0.len()));
        bytes.0.extend(&fields.0);
        bytes.align(8);
        bytes.0.extend(&body.0);
        bytes.0
    }

    #[test]
    fn a_call_is_marshalled_and_its_return_waited_for() {
        let none = Body::default();
        let signal = answer(4, &none, &none);
        let answers = [signal, answer(METHOD_RETURN, &none, &none)].concat();
        let (result, call) = call_of_one_that_answers(answers);
        result.unwrap();
        let body: &[u8] = b"\x07\0\0\0a.scope\0\x04\0\0\0\x07\0\0\0";
        assert_eq!(call[..12], *b"l\x01\0\x01\x14\0\0\0\x01\0\0\0");
        assert!(call.ends_with(body), "{call:?}");
        assert_eq!((call.len() - body.len()) % 8, 0);
        let signature: &[u8] = b"\x08\x01g\0\x03sau\0";
        assert!(call.windows(signature.len()).any(|it| it == signature));
    }

    #[test]
    fn an_error_is_told_with_its_name() {
        let mut fields = Body::default();
        fields.structure(|field| {
            field.byte(5);
            field.signature("u");
            field.u32(1);
        });
        fields.structure(|field| {
            field.byte(ERROR_NAME);
            field.signature("s");
            field.string("org.example.No");
        });
        let mut body = Body::default();
        body.string("not today");
        let (result, _) = call_of_one_that_answers(answer(ERROR, &fields, &body));
        let text = result.unwrap_err().to_string();
        assert_eq!(text, "Method: not today (org.example.No)");
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let mut endless = answer(METHOD_RETURN, &Body::default(), &Body::default());
        endless[4..8].fill(0xff);
        for bytes in [endless, b"l\x02".to_vec()] {
            call_of_one_that_answers(bytes).0.unwrap_err();
        }
        // An error that does not say which.
        assert_eq!(error_name(b"\x05\x01u"), None);
        assert_eq!(string_at(b"\xff\0\0\0ab", 0), None);
    }
}
