//! The streams behind the URLs that containerd gives for exec, attach and port forward: channels of a WebSocket (RFC 6455)
//! with the subprotocol `v4.channel.k8s.io`, where the first byte of a message is its channel.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::command::LIMIT;

/// The channels of a process's streams.
pub const STDIN: u8 = 0;
/// What it writes.
pub const STDOUT: u8 = 1;
/// What it complains.
pub const STDERR: u8 = 2;
/// How it ended, as JSON.
pub const STATUS: u8 = 3;
/// The size of its terminal, as JSON.
pub const RESIZE: u8 = 4;

const BINARY: u8 = 2;
const CLOSE: u8 = 8;
/// The bit of a message's last frame, and that of a masked one, which share no byte.
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// A connection.
#[derive(Debug)]
pub struct Streams {
    connection: BufReader<TcpStream>,
    received: HashMap<u8, Vec<u8>>,
}

impl Streams {
    /// Opens what containerd has answered with `answer`.
    ///
    /// # Panics
    /// It cannot be opened.
    #[must_use]
    pub fn open(answer: &Value) -> Self {
        let url = answer["url"].as_str().expect("a URL");
        let address = url.strip_prefix("http://").expect("a URL of HTTP");
        let (host, path) = address.split_once('/').expect("a path");
        let mut connection = TcpStream::connect(host).expect("containerd's streaming server");
        connection.set_read_timeout(Some(LIMIT)).expect("timeout");
        // The key is that of RFC 6455; who answers with the wrong one is not to be found out here.
        write!(
            connection,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Origin: http://{host}\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )
        .expect("request");
        let mut connection = BufReader::new(connection);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let count = connection.read_line(&mut head).expect("answer");
            assert!(count > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self {
            connection,
            received: HashMap::new(),
        }
    }

    /// Sends a short message on a channel.
    ///
    /// # Panics
    /// The connection is gone, or the message is long.
    #[track_caller]
    pub fn send(&mut self, channel: u8, message: &[u8]) {
        let length = u8::try_from(message.len() + 1)
            .ok()
            .filter(|length| *length < 126);
        // With a mask of zeros a message stays as it is.
        let head = [
            FINAL | BINARY,
            MASKED | length.expect("a short message"),
            0,
            0,
            0,
            0,
            channel,
        ];
        let frame = [&head[..], message].concat();
        self.connection.get_mut().write_all(&frame).expect("send");
    }

    /// Receives until `text` has come on a channel.
    ///
    /// # Panics
    /// The connection ends before.
    #[track_caller]
    pub fn await_text(&mut self, channel: u8, text: &str) {
        while !self.text(channel).contains(text) {
            let more = self.receive().expect("receive");
            assert!(more, "{text:?} is not in {:?}", self.received);
        }
    }

    /// Receives until the connection ends.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn finish(&mut self) {
        while self.receive().expect("receive") {}
    }

    /// What has come on a channel.
    #[must_use]
    pub fn text(&self, channel: u8) -> String {
        let bytes = self.received.get(&channel).map_or(&[][..], Vec::as_slice);
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// The exit code of a process whose streams have ended.
    ///
    /// # Panics
    /// It is not told.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        let status: Value = serde_json::from_str(&self.text(STATUS)).expect("a status");
        if status["status"] == "Success" {
            return 0;
        }
        let code = status["details"]["causes"][0]["message"].as_str();
        code.and_then(|code| code.parse().ok())
            .unwrap_or_else(|| panic!("no exit code in {status}"))
    }

    /// Receives a frame; false at the end.
    fn receive(&mut self) -> io::Result<bool> {
        let mut head = [0; 2];
        match self.connection.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            answer => answer?,
        }
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.connection.read_exact(&mut length)?;
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.connection.read_exact(&mut length)?;
                u64::from_be_bytes(length)
            }
            length => length.into(),
        };
        let mut message = Vec::new();
        self.connection
            .by_ref()
            .take(length)
            .read_to_end(&mut message)?;
        match (head[0] & 0xf, message.split_first()) {
            (CLOSE, _) => return Ok(false),
            (BINARY, Some((channel, rest))) => {
                self.received.entry(*channel).or_default().extend(rest);
            }
            _ => {}
        }
        Ok(true)
    }
}
