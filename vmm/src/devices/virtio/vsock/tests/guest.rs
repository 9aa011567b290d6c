//! A guest with its driver and a small socket layer, on plain memory, with the worker turned by hand.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::device::ActiveQueue;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    Buffer, READ, TestDriver, TestInterrupt, WRITE, guest_memory, read_bytes, write_bytes,
};
use crate::devices::virtio::vsock::HOST_CID;
use crate::devices::virtio::vsock::backend::UnixSockets;
use crate::devices::virtio::vsock::muxer::Muxer;
use crate::devices::virtio::vsock::packet::{
    Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use crate::devices::virtio::vsock::worker::{KickedRing, Turn, Worker};
use crate::memory::{GuestMemory, SharedMemory};

pub(super) const CID: u64 = 3;
const QUEUE_SIZE: u16 = 64;
const RX_RING: u64 = 0;
const TX_RING: u64 = 0x1_0000;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x20_0000;
/// Room for each chain's bytes.
const STRIDE: u64 = 0x4000;
/// Packets under way, of at most five descriptors each.
const TX_SLOTS: u64 = 12;
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Guest {
    pub(super) memory: GuestMemory,
    pub(super) rx: TestDriver,
    pub(super) tx: TestDriver,
    pub(super) rx_kick: EventFd,
    pub(super) tx_kick: EventFd,
    pub(super) worker: Worker<UnixSockets>,
    pub(super) directory: TempDir,
    rx_size: u32,
    rx_addresses: HashMap<u16, u64>,
    tx_addresses: HashMap<u16, u64>,
    tx_free: Vec<u64>,
    inbox: VecDeque<(Header, Vec<u8>)>,
}

/// A queue as the device gets it.
pub(super) fn active(driver: &TestDriver, kick: &EventFd) -> ActiveQueue {
    ActiveQueue {
        queue: driver.queue(),
        kick: kick.try_clone().expect("clone an eventfd"),
    }
}

/// A queue as the worker gets it.
fn kicked(driver: &TestDriver, kick: &EventFd) -> KickedRing {
    let active = active(driver, kick);
    KickedRing {
        ring: Ring::new(active.queue, false),
        kick: active.kick,
    }
}

impl Guest {
    /// A guest that offers `rx_buffers` receive buffers with room for `rx_payload` bytes each.
    pub(super) fn new(rx_buffers: u64, rx_payload: u32) -> Self {
        let memory = guest_memory(0x40_0000);
        let rx = TestDriver::new(&memory, RX_RING, QUEUE_SIZE);
        let tx = TestDriver::new(&memory, TX_RING, QUEUE_SIZE);
        let rx_kick = EventFd::new(EFD_NONBLOCK).expect("eventfd");
        let tx_kick = EventFd::new(EFD_NONBLOCK).expect("eventfd");
        let directory = tempfile::tempdir().expect("temporary directory");
        let listener = UnixListener::bind(directory.path().join("sock")).expect("listen");
        let sockets = UnixSockets::new(listener, directory.path().join("sock")).expect("sockets");
        let muxer = Muxer::new(CID, sockets).expect("muxer");
        let worker = Worker::new(
            SharedMemory::new(memory.clone()),
            kicked(&rx, &rx_kick),
            kicked(&tx, &tx_kick),
            Arc::new(TestInterrupt::default()),
            muxer,
            Arc::default(),
        )
        .expect("worker");
        let mut guest = Self {
            memory,
            rx,
            tx,
            rx_kick,
            tx_kick,
            worker,
            directory,
            rx_size: 44 + rx_payload,
            rx_addresses: HashMap::new(),
            tx_addresses: HashMap::new(),
            tx_free: (0..TX_SLOTS)
                .map(|slot| TX_BUFFERS + slot * STRIDE)
                .collect(),
            inbox: VecDeque::new(),
        };
        for slot in 0..rx_buffers {
            guest.offer_rx(RX_BUFFERS + slot * STRIDE);
        }
        guest
    }

    fn offer_rx(&mut self, address: u64) {
        let head = self.rx.offer_chain(&[(address, self.rx_size, WRITE)]);
        self.rx_kick.write(1).expect("kick");
        self.rx_addresses.insert(head, address);
    }

    /// One more receive buffer.
    pub(super) fn offer_one_rx(&mut self, slot: u64) {
        self.offer_rx(RX_BUFFERS + slot * STRIDE);
    }

    /// The path of the socket that stands for the host's port `port`.
    pub(super) fn host_path(&self, port: u32) -> PathBuf {
        self.directory.path().join(format!("sock_{port}"))
    }

    pub(super) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.host_path(port)).expect("listen for the guest")
    }

    /// A program of the host that asks for `port` of the guest.
    pub(super) fn host_connects(&self, port: u32) -> UnixStream {
        let mut program = UnixStream::connect(self.directory.path().join("sock")).expect("connect");
        program
            .set_read_timeout(Some(PATIENCE))
            .expect("set a time limit");
        writeln!(program, "CONNECT {port}").expect("write the greeting");
        program
    }

    /// Sends a packet, its payload in a descriptor of its own, as older drivers do.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        self.send_in_pieces(header, payload, 1);
    }

    /// Sends a packet whose payload is spread over `pieces` descriptors; none: all in one with the header.
    pub(super) fn send_in_pieces(&mut self, header: Header, payload: &[u8], pieces: usize) {
        let address = loop {
            while let Some((head, _)) = self.tx.take_used() {
                self.tx_free.extend(self.tx_addresses.remove(&head));
            }
            if let Some(address) = self.tx_free.pop() {
                break address;
            }
            self.turn();
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        write_bytes(&self.memory, address, &bytes);
        let length = |bytes: usize| u32::try_from(bytes).expect("a small packet");
        let mut chain: Vec<Buffer> = Vec::new();
        if pieces == 0 {
            chain.push((address, length(bytes.len()), READ));
        } else {
            chain.push((address, 44, READ));
            let size = payload.len().div_ceil(pieces).max(1);
            for (index, piece) in payload.chunks(size).enumerate() {
                let at = address + 44 + u64::try_from(index * size).expect("small");
                chain.push((at, length(piece.len()), READ));
            }
        }
        let head = self.tx.offer_chain(&chain);
        self.tx_kick.write(1).expect("kick");
        self.tx_addresses.insert(head, address);
    }

    /// Notifies the device of both queues, and lets it work.
    pub(super) fn kick(&mut self) {
        self.rx_kick.write(1).expect("kick");
        self.tx_kick.write(1).expect("kick");
        self.turn();
    }

    /// Lets the worker do what it can at once, and takes what it sent.
    pub(super) fn turn(&mut self) {
        for _ in 0..8 {
            let turn = self.worker.turn(Some(Duration::ZERO));
            let mut received = false;
            while let Some((head, written)) = self.rx.take_used() {
                received = true;
                let address = self.rx_addresses.remove(&head).expect("an offered buffer");
                if written > 0 {
                    self.take_packet(address, written);
                }
                self.offer_rx(address);
            }
            if turn == Turn::Idle && !received {
                return;
            }
        }
    }

    fn take_packet(&mut self, address: u64, written: u32) {
        let mut bytes = read_bytes(&self.memory, address, written as usize);
        let header = Header::from_bytes(bytes[..44].try_into().expect("44 bytes"));
        assert_eq!(header.src_cid, HOST_CID);
        assert_eq!(header.dst_cid, CID);
        assert_eq!(header.len as usize, bytes.len() - 44);
        self.inbox.push_back((header, bytes.split_off(44)));
    }

    /// The next packet, if one comes without waiting.
    pub(super) fn try_receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.turn();
        self.inbox.pop_front()
    }

    /// The next packet.
    pub(super) fn receive(&mut self) -> (Header, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            assert!(start.elapsed() < PATIENCE, "no packet came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next packet, which must be an `op`.
    pub(super) fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.receive();
        assert_eq!(Op::from_wire(header.op), Some(op), "{header:?}");
        header
    }

    /// Accepts a connection that a program of the host makes to `port`.
    pub(super) fn accept(&mut self, port: u32, buf_alloc: u32) -> GuestSocket {
        let request = self.expect(Op::Request);
        assert_eq!(request.dst_port, port);
        let mut socket = GuestSocket::new(port, request.src_port, buf_alloc);
        socket.take(&request, &[]);
        self.send(socket.header(Op::Response), &[]);
        self.turn();
        socket
    }

    /// Connects to `port` of the host, where something listens.
    pub(super) fn connect(&mut self, own_port: u32, port: u32, buf_alloc: u32) -> GuestSocket {
        let mut socket = GuestSocket::new(own_port, port, buf_alloc);
        self.send(socket.header(Op::Request), &[]);
        let response = self.expect(Op::Response);
        assert_eq!((response.src_port, response.dst_port), (port, own_port));
        socket.take(&response, &[]);
        socket
    }
}

