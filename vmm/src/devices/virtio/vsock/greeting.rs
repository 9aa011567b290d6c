//! The line with which a program of the host says what port of the guest it wants: `CONNECT <port>\n`.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// The longest line, with its newline, in bytes.
const MAX_LINE: usize = 32;

/// How far a program has got with its line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The line is not complete.
    Incomplete,
    /// The port that it asks for. What follows the line is still in the socket.
    Port(u32),
    /// It is no such line, or the program is gone.
    Invalid,
}

/// Reads the line from a non-blocking stream, once all of it is there, and nothing beyond it.
pub(super) fn read(stream: &UnixStream) -> Greeting {
    let mut line = [0; MAX_LINE];
    let peeked = match recv(stream.as_raw_fd(), &mut line, MsgFlags::MSG_PEEK) {
        Ok(0) => return Greeting::Invalid,
        Ok(peeked) => peeked,
        Err(Errno::EAGAIN | Errno::EINTR) => return Greeting::Incomplete,
        Err(_) => return Greeting::Invalid,
    };
    let Some(newline) = line[..peeked].iter().position(|byte| *byte == b'\n') else {
        return if peeked == MAX_LINE {
            Greeting::Invalid
        } else {
            Greeting::Incomplete
        };
    };
    let mut stream = stream;
    if stream.read_exact(&mut line[..=newline]).is_err() {
        return Greeting::Invalid;
    }
    parse(&line[..newline]).map_or(Greeting::Invalid, Greeting::Port)
}

fn parse(line: &[u8]) -> Option<u32> {
    let port = line.strip_prefix(b"CONNECT ")?;
    if !port.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(port).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let table: &[(&[u8], Greeting)] = &[
            (b"CONNECT 1024\n", Greeting::Port(1024)),
            (b"CONNECT 0\nmore", Greeting::Port(0)),
            (b"CONNECT 4294967295\n", Greeting::Port(u32::MAX)),
            (b"CONNECT 4294967296\n", Greeting::Invalid),
            (b"CONNECT +1\n", Greeting::Invalid),
            (b"CONNECT \n", Greeting::Invalid),
            (b"CONNECT 1 \n", Greeting::Invalid),
            (b"connect 1\n", Greeting::Invalid),
            (b"\n", Greeting::Invalid),
            (b"CONN", Greeting::Incomplete),
            (b"", Greeting::Incomplete),
            (b"CONNECT 00000000000000000000000012\n", Greeting::Invalid),
            (b"GET / HTTP/1.1", Greeting::Incomplete),
        ];
        for (sent, expected) in table {
            let (mut program, stream) = UnixStream::pair().expect("socket pair");
            stream.set_nonblocking(true).expect("non-blocking");
            program.write_all(sent).expect("write");
            assert_eq!(
                read(&stream),
                *expected,
                "{:?}",
                sent.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn what_follows_the_line_stays_in_the_socket() {
        let (mut program, mut stream) = UnixStream::pair().expect("socket pair");
        program.write_all(b"CONNECT 7\nearly").expect("write");
        drop(program);
        assert_eq!(read(&stream), Greeting::Port(7));
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("read");
        assert_eq!(rest, b"early");
    }

    #[test]
    fn a_program_that_goes_without_a_line_is_invalid() {
        let (program, stream) = UnixStream::pair().expect("socket pair");
        drop(program);
        assert_eq!(read(&stream), Greeting::Invalid);
    }
}
