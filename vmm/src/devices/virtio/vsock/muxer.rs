//! Routes packets to connections, and chooses whose packet the guest gets next.
//!
//! An endpoint is what stands behind one socket of the host: a program that has yet to say which port it wants, a
//! connection, or the rest of one that the guest has ended. Each has an id that is never used again, which is also
//! what epoll gives back, so that no late event can meet the wrong one. Connections with a packet for the guest stand
//! in one queue, each once, and get one packet per turn.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::backend::HostSockets;
use super::connection::{Connection, Drained, Draining, Fate};
use super::greeting::{self, Greeting};
use super::packet::{Header, Op, Packet, PacketRoom, TYPE_STREAM};
use super::{HOST_CID, MAX_ENDPOINTS, MAX_GUEST_OPENED};

/// What epoll gives back for an endpoint; those below are the worker's own.
pub(super) const FIRST_ENDPOINT: u64 = 16;

/// Resets that wait for the guest's buffers. Further ones are dropped: only a guest that opens or guesses connections
/// without reading any answer gets that far, for each connection is reset at most once.
const MAX_RESETS: usize = 2 * MAX_ENDPOINTS;

/// The first port given to programs of the host, beyond those that servers use.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Connections accepted in one turn; further ones are for the next.
const ACCEPTS_PER_TURN: usize = 64;

/// A connection as both sides name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ports {
    host: u32,
    guest: u32,
}

