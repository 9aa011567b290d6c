//! The device against a guest on plain memory and real Unix sockets.

mod guest;
mod hostile;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::guest::{CID, Guest, GuestSocket, active, noise, read_ok};
use super::device::Vsock;
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::{BUF_ALLOC, REQUEST_TIMEOUT};
use crate::devices::virtio::device::{Activation, VirtioDevice};
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, WRITE, eventually, guest_memory, read_bytes, write_bytes,
};
use crate::memory::SharedMemory;

const WINDOW: u32 = 64 * 1024;

/// A guest, and a connection that a program of the host made to it.
fn connected(rx_payload: u32, buf_alloc: u32) -> (Guest, GuestSocket, UnixStream) {
    let mut guest = Guest::new(8, rx_payload);
    let mut program = guest.host_connects(1024);
    let socket = guest.accept(1024, buf_alloc);
    read_ok(&mut program);
    (guest, socket, program)
}

/// Everything that a program reads until the end, read while the device works.
fn read_to_end(guest: &mut Guest, socket: &mut GuestSocket, program: &UnixStream) -> Vec<u8> {
    let mut program = program.try_clone().expect("clone a socket");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        program.read_to_end(&mut bytes).expect("read to the end");
        bytes
    });
    while !reader.is_finished() {
        socket.poll(guest);
    }
    reader.join().expect("the reader")
}

#[test]
fn a_program_of_the_host_connects_and_talks() {
    let mut guest = Guest::new(4, 4096);
    let mut program = guest.host_connects(1024);
    let mut socket = guest.accept(1024, WINDOW);
    assert!(read_ok(&mut program) >= 1 << 30);

    program.write_all(b"question").expect("write");
    socket.poll_until(&mut guest, |socket| socket.received == b"question");
    socket.send_all(&mut guest, b"answer");
    guest.turn();
    let mut answer = [0; 6];
    program.read_exact(&mut answer).expect("read");
    assert_eq!(&answer, b"answer");
}

#[test]
fn bytes_right_behind_the_greeting_arrive() {
    let mut guest = Guest::new(4, 4096);
    let mut program = guest.host_connects(9);
    program.write_all(b"early").expect("write");
    program.shutdown(Shutdown::Write).expect("shut down");
    let mut socket = guest.accept(9, WINDOW);
    socket.poll_until(&mut guest, |socket| socket.host_shutdown == SHUTDOWN_SEND);
    assert_eq!(socket.received, b"early");
    read_ok(&mut program);
}

#[test]
fn a_program_that_the_guest_refuses_reads_the_end() {
    let mut guest = Guest::new(4, 4096);
    let mut program = guest.host_connects(1024);
    let request = guest.expect(Op::Request);
    guest.send(
        Header {
            src_cid: CID,
            dst_cid: 2,
            src_port: 1024,
            dst_port: request.src_port,
            socket_type: 1,
            op: Op::Reset as u16,
            ..Header::default()
        },
        &[],
    );
    guest.turn();
    assert_eq!(program.read(&mut [0; 8]).expect("read"), 0);
    assert_eq!(guest.worker.muxer.endpoint_count(), 0);
}

#[test]
fn a_request_that_the_guest_never_answers_times_out() {
    let mut guest = Guest::new(4, 4096);
    let mut program = guest.host_connects(1024);
    guest.expect(Op::Request);
    let later = Instant::now() + REQUEST_TIMEOUT;
    assert!(
        guest
            .worker
            .muxer
            .next_deadline()
            .is_some_and(|deadline| deadline <= later)
    );
    guest.worker.muxer.expire(later);
    assert_eq!(program.read(&mut [0; 8]).expect("read"), 0);
    guest.expect(Op::Reset);
    assert!(guest.worker.muxer.next_deadline().is_none());
}

#[test]
fn the_guest_connects_to_a_listening_program() {
    let mut guest = Guest::new(4, 4096);
    let listener = guest.listen(80);
    let mut socket = guest.connect(5000, 80, WINDOW);
    let (mut program, _) = listener.accept().expect("accept");
    socket.send_all(&mut guest, b"hello");
    program.write_all(b"world").expect("write");
    socket.poll_until(&mut guest, |socket| socket.received == b"world");
    let mut hello = [0; 5];
    program.read_exact(&mut hello).expect("read");
    assert_eq!(&hello, b"hello");
}