/// One connection as the guest has it.
pub(super) struct GuestSocket {
    own_port: u32,
    host_port: u32,
    buf_alloc: u32,
    taken: u32,
    sent: u32,
    host_buf_alloc: u32,
    host_fwd_cnt: u32,
    pub(super) received: Vec<u8>,
    pub(super) host_shutdown: u32,
    pub(super) reset: bool,
}

impl GuestSocket {
    fn new(own_port: u32, host_port: u32, buf_alloc: u32) -> Self {
        Self {
            own_port,
            host_port,
            buf_alloc,
            taken: 0,
            sent: 0,
            host_buf_alloc: 0,
            host_fwd_cnt: 0,
            received: Vec::new(),
            host_shutdown: 0,
            reset: false,
        }
    }

    pub(super) fn header(&self, op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.own_port,
            dst_port: self.host_port,
            socket_type: TYPE_STREAM,
            op: op as u16,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.taken,
            ..Header::default()
        }
    }

    /// What it may still send.
    pub(super) fn credit(&self) -> u32 {
        self.host_buf_alloc - self.sent.wrapping_sub(self.host_fwd_cnt)
    }

    /// Sends as much of `data` as credit and one packet of at most `limit` bytes allow.
    pub(super) fn send(&mut self, guest: &mut Guest, data: &[u8], limit: usize) -> usize {
        let count = data.len().min(self.credit() as usize).min(limit);
        if count == 0 {
            return 0;
        }
        let len = u32::try_from(count).expect("small");
        let header = Header {
            len,
            ..self.header(Op::ReadWrite)
        };
        self.sent = self.sent.wrapping_add(len);
        guest.send_in_pieces(header, &data[..count], count % 4);
        count
    }

    pub(super) fn send_all(&mut self, guest: &mut Guest, data: &[u8]) {
        let start = Instant::now();
        let mut sent = 0;
        while sent < data.len() {
            sent += self.send(guest, &data[sent..], 8192);
            self.poll(guest);
            assert!(start.elapsed() < PATIENCE, "the host grants no credit");
        }
    }

    pub(super) fn shut_down(&self, guest: &mut Guest, flags: u32) {
        let header = Header {
            flags,
            ..self.header(Op::Shutdown)
        };
        guest.send(header, &[]);
        guest.turn();
    }

    /// Takes all packets that are there.
    pub(super) fn poll(&mut self, guest: &mut Guest) {
        while let Some((header, payload)) = guest.try_receive() {
            if self.take(&header, &payload) {
                guest.send(self.header(Op::CreditUpdate), &[]);
            }
        }
    }

    /// Takes packets until `done`.
    pub(super) fn poll_until(&mut self, guest: &mut Guest, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            self.poll(guest);
            assert!(start.elapsed() < PATIENCE, "it does not happen");
        }
    }

    /// Takes one packet; true if the host is to be told of credit.
    pub(super) fn take(&mut self, header: &Header, payload: &[u8]) -> bool {
        assert_eq!(
            (header.src_port, header.dst_port),
            (self.host_port, self.own_port)
        );
        assert_eq!(header.socket_type, TYPE_STREAM);
        match Op::from_wire(header.op) {
            Some(Op::Reset) => {
                self.reset = true;
                return false;
            }
            Some(Op::ReadWrite) => {
                assert!(
                    self.host_shutdown & SHUTDOWN_SEND == 0,
                    "data after the end"
                );
                assert!(
                    payload.len() <= self.buf_alloc as usize,
                    "beyond the credit"
                );
                self.received.extend_from_slice(payload);
                self.taken = self.taken.wrapping_add(header.len);
            }
            Some(Op::Shutdown) => {
                assert!(header.flags & !(SHUTDOWN_SEND | SHUTDOWN_RECEIVE) == 0);
                self.host_shutdown |= header.flags;
            }
            _ => {}
        }
        self.host_buf_alloc = header.buf_alloc;
        self.host_fwd_cnt = header.fwd_cnt;
        matches!(
            Op::from_wire(header.op),
            Some(Op::ReadWrite | Op::CreditRequest)
        )
    }
}

/// Reads the guest's answer to a greeting: the port that the connection has on the host.
pub(super) fn read_ok(program: &mut UnixStream) -> u32 {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        program.read_exact(&mut byte).expect("the guest's answer");
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).expect("text");
    let port = line.strip_prefix("OK ").expect("a good answer");
    port.trim_end().parse().expect("a port")
}

/// Bytes without a pattern.
pub(super) fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}
