//! ttrpc's framing: a header of ten bytes (length and stream id as big-endian u32, message type, flags), then a
//! protobuf message. <https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md>

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protobuf::Message;
use ttrpc::Code;
use ttrpc::proto::{MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE};

use super::AgentError;

const SERVICE: &str = "hull.agent.v1.Agent";
const HEADER: usize = 10;

/// One connection, with at most one call under way.
#[derive(Debug)]
pub(super) struct Transport {
    stream: UnixStream,
    /// The next call's stream; a client's are odd.
    next_stream: u32,
}

impl Transport {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            next_stream: 1,
        }
    }

    /// Sends the request of `call`. The agent is told the limit too.
    pub(super) fn send(
        &mut self,
        call: &'static str,
        request: &impl Message,
        limit: Option<Duration>,
    ) -> Result<(), AgentError> {
        let malformed = |_| AgentError::Malformed {
            call,
            what: "its request cannot be encoded",
        };
        let mut envelope = ttrpc::Request::new();
        envelope.service = SERVICE.into();
        envelope.method = call.into();
        envelope.payload = request.write_to_bytes().map_err(malformed)?;
        envelope.timeout_nano = limit.map_or(0, |limit| {
            i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX)
        });
        let body = envelope.write_to_bytes().map_err(malformed)?;
        let length = u32::try_from(body.len())
            .ok()
            .filter(|_| body.len() <= MESSAGE_LENGTH_MAX)
            .ok_or(AgentError::TooLarge {
                call,
                length: body.len(),
            })?;
        let mut frame = Vec::with_capacity(HEADER + body.len());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&self.next_stream.to_be_bytes());
        frame.extend_from_slice(&[MESSAGE_TYPE_REQUEST, 0]);
        frame.extend_from_slice(&body);
        self.next_stream = self.next_stream.wrapping_add(2);
        self.stream
            .set_write_timeout(limit)
            .and_then(|()| self.stream.write_all(&frame))
            .map_err(|source| AgentError::Lost { call, source })
    }

    /// Reads the answer to the call that was sent last.
    pub(super) fn receive<A: Message>(
        &mut self,
        call: &'static str,
        limit: Option<Duration>,
    ) -> Result<A, AgentError> {
        let malformed = |what| AgentError::Malformed { call, what };
        let deadline = limit.map(|limit| (Instant::now() + limit, limit));
        let stream_id = self.next_stream.wrapping_sub(2);
        // Answers to earlier calls that were given up may still come.
        let body = loop {
            let mut header = [0; HEADER];
            self.read(call, &mut header, deadline)?;
            let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = header;
            let length = u32::from_be_bytes([l0, l1, l2, l3]);
            let length = usize::try_from(length)
                .ok()
                .filter(|length| *length <= MESSAGE_LENGTH_MAX)
                .ok_or(malformed("it is too long"))?;
            let mut body = vec![0; length];
            self.read(call, &mut body, deadline)?;
            if kind != MESSAGE_TYPE_RESPONSE {
                return Err(malformed("it is no response"));
            }
            if u32::from_be_bytes([s0, s1, s2, s3]) == stream_id {
                break body;
            }
        };
        let mut response = ttrpc::Response::parse_from_bytes(&body)
            .map_err(|_| malformed("it is no ttrpc response"))?;
        if let Some(status) = response.status.as_mut()
            && status.code() != Code::OK
        {
            return Err(AgentError::Refused {
                call,
                code: status.code(),
                message: std::mem::take(&mut status.message),
            });
        }
        A::parse_from_bytes(&response.payload).map_err(|_| malformed("it is of another shape"))
    }

    fn read(
        &mut self,
        call: &'static str,
        buffer: &mut [u8],
        deadline: Option<(Instant, Duration)>,
    ) -> Result<(), AgentError> {
        let lost = |source| AgentError::Lost { call, source };
        let mut filled = 0;
        while filled < buffer.len() {
            let left =
                deadline.map(|(end, limit)| (end.saturating_duration_since(Instant::now()), limit));
            if let Some((left, limit)) = left
                && left.is_zero()
            {
                return Err(AgentError::NoAnswer { call, limit });
            }
            self.stream
                .set_read_timeout(left.map(|(left, _)| left))
                .map_err(lost)?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                // The limit is checked above.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hull_agent_protocol::agent::{HealthRequest, HealthResponse};

    const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

    fn frame(stream_id: u32, kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap();
        [
            &length.to_be_bytes()[..],
            &stream_id.to_be_bytes(),
            &[kind, 0],
            body,
        ]
        .concat()
    }

    fn healthy(version: &str) -> Vec<u8> {
        let mut health = HealthResponse::new();
        health.version = version.into();
        let mut response = ttrpc::Response::new();
        response.payload = health.write_to_bytes().unwrap();
        response.write_to_bytes().unwrap()
    }

    /// Makes one call whose answer is `answer`.
    fn call(answer: &[u8]) -> Result<HealthResponse, AgentError> {
        let (ours, mut agents) = UnixStream::pair().unwrap();
        agents.write_all(answer).unwrap();
        agents.shutdown(std::net::Shutdown::Write).unwrap();
        let mut transport = Transport::new(ours);
        transport.send("Health", &HealthRequest::new(), LIMIT)?;
        transport.receive("Health", LIMIT)
    }

    #[test]
    fn a_call_reads_its_own_answer() {
        let answers = [
            frame(7, MESSAGE_TYPE_RESPONSE, &healthy("stale")),
            frame(1, MESSAGE_TYPE_RESPONSE, &healthy("1.2")),
        ]
        .concat();
        assert_eq!(call(&answers).unwrap().version, "1.2");
    }

    #[test]
    fn a_refusal_has_its_code_and_sentence() {
        let mut response = ttrpc::Response::new();
        response.set_status(ttrpc::get_status(Code::NOT_FOUND, "no such thing"));
        let error = call(&frame(
            1,
            MESSAGE_TYPE_RESPONSE,
            &response.write_to_bytes().unwrap(),
        ))
        .unwrap_err();
        assert_eq!(error.code(), Some(Code::NOT_FOUND));
        assert_eq!(error.to_string(), "no such thing");
    }

    #[test]
    fn what_a_hostile_agent_sends_is_an_error() {
        let too_long = [&u32::MAX.to_be_bytes()[..], &[0, 0, 0, 1, 2, 0]].concat();
        for answer in [
            too_long,
            frame(1, MESSAGE_TYPE_REQUEST, b""),
            frame(1, MESSAGE_TYPE_RESPONSE, &[0xff; 9]),
        ] {
            let error = call(&answer).unwrap_err();
            assert!(matches!(error, AgentError::Malformed { .. }), "{error}");
        }
        for answer in [&b""[..], b"\0\0\0", &frame(1, 2, &[0; 64])[..40]] {
            let error = call(answer).unwrap_err();
            assert!(matches!(error, AgentError::Lost { .. }), "{error}");
        }
    }

    #[test]
    fn silence_ends_with_the_limit() {
        let (ours, _agents) = UnixStream::pair().unwrap();
        let mut transport = Transport::new(ours);
        let limit = Some(Duration::from_millis(20));
        transport
            .send("Health", &HealthRequest::new(), limit)
            .unwrap();
        let error = transport
            .receive::<HealthResponse>("Health", limit)
            .unwrap_err();
        assert!(matches!(error, AgentError::NoAnswer { .. }), "{error}");
    }
}