#[test]
fn the_guest_is_refused_where_nothing_listens() {
    let mut guest = Guest::new(4, 4096);
    guest.send(
        Header {
            src_cid: CID,
            dst_cid: 2,
            src_port: 5000,
            dst_port: 81,
            socket_type: 1,
            op: Op::Request as u16,
            buf_alloc: WINDOW,
            ..Header::default()
        },
        &[],
    );
    let reset = guest.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (81, 5000));
}

#[test]
fn a_mebibyte_each_way_arrives_unchanged_through_tiny_buffers() {
    for (rx_payload, buf_alloc) in [(301, 997), (4096, WINDOW), (1, 1 << 20)] {
        let (mut guest, mut socket, program) = connected(rx_payload, buf_alloc);
        // A byte per packet is slow in a debug build.
        let sent = noise(if rx_payload == 1 { 1 << 14 } else { 1 << 20 });

        let mut writer = program.try_clone().expect("clone");
        let to_guest = sent.clone();
        let host = std::thread::spawn(move || {
            writer.write_all(&to_guest).expect("write");
            writer.shutdown(Shutdown::Write).expect("shut down");
        });
        let mut reader = program.try_clone().expect("clone");
        let back = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).expect("read to the end");
            bytes
        });

        let mut at = 0;
        while at < sent.len() {
            at += socket.send(&mut guest, &sent[at..], 777);
            socket.poll(&mut guest);
        }
        socket.shut_down(&mut guest, SHUTDOWN_SEND);
        socket.poll_until(&mut guest, |socket| {
            socket.host_shutdown & SHUTDOWN_SEND != 0
        });
        host.join().expect("the writer");
        while !back.is_finished() {
            socket.poll(&mut guest);
        }
        assert!(
            back.join().expect("the reader") == sent,
            "changed on the way to the host"
        );
        assert!(socket.received == sent, "changed on the way to the guest");
    }
}

#[test]
fn a_half_close_of_the_host_leaves_the_guest_its_way() {
    let (mut guest, mut socket, mut program) = connected(4096, WINDOW);
    program.write_all(b"last words").expect("write");
    program.shutdown(Shutdown::Write).expect("shut down");
    socket.poll_until(&mut guest, |socket| socket.host_shutdown == SHUTDOWN_SEND);
    assert_eq!(socket.received, b"last words");

    socket.send_all(&mut guest, b"still here");
    let mut answer = [0; 10];
    program.read_exact(&mut answer).expect("read");
    assert_eq!(&answer, b"still here");

    socket.shut_down(&mut guest, SHUTDOWN_BOTH);
    socket.poll_until(&mut guest, |socket| socket.reset);
    assert_eq!(program.read(&mut answer).expect("read"), 0);
    assert_eq!(guest.worker.muxer.endpoint_count(), 0);
}

#[test]
fn a_half_close_of_the_guest_leaves_the_host_its_way() {
    let (mut guest, mut socket, mut program) = connected(4096, WINDOW);
    socket.send_all(&mut guest, b"last words");
    socket.shut_down(&mut guest, SHUTDOWN_SEND);
    let mut all = Vec::new();
    program.read_to_end(&mut all).expect("read to the end");
    assert_eq!(all, b"last words");

    program.write_all(b"still here").expect("write");
    drop(program);
    socket.poll_until(&mut guest, |socket| socket.host_shutdown == SHUTDOWN_BOTH);
    assert_eq!(socket.received, b"still here");
    guest.send(socket.header(Op::Reset), &[]);
    guest.turn();
    assert_eq!(guest.worker.muxer.endpoint_count(), 0);
}

#[test]
fn a_guest_that_stops_receiving_breaks_the_writers_pipe() {
    let (mut guest, mut socket, mut program) = connected(4096, WINDOW);
    socket.shut_down(&mut guest, SHUTDOWN_RECEIVE);
    let error = program.write_all(b"unheard").expect_err("nobody receives");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    socket.send_all(&mut guest, b"but I speak");
    let mut words = [0; 11];
    program.read_exact(&mut words).expect("read");
    assert_eq!(&words, b"but I speak");
}

#[test]
fn a_program_that_writes_and_goes_is_heard_to_the_end() {
    let (mut guest, mut socket, mut program) = connected(100, 200);
    let words = noise(100_000);
    program.write_all(&words).expect("fits into the socket");
    drop(program);
    socket.poll_until(&mut guest, |socket| socket.host_shutdown == SHUTDOWN_BOTH);
    assert!(socket.received == words);
    // The guest never confirms.
    guest
        .worker
        .muxer
        .expire(Instant::now() + super::CLOSE_TIMEOUT);
    socket.poll_until(&mut guest, |socket| socket.reset);
    assert_eq!(guest.worker.muxer.endpoint_count(), 0);
}

