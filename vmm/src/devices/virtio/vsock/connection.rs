//! One connection between a program of the host and one of the guest.
//!
//! Towards the guest, bytes are read from the host's socket straight into the guest's buffers, never more than the
//! guest has granted; what is not read stays in the socket and holds its writer back. Towards the host, bytes are
//! written to the socket as they come, and what it does not take waits in a buffer that the credit granted to the
//! guest bounds. A half-close of either side is passed on after the bytes that came before it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vm_memory::{ReadVolatile, VolatileMemoryError, WriteVolatile};
use vmm_sys_util::epoll::EventSet;

use super::out_buffer::OutBuffer;
use super::packet::{Buffers, Header, Op, Packet, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::{BUF_ALLOC, CLOSE_TIMEOUT, REQUEST_TIMEOUT};

/// Unannounced progress after which the guest is told, in bytes.
const CREDIT_UPDATE_AFTER: u32 = BUF_ALLOC / 4;

/// How far a connection has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A program of the host asks for it; the guest has not answered, or not been asked.
    Requesting { asked: bool },
    /// The guest asks for it, the host has accepted, and the guest has not been told.
    Accepting,
    /// Both sides know of it.
    Established,
}

/// What becomes of a connection after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Live,
    /// It is over, and the guest is told so with a reset.
    Reset,
    /// It is over, and the guest needs no reset.
    Gone,
}

/// A packet for the guest, whose payload (if any) is in the guest's buffer already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) op: Op,
    pub(super) flags: u32,
    pub(super) len: u32,
}

impl Outgoing {
    fn bare(op: Op) -> Self {
        Self {
            op,
            flags: 0,
            len: 0,
        }
    }
}

/// What the guest lets the host send (§5.10.6.3).
#[derive(Debug, Default)]
struct GuestCredit {
    buf_alloc: u32,
    fwd_cnt: Wrapping<u32>,
    sent: Wrapping<u32>,
}

impl GuestCredit {
    /// Bytes that may be sent now. A guest that contradicts itself gets none.
    fn available(&self) -> u32 {
        let under_way = (self.sent - self.fwd_cnt).0;
        self.buf_alloc.saturating_sub(under_way)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    phase: Phase,
    host_port: u32,

    guest_credit: GuestCredit,
    /// A CREDIT_REQUEST was sent and not answered.
    credit_requested: bool,
    /// The socket may have something to read; false once it said it has not.
    readable: bool,
    /// The program of the host sends no more, and all it sent was read.
    host_sends_no_more: bool,
    /// The program of the host receives no more.
    host_receives_no_more: bool,
    /// SHUTDOWN_* flags that the guest was told.
    shutdown_told: u32,

    to_host: OutBuffer,
    /// The socket may take something; false once it said it does not.
    writable: bool,
    /// Bytes from the guest that the host has taken (our `fwd_cnt`), and that value as the guest knows it.
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,
    /// The guest wants to be told its credit.
    credit_asked: bool,
    /// SHUTDOWN_* flags that the guest sent.
    guest_shutdown: u32,
    /// The guest's half-close was passed on.
    write_closed: bool,

    deadline: Option<Instant>,
    /// The muxer has it in its queue of those with a packet for the guest.
    pub(super) queued: bool,
}

impl Connection {
    fn new(stream: UnixStream, phase: Phase, host_port: u32) -> Self {
        Self {
            stream,
            phase,
            host_port,
            guest_credit: GuestCredit::default(),
            credit_requested: false,
            readable: true,
            host_sends_no_more: false,
            host_receives_no_more: false,
            shutdown_told: 0,
            to_host: OutBuffer::default(),
            writable: true,
            forwarded: Wrapping(0),
            announced: Wrapping(0),
            credit_asked: false,
            guest_shutdown: 0,
            write_closed: false,
            deadline: None,
            queued: false,
        }
    }

    /// A connection that a program of the host asks the guest for. `host_port` is told to the program.
    pub(super) fn requested_by_host(stream: UnixStream, host_port: u32) -> Self {
        Self::new(stream, Phase::Requesting { asked: false }, host_port)
    }

    /// A connection that the guest asked for with `request`, made with the program of the host.
    pub(super) fn requested_by_guest(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(stream, Phase::Accepting, request.dst_port);
        connection.learn_credit(request);
        connection
    }

    /// When it is reset if nothing happens until then.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The credit fields for a packet to the guest: buf_alloc and fwd_cnt.
    pub(super) fn announce_credit(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (BUF_ALLOC, self.forwarded.0)
    }

    fn learn_credit(&mut self, header: &Header) {
        self.guest_credit.buf_alloc = header.buf_alloc;
        self.guest_credit.fwd_cnt = Wrapping(header.fwd_cnt);
        if self.guest_credit.available() > 0 {
            self.credit_requested = false;
        }
    }

    // From the guest.

