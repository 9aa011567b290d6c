//! Guests that break the rules: nothing panics, nothing but their own connection suffers, and nothing grows.

use std::io::Read;
use std::time::Duration;

use super::guest::{CID, Guest, noise, read_ok};
use super::{WINDOW, connected, read_to_end};
use crate::devices::virtio::test_driver::{Buffer, NEXT, READ, WRITE};
use crate::devices::virtio::vsock::packet::{Header, Op, SHUTDOWN_SEND};
use crate::devices::virtio::vsock::worker::Turn;
use crate::devices::virtio::vsock::{BUF_ALLOC, MAX_ENDPOINTS, MAX_GUEST_OPENED};

fn stray(change: impl FnOnce(&mut Header)) -> Header {
    let mut header = Header {
        src_cid: CID,
        dst_cid: 2,
        src_port: 1,
        dst_port: 2,
        socket_type: 1,
        op: Op::ReadWrite as u16,
        ..Header::default()
    };
    change(&mut header);
    header
}

#[test]
fn packets_of_no_connection_are_reset_or_dropped() {
    // The packet, its payload, and whether it is answered with a reset.
    let table: &[(&str, Header, &[u8], bool)] = &[
        ("data", stray(|_| ()), &[], true),
        ("data with bytes", stray(|h| h.len = 3), &[1, 2, 3], true),
        (
            "more data announced than sent",
            stray(|h| h.len = 9),
            &[1],
            true,
        ),
        (
            "endless data announced",
            stray(|h| h.len = u32::MAX),
            &[1],
            true,
        ),
        (
            "a response",
            stray(|h| h.op = Op::Response as u16),
            &[],
            true,
        ),
        (
            "a shutdown",
            stray(|h| h.op = Op::Shutdown as u16),
            &[],
            true,
        ),
        (
            "a credit update",
            stray(|h| h.op = Op::CreditUpdate as u16),
            &[],
            true,
        ),
        (
            "a credit request",
            stray(|h| h.op = Op::CreditRequest as u16),
            &[],
            true,
        ),
        ("a reset", stray(|h| h.op = Op::Reset as u16), &[], false),
        ("operation 0", stray(|h| h.op = 0), &[], true),
        ("operation 8", stray(|h| h.op = 8), &[], true),
        ("operation 65535", stray(|h| h.op = u16::MAX), &[], true),
        ("a datagram", stray(|h| h.socket_type = 3), &[], true),
        (
            "a seqpacket request",
            stray(|h| (h.socket_type, h.op) = (2, 1)),
            &[],
            true,
        ),
        (
            "a reset of no type",
            stray(|h| (h.socket_type, h.op) = (9, 3)),
            &[],
            false,
        ),
        (
            "another guest's address",
            stray(|h| h.src_cid = 4),
            &[],
            false,
        ),
        (
            "the host's own address",
            stray(|h| h.src_cid = 2),
            &[],
            false,
        ),
        ("to the hypervisor", stray(|h| h.dst_cid = 0), &[], false),
        ("to another guest", stray(|h| h.dst_cid = 4), &[], false),
        ("to anyone", stray(|h| h.dst_cid = u64::MAX), &[], false),
        (
            "a request where nothing listens",
            stray(|h| h.op = Op::Request as u16),
            &[],
            true,
        ),
        (
            "to the last port",
            stray(|h| (h.dst_port, h.op) = (u32::MAX, 1)),
            &[],
            true,
        ),
    ];
    let mut guest = Guest::new(4, 100);
    for (name, header, payload, is_reset) in table {
        guest.send(*header, payload);
        let answer = guest.try_receive();
        assert_eq!(answer.is_some(), *is_reset, "{name}: {answer:?}");
        if let Some((reset, _)) = answer {
            assert_eq!(reset.op, Op::Reset as u16, "{name}");
            assert_eq!(reset.socket_type, header.socket_type, "{name}");
            assert_eq!(
                (reset.src_port, reset.dst_port),
                (header.dst_port, header.src_port),
                "{name}"
            );
        }
        assert!(guest.try_receive().is_none(), "{name}: one answer");
    }
    assert_eq!(guest.worker.muxer.endpoint_count(), 0);
}