#[test]
fn a_guest_that_writes_and_goes_is_heard_to_the_end() {
    let (mut guest, mut socket, program) = connected(4096, WINDOW);
    let words = noise(BUF_ALLOC as usize);
    socket.send_all(&mut guest, &words);
    socket.shut_down(&mut guest, SHUTDOWN_BOTH);
    // The guest is told at once, though the host has read nothing.
    socket.poll_until(&mut guest, |socket| socket.reset);
    assert_eq!(guest.worker.muxer.endpoint_count(), 1);
    let read = read_to_end(&mut guest, &mut socket, &program);
    assert!(read == words);
    guest.turn();
    assert_eq!(guest.worker.muxer.endpoint_count(), 0);
}

#[test]
fn words_that_the_guest_never_read_do_not_spoil_the_end() {
    let (mut guest, mut socket, mut program) = connected(4096, 10);
    program
        .write_all(&noise(50_000))
        .expect("fits into the socket");
    socket.send_all(&mut guest, b"bye");
    socket.shut_down(&mut guest, SHUTDOWN_BOTH);
    socket.poll_until(&mut guest, |socket| socket.reset);
    let mut words = Vec::new();
    program.read_to_end(&mut words).expect("no ECONNRESET");
    assert_eq!(words, b"bye");
}

#[test]
fn a_program_that_never_reads_blocks_its_own_connection_only() {
    let (mut guest, mut slow, slow_program) = connected(4096, WINDOW);
    let words = noise(4 << 20);
    let mut sent = 0;
    loop {
        let count = slow.send(&mut guest, &words[sent..], 8192);
        slow.poll(&mut guest);
        sent += count;
        if count == 0 {
            break;
        }
    }
    assert!(sent >= BUF_ALLOC as usize && sent < words.len());
    assert_eq!(slow.credit(), 0);

    let mut program = guest.host_connects(7);
    let mut socket = guest.accept(7, WINDOW);
    read_ok(&mut program);
    socket.send_all(&mut guest, b"quick");
    let mut quick = [0; 5];
    program.read_exact(&mut quick).expect("read");
    assert_eq!(&quick, b"quick");
    drop((socket, program));
    while guest.try_receive().is_some() {}

    // Once it reads, the guest gets credit without asking, and everything arrives.
    let mut reader = slow_program.try_clone().expect("clone");
    let expected = words[..sent].to_vec();
    let reader = std::thread::spawn(move || {
        let mut read = vec![0; expected.len()];
        reader.read_exact(&mut read).expect("read");
        read == expected
    });
    slow.poll_until(&mut guest, |socket| socket.credit() >= BUF_ALLOC / 2);
    while !reader.is_finished() {
        slow.poll(&mut guest);
    }
    assert!(reader.join().expect("the reader"));
}

#[test]
fn the_host_sends_no_more_than_the_guest_grants() {
    let (mut guest, mut socket, mut program) = connected(4096, 1000);
    program
        .write_all(&noise(5000))
        .expect("fits into the socket");
    let (header, payload) = guest.receive();
    assert_eq!(
        (Op::from_wire(header.op), payload.len()),
        (Some(Op::ReadWrite), 1000)
    );
    guest.expect(Op::CreditRequest);
    assert!(guest.try_receive().is_none(), "it asks once");

    socket.take(&header, &payload);
    guest.send(socket.header(Op::CreditUpdate), &[]);
    let (header, payload) = guest.receive();
    assert_eq!(
        (Op::from_wire(header.op), payload.len()),
        (Some(Op::ReadWrite), 1000)
    );
}

#[test]
fn a_credit_request_is_answered() {
    let (mut guest, socket, _program) = connected(4096, WINDOW);
    guest.send(socket.header(Op::CreditRequest), &[]);
    let update = guest.expect(Op::CreditUpdate);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (BUF_ALLOC, 0));
}

#[test]
fn connections_get_the_guests_buffers_in_turn() {
    let mut guest = Guest::new(1, 100);
    let mut programs = Vec::new();
    for port in [1, 2, 3] {
        let mut program = guest.host_connects(port);
        guest.accept(port, WINDOW);
        read_ok(&mut program);
        programs.push(program);
    }
    for program in &mut programs {
        program.write_all(&noise(1000)).expect("write");
    }
    let ports: Vec<u32> = (0..30).map(|_| guest.receive().0.dst_port).collect();
    for turn in ports.chunks(3) {
        let mut turn = turn.to_vec();
        turn.sort_unstable();
        assert_eq!(turn, [1, 2, 3], "{ports:?}");
    }
}