    /// Takes a packet that the guest sent on this connection.
    pub(super) fn receive(&mut self, packet: &Packet<'_>) -> Fate {
        let (Some(op), Some(payload)) = (Op::from_wire(packet.header.op), &packet.payload) else {
            return Fate::Reset;
        };
        self.learn_credit(&packet.header);
        match (op, self.phase) {
            (Op::Reset, _) => Fate::Gone,
            (Op::Response, Phase::Requesting { asked: true }) => self.establish(),
            (Op::ReadWrite, Phase::Established) => self.take(payload),
            (Op::Shutdown, Phase::Established) => self.guest_shuts_down(packet.header.flags),
            (Op::CreditUpdate, Phase::Established) => Fate::Live,
            (Op::CreditRequest, Phase::Established) => {
                self.credit_asked = true;
                Fate::Live
            }
            _ => Fate::Reset,
        }
    }

    /// The guest accepted: the program of the host gets to know.
    fn establish(&mut self) -> Fate {
        let answer = format!("OK {}\n", self.host_port);
        match (&self.stream).write(answer.as_bytes()) {
            Ok(written) if written == answer.len() => {
                self.phase = Phase::Established;
                self.deadline = None;
                Fate::Live
            }
            // Nothing was written before, so only a program that is gone does not take so little.
            _ => Fate::Reset,
        }
    }

    fn take(&mut self, payload: &Buffers<'_>) -> Fate {
        if self.guest_shutdown & SHUTDOWN_SEND != 0
            || self.to_host.len() + payload.len() > BUF_ALLOC as usize
        {
            return Fate::Reset;
        }
        let mut written = 0;
        if self.to_host.is_empty() && self.writable && !self.host_receives_no_more {
            written = self.write_from_guest(payload);
        }
        if self.host_receives_no_more {
            // The guest is or was told; what it sent before it knew is lost with its reader.
            self.forward(payload.len() - written);
        } else {
            self.to_host.push(&payload.range(written, payload.len()));
        }
        Fate::Live
    }

    /// Writes guest memory to the socket, as much as it takes.
    fn write_from_guest(&mut self, payload: &Buffers<'_>) -> usize {
        let mut written = 0;
        for slice in payload.slices() {
            match (&self.stream).write_volatile(slice) {
                Ok(count) => {
                    written += count;
                    self.forward(count);
                    if count < slice.len() {
                        break;
                    }
                }
                Err(error) => {
                    self.write_failed(&io_error(error));
                    break;
                }
            }
        }
        written
    }