#[derive(Debug)]
enum Endpoint {
    Greeting(UnixStream),
    Connection {
        connection: Box<Connection>,
        ports: Ports,
        opened_by_guest: bool,
    },
    Draining {
        draining: Draining,
        opened_by_guest: bool,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Muxer<H> {
    guest_cid: u64,
    host: H,
    epoll: Epoll,
    endpoints: HashMap<u64, Endpoint>,
    by_ports: HashMap<Ports, u64>,
    ready: VecDeque<u64>,
    /// Connections to reset, with the socket type that the guest used.
    resets: VecDeque<(Ports, u16)>,
    opened_by_guest: usize,
    next_endpoint: u64,
    next_host_port: u32,
    /// No deadline of any connection is earlier.
    next_deadline: Option<Instant>,
}

impl<H: HostSockets> Muxer<H> {
    /// A muxer without connections.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(super) fn new(guest_cid: u64, host: H) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            host,
            epoll: Epoll::new()?,
            endpoints: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            opened_by_guest: 0,
            next_endpoint: FIRST_ENDPOINT,
            next_host_port: FIRST_HOST_PORT,
            next_deadline: None,
        })
    }

    /// What the worker waits on: all endpoints, under their ids, and what the worker adds below [`FIRST_ENDPOINT`].
    pub(super) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Readable when [`Self::accept`] has something to do.
    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.host.listener()
    }

    /// Ends all connections and gives the host's side back.
    pub(super) fn into_host(self) -> H {
        self.host
    }

    // From the host.

    /// Takes connections that programs of the host have made. Those beyond [`MAX_ENDPOINTS`] are closed.
    ///
    /// # Errors
    /// The host is short of something for the moment.
    pub(super) fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_TURN {
            let stream = match self.host.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if self.endpoints.len() < MAX_ENDPOINTS {
                let id = self.watch(&stream)?;
                self.endpoints.insert(id, Endpoint::Greeting(stream));
            }
        }
        Ok(())
    }

    /// Registers a stream, edge-triggered: the endpoint remembers what it may still do.
    fn watch(&mut self, stream: &UnixStream) -> io::Result<u64> {
        let id = self.next_endpoint;
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(
            ControlOperation::Add,
            stream.as_fd().as_raw_fd(),
            EpollEvent::new(events, id),
        )?;
        self.next_endpoint += 1;
        Ok(id)
    }

    /// Takes what epoll says of an endpoint.
    pub(super) fn host_event(&mut self, id: u64, events: EventSet) {
        match self.endpoints.get_mut(&id) {
            None => {}
            Some(Endpoint::Greeting(_)) => self.greet(id, events),
            Some(Endpoint::Connection { connection, .. }) => {
                let fate = connection.host_event(events);
                self.settle(id, fate);
            }
            Some(Endpoint::Draining { draining, .. }) => match draining.host_event(events) {
                Drained::Finished => self.remove(id),
                Drained::Waiting => {}
            },
        }
    }

    fn greet(&mut self, id: u64, events: EventSet) {
        let Some(Endpoint::Greeting(stream)) = self.endpoints.get(&id) else {
            return;
        };
        let gone = EventSet::HANG_UP | EventSet::ERROR | EventSet::READ_HANG_UP;
        match greeting::read(stream) {
            Greeting::Incomplete if !events.intersects(gone) => {}
            Greeting::Incomplete | Greeting::Invalid => self.remove(id),
            Greeting::Port(guest_port) => self.open_to_guest(id, guest_port),
        }
    }

    fn open_to_guest(&mut self, id: u64, guest_port: u32) {
        let Some(Endpoint::Greeting(stream)) = self.endpoints.remove(&id) else {
            return;
        };
        let ports = Ports {
            host: self.free_host_port(guest_port),
            guest: guest_port,
        };
        self.by_ports.insert(ports, id);
        let connection = Box::new(Connection::requested_by_host(stream, ports.host));
        self.endpoints.insert(
            id,
            Endpoint::Connection {
                connection,
                ports,
                opened_by_guest: false,
            },
        );
        self.settle(id, Fate::Live);
    }

    /// A port that no connection to `guest_port` has; there are far more ports than connections.
    fn free_host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host = self.next_host_port;
            self.next_host_port = match host {
                // The last is VMADDR_PORT_ANY.
                0xffff_fffe.. => FIRST_HOST_PORT,
                _ => host + 1,
            };
            let ports = Ports {
                host,
                guest: guest_port,
            };
            if !self.by_ports.contains_key(&ports) {
                return host;
            }
        }
    }

    // From the guest.

    /// Takes a packet that the guest sent.
    pub(super) fn receive(&mut self, packet: &Packet<'_>) {
        let header = &packet.header;
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let op = Op::from_wire(header.op);
        if header.socket_type != TYPE_STREAM {
            self.refuse(ports, header);
            return;
        }
        if let Some(id) = self.by_ports.get(&ports).copied() {
            if let Some(Endpoint::Connection { connection, .. }) = self.endpoints.get_mut(&id) {
                let fate = connection.receive(packet);
                self.settle(id, fate);
            }
        } else if op == Some(Op::Request) {
            self.open_to_host(ports, header);
        } else {
            self.refuse(ports, header);
        }
    }

    fn open_to_host(&mut self, ports: Ports, request: &Header) {
        if self.endpoints.len() >= MAX_ENDPOINTS || self.opened_by_guest >= MAX_GUEST_OPENED {
            self.refuse(ports, request);
            return;
        }
        let connected = self
            .host
            .connect(ports.host)
            .and_then(|stream| Ok((self.watch(&stream)?, stream)));
        let Ok((id, stream)) = connected else {
            self.refuse(ports, request);
            return;
        };
        self.by_ports.insert(ports, id);
        self.opened_by_guest += 1;
        let connection = Box::new(Connection::requested_by_guest(stream, request));
        self.endpoints.insert(
            id,
            Endpoint::Connection {
                connection,
                ports,
                opened_by_guest: true,
            },
        );
        self.settle(id, Fate::Live);
    }

    /// Answers a packet that belongs to no connection. A reset is never answered.
    fn refuse(&mut self, ports: Ports, header: &Header) {
        if Op::from_wire(header.op) != Some(Op::Reset) {
            self.reset(ports, header.socket_type);
        }
    }

    fn reset(&mut self, ports: Ports, socket_type: u16) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back((ports, socket_type));
        }
    }

    // Endpoints.

    /// After anything has happened to a connection: puts it where it belongs now.
    fn settle(&mut self, id: u64, fate: Fate) {
        let Some(Endpoint::Connection {
            connection, ports, ..
        }) = self.endpoints.get_mut(&id)
        else {
            return;
        };
        match fate {
            Fate::Live => {
                if connection.has_packet() && !connection.queued {
                    connection.queued = true;
                    self.ready.push_back(id);
                }
                if let Some(deadline) = connection.deadline() {
                    let earliest = self
                        .next_deadline
                        .map_or(deadline, |next| next.min(deadline));
                    self.next_deadline = Some(earliest);
                }
            }
            Fate::Reset => {
                let ports = *ports;
                self.reset(ports, TYPE_STREAM);
                self.end(id);
            }
            Fate::Gone => self.end(id),
        }
    }

    /// The connection is over for the guest; the host still gets what was sent before.
    fn end(&mut self, id: u64) {
        let Some(Endpoint::Connection {
            connection,
            ports,
            opened_by_guest,
        }) = self.endpoints.remove(&id)
        else {
            return;
        };
        self.by_ports.remove(&ports);
        match connection.into_draining() {
            Some(draining) => {
                let endpoint = Endpoint::Draining {
                    draining,
                    opened_by_guest,
                };
                self.endpoints.insert(id, endpoint);
            }
            None if opened_by_guest => self.opened_by_guest -= 1,
            None => {}
        }
    }

    /// Removes an endpoint that is no connection of the guest's (any more).
    fn remove(&mut self, id: u64) {
        if let Some(Endpoint::Draining {
            opened_by_guest: true,
            ..
        }) = self.endpoints.remove(&id)
        {
            self.opened_by_guest -= 1;
        }
    }

    // To the guest.

    /// Whether [`Self::next_packet`] may have one.
    pub(super) fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// The header of the next packet for the guest, whose payload is now in `room`. None if, after all, there is none.
    pub(super) fn next_packet(&mut self, room: &PacketRoom<'_>, now: Instant) -> Option<Header> {
        if let Some((ports, socket_type)) = self.resets.pop_front() {
            return Some(Header {
                socket_type,
                op: Op::Reset as u16,
                ..self.header_to_guest(ports)
            });
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(Endpoint::Connection {
                connection, ports, ..
            }) = self.endpoints.get_mut(&id)
            else {
                continue;
            };
            let ports = *ports;
            connection.queued = false;
            let packet = connection.next_packet(&room.payload, now);
            let credit = packet.map(|_| connection.announce_credit());
            self.settle(id, Fate::Live);
            if let (Some(packet), Some((buf_alloc, fwd_cnt))) = (packet, credit) {
                return Some(Header {
                    op: packet.op as u16,
                    flags: packet.flags,
                    len: packet.len,
                    buf_alloc,
                    fwd_cnt,
                    ..self.header_to_guest(ports)
                });
            }
        }
        None
    }

    fn header_to_guest(&self, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            socket_type: TYPE_STREAM,
            ..Header::default()
        }
    }

    // Time.

    /// When [`Self::expire`] wants to be called next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// Resets the connections whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.next_deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        let mut expired = Vec::new();
        self.next_deadline = None;
        for (id, endpoint) in &self.endpoints {
            let Endpoint::Connection { connection, .. } = endpoint else {
                continue;
            };
            match connection.deadline() {
                Some(deadline) if deadline <= now => expired.push(*id),
                Some(deadline) => {
                    let earliest = self
                        .next_deadline
                        .map_or(deadline, |next| next.min(deadline));
                    self.next_deadline = Some(earliest);
                }
                None => {}
            }
        }
        for id in expired {
            self.settle(id, Fate::Reset);
        }
    }

    #[cfg(test)]
    pub(super) fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }
}