#[test]
fn hundreds_of_connections_live_at_once() {
    let mut guest = Guest::new(32, 4096);
    let mut connections = Vec::new();
    for port in 0..300 {
        let mut program = guest.host_connects(port);
        let socket = guest.accept(port, WINDOW);
        read_ok(&mut program);
        connections.push((program, socket));
    }
    for (index, (program, socket)) in connections.iter_mut().enumerate() {
        let words = format!("connection {index}");
        program.write_all(words.as_bytes()).expect("write");
        socket.poll_until(&mut guest, |socket| socket.received == words.as_bytes());
        socket.send_all(&mut guest, words.as_bytes());
        let mut echo = vec![0; words.len()];
        program.read_exact(&mut echo).expect("read");
        assert_eq!(echo, words.as_bytes());
    }
}

#[test]
fn a_reset_closes_all_connections_and_the_device_works_again() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let mut device = Vsock::new(3, listener, path.clone()).expect("device");
    let mut cid = [0; 12];
    device.read_config(0, &mut cid);
    assert_eq!(cid, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

    for _ in 0..2 {
        let memory = guest_memory(0x20_0000);
        let kick = EventFd::new(EFD_NONBLOCK).expect("eventfd");
        let mut rx = TestDriver::new(&memory, 0, 16);
        let tx = TestDriver::new(&memory, 0x1_0000, 16);
        let event = TestDriver::new(&memory, 0x2_0000, 16);
        rx.offer_chain(&[(0x10_0000, 4096, WRITE)]);
        // It connects before the driver is active, and waits in the backlog.
        let mut program = UnixStream::connect(&path).expect("connect");
        program.write_all(b"CONNECT 5\n").expect("write");
        let interrupt = Arc::new(TestInterrupt::default());
        device
            .activate(Activation {
                memory: SharedMemory::new(memory.clone()),
                features: device.features(),
                queues: [&rx, &tx, &event].map(|queue| active(queue, &kick)).into(),
                interrupt: interrupt.clone(),
            })
            .expect("activate");
        eventually("the request", || rx.take_used().is_some());
        let bytes = read_bytes(&memory, 0x10_0000, 44);
        let request = Header::from_bytes(bytes[..].try_into().expect("44 bytes"));
        assert_eq!((request.op, request.dst_port), (Op::Request as u16, 5));
        eventually("the interrupt", || interrupt.count(0) > 0);

        device.reset();
        assert_eq!(program.read(&mut [0; 1]).expect("read"), 0);
    }
}

#[test]
fn what_the_guest_sent_before_the_device_stops_arrives() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let mut device = Vsock::new(3, listener, path.clone()).expect("device");
    let log = UnixListener::bind(directory.path().join("sock_9")).expect("listen for the guest");

    let memory = guest_memory(0x20_0000);
    let rx_kick = EventFd::new(EFD_NONBLOCK).expect("eventfd");
    let tx_kick = EventFd::new(EFD_NONBLOCK).expect("eventfd");
    let mut rx = TestDriver::new(&memory, 0, 16);
    let mut tx = TestDriver::new(&memory, 0x1_0000, 16);
    rx.offer_chain(&[(0x10_0000, 4096, WRITE)]);
    let request = Header {
        src_cid: CID,
        dst_cid: 2,
        src_port: 1,
        dst_port: 9,
        socket_type: 1,
        op: Op::Request as u16,
        ..Header::default()
    };
    write_bytes(&memory, 0x11_0000, &request.to_bytes());
    tx.offer_chain(&[(0x11_0000, 44, READ)]);
    device
        .activate(Activation {
            memory: SharedMemory::new(memory.clone()),
            features: 0,
            queues: vec![active(&rx, &rx_kick), active(&tx, &tx_kick)],
            interrupt: Arc::new(TestInterrupt::default()),
        })
        .expect("activate");
    eventually("the response", || rx.take_used().is_some());

    // The device is not told of this packet, as if the machine ended before it was scheduled.
    let words = Header {
        op: Op::ReadWrite as u16,
        len: 10,
        ..request
    };
    write_bytes(&memory, 0x12_0000, &words.to_bytes());
    write_bytes(&memory, 0x12_0000 + 44, b"last words");
    tx.offer_chain(&[(0x12_0000, 54, READ)]);
    device.reset();
    let (mut program, _) = log.accept().expect("accept");
    let mut heard = Vec::new();
    program.read_to_end(&mut heard).expect("read to the end");
    assert_eq!(heard, b"last words");
}