    fn write_failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.writable = false,
            io::ErrorKind::Interrupted => {}
            _ => self.host_receives_no_more = true,
        }
    }

    fn forward(&mut self, count: usize) {
        // One packet's or buffer's bytes, at most BUF_ALLOC.
        self.forwarded += u32::try_from(count).unwrap_or(u32::MAX);
    }

    fn guest_shuts_down(&mut self, flags: u32) -> Fate {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            // Its writer gets EPIPE. That the program is gone already is no news.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush();
        if self.guest_shutdown == SHUTDOWN_BOTH {
            Fate::Reset
        } else {
            Fate::Live
        }
    }

    // From the host.

    /// Takes what epoll says of the socket (edge-triggered).
    pub(super) fn host_event(&mut self, events: EventSet) -> Fate {
        if events
            .intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR)
        {
            self.readable = true;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.host_receives_no_more = true;
            match self.phase {
                Phase::Requesting { asked: true } => return Fate::Reset,
                Phase::Requesting { asked: false } => return Fate::Gone,
                Phase::Accepting | Phase::Established => {}
            }
        }
        if events.contains(EventSet::OUT) {
            self.writable = true;
        }
        self.flush();
        Fate::Live
    }

    /// Writes what waits for the host, then passes the guest's half-close on.
    fn flush(&mut self) {
        while self.writable && !self.host_receives_no_more && !self.to_host.is_empty() {
            match self.to_host.write_to(&self.stream) {
                Ok(count) => self.forward(count),
                Err(error) => self.write_failed(&error),
            }
        }
        if self.host_receives_no_more {
            self.forward(self.to_host.len());
            self.to_host.clear();
        }
        let guest_done = self.guest_shutdown & SHUTDOWN_SEND != 0;
        if guest_done && self.to_host.is_empty() && !self.write_closed {
            self.write_closed = true;
            // It fails only where nobody is left to read the end.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    // To the guest.

    /// Whether [`Self::next_packet`] may have one.
    pub(super) fn has_packet(&self) -> bool {
        match self.phase {
            Phase::Requesting { asked } => !asked,
            Phase::Accepting => true,
            Phase::Established => {
                self.credit_asked
                    || self.credit_update_due()
                    || (self.wants_to_read() && self.guest_credit.available() > 0)
                    || self.credit_request_due()
                    || self.shutdown_due().is_some()
            }
        }
    }

    fn wants_to_read(&self) -> bool {
        let guest_receives = self.guest_shutdown & SHUTDOWN_RECEIVE == 0;
        self.readable && !self.host_sends_no_more && guest_receives
    }

    fn credit_update_due(&self) -> bool {
        (self.forwarded - self.announced).0 >= CREDIT_UPDATE_AFTER
            && self.guest_shutdown & SHUTDOWN_SEND == 0
    }

    fn credit_request_due(&self) -> bool {
        self.wants_to_read() && self.guest_credit.available() == 0 && !self.credit_requested
    }

    fn shutdown_due(&self) -> Option<u32> {
        let mut flags = 0;
        if self.host_sends_no_more {
            flags |= SHUTDOWN_SEND;
        }
        if self.host_receives_no_more {
            flags |= SHUTDOWN_RECEIVE;
        }
        (flags != self.shutdown_told).then_some(flags)
    }

    /// The next packet for the guest, its payload read into `room`.
    pub(super) fn next_packet(&mut self, room: &Buffers<'_>, now: Instant) -> Option<Outgoing> {
        match self.phase {
            Phase::Requesting { asked: true } => return None,
            Phase::Requesting { asked: false } => {
                self.phase = Phase::Requesting { asked: true };
                self.deadline = Some(now + REQUEST_TIMEOUT);
                return Some(Outgoing::bare(Op::Request));
            }
            Phase::Accepting => {
                self.phase = Phase::Established;
                return Some(Outgoing::bare(Op::Response));
            }
            Phase::Established => {}
        }
        if self.credit_asked {
            self.credit_asked = false;
            return Some(Outgoing::bare(Op::CreditUpdate));
        }
        let len = self.read_for_guest(room);
        if len > 0 {
            return Some(Outgoing {
                len,
                ..Outgoing::bare(Op::ReadWrite)
            });
        }
        if self.credit_update_due() {
            return Some(Outgoing::bare(Op::CreditUpdate));
        }
        if self.credit_request_due() {
            self.credit_requested = true;
            return Some(Outgoing::bare(Op::CreditRequest));
        }
        let flags = self.shutdown_due()?;
        self.shutdown_told = flags;
        if flags == SHUTDOWN_BOTH {
            self.deadline = Some(now + CLOSE_TIMEOUT);
        }
        Some(Outgoing {
            flags,
            ..Outgoing::bare(Op::Shutdown)
        })
    }

    /// Reads from the socket into the guest's buffers, as far as its credit goes.
    fn read_for_guest(&mut self, room: &Buffers<'_>) -> u32 {
        if !self.wants_to_read() {
            return 0;
        }
        let credit = self.guest_credit.available();
        let mut total = 0;
        for slice in room.range(0, credit as usize).slices() {
            match (&self.stream).read_volatile(&mut slice.clone()) {
                Ok(0) => {
                    self.host_sends_no_more = true;
                    break;
                }
                Ok(count) => {
                    // A slice of guest memory that holds at most a packet.
                    total += u32::try_from(count).unwrap_or(u32::MAX);
                    if count < slice.len() {
                        break;
                    }
                }
                Err(error) => {
                    match io_error(error).kind() {
                        io::ErrorKind::WouldBlock => self.readable = false,
                        io::ErrorKind::Interrupted => {}
                        _ => {
                            self.host_sends_no_more = true;
                            self.host_receives_no_more = true;
                        }
                    }
                    break;
                }
            }
        }
        self.guest_credit.sent += total;
        total
    }

    /// Ends it: what the guest sent before still goes to the host.
    pub(super) fn into_draining(self) -> Option<Draining> {
        let unfinished = !self.to_host.is_empty() && !self.host_receives_no_more;
        let draining = Draining {
            stream: self.stream,
            bytes: self.to_host,
        };
        unfinished.then_some(draining)
    }
}

/// A connection that is over for the guest, while the host has yet to take its last bytes.
#[derive(Debug)]
pub(super) struct Draining {
    stream: UnixStream,
    bytes: OutBuffer,
}

/// How far a [`Draining`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// The host takes no more for the moment.
    Waiting,
    /// There is nothing more to do.
    Finished,
}

impl Draining {
    /// Writes on.
    pub(super) fn host_event(&mut self, events: EventSet) -> Drained {
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            return Drained::Finished;
        }
        while !self.bytes.is_empty() {
            match self.bytes.write_to(&self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Drained::Waiting;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Drained::Finished,
            }
        }
        Drained::Finished
    }
}

/// Closes a connection's socket such that its program reads the end, and not ECONNRESET because of bytes of its own
/// that nobody read.
fn close(stream: &UnixStream) {
    if stream.shutdown(Shutdown::Both).is_err() {
        return;
    }
    let mut unread = [0; 4096];
    let mut stream = stream;
    // Nothing can be added after the shutdown, so this ends with the socket's buffer.
    while matches!(stream.read(&mut unread), Ok(count) if count > 0) {}
}

impl Drop for Draining {
    fn drop(&mut self) {
        close(&self.stream);
    }
}

fn io_error(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        error => io::Error::other(error),
    }
}