#[test]
fn packets_that_break_a_connections_rules_reset_it() {
    /// What breaks a rule, how, and with how much payload.
    type Case = (&'static str, fn(&mut Header), usize);
    let table: &[Case] = &[
        ("a second request", |h| h.op = Op::Request as u16, 0),
        ("a second response", |h| h.op = Op::Response as u16, 0),
        ("operation 99", |h| h.op = 99, 0),
        ("more announced than sent", |h| h.len = 10, 5),
        ("more than any credit", |h| h.len = BUF_ALLOC + 1, 5),
    ];
    for (name, change, payload) in table {
        let (mut guest, mut socket, mut program) = connected(4096, WINDOW);
        let mut header = socket.header(Op::ReadWrite);
        header.len = u32::try_from(*payload).expect("small");
        change(&mut header);
        guest.send(header, &noise(*payload));
        socket.poll_until(&mut guest, |socket| socket.reset);
        assert_eq!(program.read(&mut [0; 8]).expect(name), 0, "{name}");
        assert_eq!(guest.worker.muxer.endpoint_count(), 0, "{name}");
    }
}

#[test]
fn data_after_the_guests_own_end_resets() {
    let (mut guest, mut socket, _program) = connected(4096, WINDOW);
    socket.shut_down(&mut guest, SHUTDOWN_SEND);
    socket.send(&mut guest, b"no, wait", 100);
    socket.poll_until(&mut guest, |socket| socket.reset);
}

#[test]
fn data_beyond_the_credit_resets_and_what_was_within_arrives() {
    let (mut guest, mut socket, program) = connected(4096, WINDOW);
    let mut sent = 0;
    while !socket.reset {
        let header = Header {
            len: 8192,
            ..socket.header(Op::ReadWrite)
        };
        guest.send(header, &[7; 8192]);
        sent += 8192;
        socket.poll(&mut guest);
        assert!(sent < 16 << 20, "nothing stops the guest");
    }
    let read = read_to_end(&mut guest, &mut socket, &program);
    assert!(read.len() >= BUF_ALLOC as usize && read.len() < sent);
    assert!(read.iter().all(|byte| *byte == 7));
}

#[test]
fn credit_that_makes_no_sense_is_none() {
    let (mut guest, socket, mut program) = connected(4096, WINDOW);
    guest.send(
        Header {
            buf_alloc: 100,
            fwd_cnt: 5000,
            ..socket.header(Op::CreditUpdate)
        },
        &[],
    );
    std::io::Write::write_all(&mut program, &[1; 100]).expect("write");
    guest.expect(Op::CreditRequest);
    assert!(guest.try_receive().is_none());
}

#[test]
fn a_guest_opens_a_bounded_number_of_connections() {
    let mut guest = Guest::new(32, 100);
    let listener = guest.listen(80);
    let mut programs = Vec::new();
    let limit = u32::try_from(MAX_GUEST_OPENED).expect("small");
    for port in 0..limit {
        guest.connect(port, 80, WINDOW);
        programs.push(listener.accept().expect("accept"));
    }
    guest.send(
        stray(|h| (h.src_port, h.dst_port, h.op) = (limit, 80, 1)),
        &[],
    );
    guest.expect(Op::Reset);
    // The host's programs still get through.
    let mut program = guest.host_connects(9);
    guest.accept(9, WINDOW);
    read_ok(&mut program);
}

#[test]
fn resets_that_nobody_takes_are_bounded() {
    let mut guest = Guest::new(0, 100);
    for port in 0..10_000 {
        guest.send(stray(|h| h.src_port = port), &[]);
    }
    for slot in 0..8 {
        guest.offer_one_rx(slot);
    }
    let mut resets = 0;
    while guest.try_receive().is_some() {
        resets += 1;
    }
    assert_eq!(resets, 2 * MAX_ENDPOINTS);
}

#[test]
fn chains_that_hold_no_packet_are_returned() {
    let mut guest = Guest::new(0, 100);
    let chains: &[&[Buffer]] = &[
        &[(0x20_0000, 43, READ)],
        &[(0x20_0000, 0, READ)],
        &[(0x20_0000, 100, WRITE)],
        &[(0xffff_ffff_ffff_fff0, 44, READ)],
        &[(0x3f_fff0, 44, READ)],
        &[(0x20_0000, u32::MAX, READ), (0x20_0000, u32::MAX, READ)],
    ];
    for chain in chains {
        let head = guest.tx.offer_chain(chain);
        guest.kick();
        assert_eq!(guest.tx.take_used(), Some((head, 0)), "{chain:?}");
    }
    // Receive buffers: too short, not writable, or elsewhere.
    guest.rx.offer_chain(&[(0x20_0000, 44, WRITE)]);
    guest.rx.offer_chain(&[(0x20_0000, 100, READ)]);
    guest.rx.offer_chain(&[(0x7000_0000, 100, WRITE)]);
    guest.send(stray(|_| ()), &[]);
    for _ in 0..3 {
        guest.worker.turn(Some(Duration::ZERO));
    }
    for _ in 0..3 {
        assert_eq!(guest.rx.take_used().map(|used| used.1), Some(0));
    }
    guest.offer_one_rx(0);
    guest.expect(Op::Reset);
}

#[test]
fn a_broken_ring_stops_the_device() {
    type Case = (&'static str, fn(&mut Guest));
    let table: &[Case] = &[
        ("a head beyond the table", |guest| guest.tx.offer(0xffff)),
        ("far more packets than fit", |guest| {
            guest.tx.set_avail_index(30_000)
        }),
        ("far more buffers than fit", |guest| {
            guest.rx.set_avail_index(50_000)
        }),
    ];
    for (name, break_ring) in table {
        let mut guest = Guest::new(4, 100);
        let _program = guest.host_connects(9);
        break_ring(&mut guest);
        guest.rx_kick.write(1).expect("kick");
        guest.tx_kick.write(1).expect("kick");
        let stopped = (0..4).any(|_| guest.worker.turn(Some(Duration::ZERO)) == Turn::Stop);
        assert!(stopped, "{name}");
    }
}

#[test]
fn a_chain_that_loops_ends() {
    let mut guest = Guest::new(4, 100);
    guest.tx.set_descriptor(0, (0x20_0000, 0, READ | NEXT), 1);
    guest.tx.set_descriptor(1, (0x20_0000, 0, READ | NEXT), 0);
    guest.tx.offer(0);
    guest.kick();
    assert_eq!(guest.tx.take_used(), Some((0, 0)));
}

#[test]
fn packets_of_noise_harm_nobody_else() {
    let (mut guest, mut good, mut program) = connected(4096, WINDOW);
    let _listener = guest.listen(80);
    let noise = noise(64 * 20_000);
    for bytes in noise.chunks_exact(64) {
        // Mostly well-formed, so that it gets past the first checks; never the good connection's ports.
        let mut header = Header::from_bytes(bytes[..44].try_into().expect("44 bytes"));
        header.src_cid = CID;
        header.dst_cid = 2;
        header.src_port %= 8;
        header.dst_port = 80;
        header.op %= 9;
        header.socket_type = u16::from(bytes[60] != 0);
        header.len = u32::from(bytes[61] % 17);
        header.flags %= 4;
        let payload = usize::from(bytes[61] % 17).saturating_sub(usize::from(bytes[62] == 0));
        guest.send_in_pieces(
            header,
            &bytes[44..44 + payload.min(16)],
            usize::from(bytes[63] % 3),
        );
        while guest.try_receive().is_some() {}
    }
    assert!(guest.worker.muxer.endpoint_count() <= MAX_GUEST_OPENED + 1);
    good.send_all(&mut guest, b"unharmed");
    let mut words = [0; 8];
    program.read_exact(&mut words).expect("read");
    assert_eq!(&words, b"unharmed");
}
