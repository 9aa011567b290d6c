//! Frames through a real tap.

use std::net::UdpSocket;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::nic::{Frame, MAC, Nic};
use super::tap_interface::{TapInterface, frame, in_namespace, is_ours, open};
use crate::devices::virtio::device::{ActivateError, DeviceType, VirtioDevice as _};
use crate::devices::virtio::net::HEADER_SIZE;
use crate::devices::virtio::net::device::{Net, NetError};
use crate::devices::virtio::net::tap::TapError;
use crate::devices::virtio::test_driver::{READ, eventually};

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const CHECKSUM: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM;
const TSO4: u64 = 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO4;

const PLAIN: [u8; HEADER_SIZE] = [0; HEADER_SIZE];

fn ours(frame: &Frame) -> bool {
    is_ours(&frame.bytes)
}

#[test]
fn frames_pass_both_ways_byte_for_byte() {
    // Features, and how many buffers of which size the driver offers.
    let cases = [
        (0, 200, 1600),
        (EVENT_IDX, 200, 1600),
        (MERGEABLE, 250, 200),
        (MERGEABLE | EVENT_IDX, 250, 200),
        (MERGEABLE | EVENT_IDX | CHECKSUM | TSO4, 250, 1536),
    ];
    for (features, count, length) in cases {
        in_namespace(|| {
            let (interface, taps) = TapInterface::new(1);
            let mut nic = Nic::new(taps, features);
            nic.offer_buffers(0, count, length);
            for number in 0..600 {
                let length = 60 + number * 31 % 1454;
                let sent = frame(length, number);
                interface.send(&sent);
                let received = nic.wait_frame(0, ours);
                assert_eq!(received.bytes, sent);
                assert_eq!(received.header[..10], PLAIN[..10]);
                nic.send(0, PLAIN, &sent);
                assert_eq!(interface.receive(is_ours).expect("the frame"), sent);
            }
            let counters = nic.counters();
            eventually("all frames are counted", || {
                counters.received.frames() >= 600 && counters.sent.frames() == 600
            });
            assert_eq!(
                (counters.received.dropped(), counters.sent.dropped()),
                (0, 0)
            );
        });
    }
}

#[test]
fn bursts_pass_without_loss_or_a_lost_wake_up() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let mut nic = Nic::new(taps, MERGEABLE | EVENT_IDX);
        nic.offer_buffers(0, 250, 400);
        for burst in 0..200_usize {
            let sizes: Vec<usize> = (0..1 + burst % 40)
                .map(|number| 60 + number * 97 % 1400)
                .collect();
            for (number, length) in sizes.iter().enumerate() {
                interface.send(&frame(*length, number));
            }
            for (number, length) in sizes.iter().enumerate() {
                nic.send(0, PLAIN, &frame(*length, number));
            }
            for (number, length) in sizes.iter().enumerate() {
                assert_eq!(nic.wait_frame(0, ours).bytes, frame(*length, number));
            }
            for (number, length) in sizes.iter().enumerate() {
                assert_eq!(
                    interface.receive(is_ours).expect("a frame"),
                    frame(*length, number)
                );
            }
        }
    });
}

#[test]
fn frames_wait_on_the_host_until_there_are_buffers() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let mut nic = Nic::new(taps, EVENT_IDX);
        for number in 0..50 {
            interface.send(&frame(500, number));
        }
        assert!(nic.take_frame(0).is_none());
        // One at a time, then plenty.
        nic.offer_buffers(0, 1, 1600);
        for number in 0..50 {
            assert_eq!(nic.wait_frame(0, ours).bytes, frame(500, number));
        }
        assert_eq!(nic.counters().received.dropped(), 0);
    });
}

#[test]
fn with_few_buffers_small_frames_pass_after_a_while_and_large_ones_are_dropped() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let mut nic = Nic::new(taps, MERGEABLE | EVENT_IDX);
        nic.offer_buffers(0, 2, 500);
        interface.send(&frame(1400, 1));
        // Not more than one buffer, for the kernel's own frames may have taken the other.
        interface.send(&frame(400, 2));
        assert_eq!(nic.wait_frame(0, ours).bytes, frame(400, 2));
        nic.wait_dropped(1);
        // More buffers end that.
        nic.receive[0].kick.write(1).unwrap();
        nic.offer_buffers(0, 100, 500);
        interface.send(&frame(1400, 3));
        assert_eq!(nic.wait_frame(0, ours).bytes, frame(1400, 3));
    });
}

/// An IPv4 header with its checksum, from 10.0.0.`from`.
fn ipv4_header(protocol: u8, length: usize, from: u8, to: u8) -> Vec<u8> {
    let total = u16::try_from(20 + length).unwrap().to_be_bytes();
    let mut header = vec![
        0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, protocol, 0, 0,
    ];
    header.extend([10, 0, 0, from, 10, 0, 0, to]);
    let checksum = (!sum(&header)).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    header
}

/// The sum in one's complement that the checksums of IP, TCP and UDP are made of.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Answers the host's question for the guest's Ethernet address, and gives the first frame after that.
fn answer_arp(nic: &mut Nic) -> Frame {
    let question = nic.wait_frame(0, |frame| frame.bytes[12..14] == [8, 6]);
    let mut answer = question.bytes.clone();
    answer[..6].copy_from_slice(&question.bytes[6..12]);
    answer[6..12].copy_from_slice(&MAC);
    answer[20..22].copy_from_slice(&[0, 2]);
    answer[22..28].copy_from_slice(&MAC);
    answer[28..32].copy_from_slice(&question.bytes[38..42]);
    answer[32..42].copy_from_slice(&question.bytes[22..32]);
    nic.send(0, PLAIN, &answer);
    nic.wait_frame(0, |frame| frame.bytes[12..14] == [8, 0])
}

#[test]
fn the_hosts_checksums_are_left_out_only_if_the_guest_accepts_that() {
    for accepted in [false, true] {
        in_namespace(|| {
            let (interface, taps) = TapInterface::new(1);
            interface.set_address();
            let mut nic = Nic::new(taps, EVENT_IDX | if accepted { CHECKSUM } else { 0 });
            nic.offer_buffers(0, 100, 1600);
            let socket = UdpSocket::bind("10.0.0.1:5000").unwrap();
            socket.send_to(b"hello, guest", "10.0.0.2:6000").unwrap();
            let frame = answer_arp(&mut nic);
            assert_eq!(&frame.bytes[42..], b"hello, guest");
            // struct virtio_net_hdr: flags with VIRTIO_NET_HDR_F_NEEDS_CSUM, then csum_start and csum_offset.
            assert_eq!(frame.header[0] & 1, u8::from(accepted));
            if accepted {
                assert_eq!(frame.header[6..10], [34, 0, 6, 0]);
            } else {
                let pseudo = [&frame.bytes[26..34], &[0, 17, 0, 20], &frame.bytes[34..]].concat();
                assert_eq!(sum(&pseudo), 0xffff, "the checksum is right");
            }
        });
    }
}

#[test]
fn the_hosts_stack_finishes_the_guests_checksums() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        interface.set_address();
        let mut nic = Nic::new(taps, EVENT_IDX | CHECKSUM);
        nic.offer_buffers(0, 100, 1600);
        let socket = UdpSocket::bind("10.0.0.1:5000").unwrap();
        // The guest learns the host's Ethernet address from its question.
        socket.send_to(b"?", "10.0.0.2:6000").unwrap();
        let host = answer_arp(&mut nic).bytes[6..12].to_vec();
        let data = b"hello, host";
        let length = 8 + data.len();
        let mut packet = [&host[..], &MAC, &[8, 0]].concat();
        let ip = ipv4_header(17, length, 2, 1);
        let partial = sum(&[&ip[12..20], &[0, 17, 0, u8::try_from(length).unwrap()]].concat());
        packet.extend(ip);
        packet.extend([&6000_u16.to_be_bytes()[..], &5000_u16.to_be_bytes()].concat());
        packet.extend(u16::try_from(length).unwrap().to_be_bytes());
        packet.extend(partial.to_be_bytes());
        packet.extend(data);
        let mut header = PLAIN;
        header[0] = 1;
        header[6] = 34;
        header[8] = 6;
        nic.send(0, header, &packet);
        let mut received = [0; 100];
        let (count, from) = socket.recv_from(&mut received).unwrap();
        assert_eq!(&received[..count], data);
        assert_eq!(from.to_string(), "10.0.0.2:6000");
    });
}

/// A TCP segment over IPv4 of `length` bytes of data, and the header that has it split at 1448.
fn large_segment(length: usize, from: u8, to: u8) -> ([u8; HEADER_SIZE], Vec<u8>) {
    let ip = ipv4_header(6, 32 + length, from, to);
    let mut segment = vec![0x52, 0x54, 0, 0, 0, to, 0x52, 0x54, 0, 0, 0, from, 8, 0];
    let tcp_length = u16::try_from(32 + length).unwrap().to_be_bytes();
    let partial = sum(&[&ip[12..20], &[0, 6], &tcp_length].concat()).to_be_bytes();
    segment.extend(ip);
    // Ports, sequence, acknowledgement, 8 words with ACK, window, checksum, urgent; padding for options.
    segment.extend([
        0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 1, 0, partial[0], partial[1], 0, 0,
    ]);
    segment.extend([1; 12]);
    segment.extend((0..=250).cycle().take(length));
    let mut header = PLAIN;
    // NEEDS_CSUM, GSO_TCPV4, hdr_len 66, gso_size 1448, csum_start 34, csum_offset 16.
    header[..10].copy_from_slice(&[1, 1, 66, 0, 0xa8, 0x05, 34, 0, 16, 0]);
    (header, segment)
}

#[test]
fn a_large_segment_of_the_guest_reaches_the_host() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let mut nic = Nic::new(taps, EVENT_IDX | CHECKSUM | TSO4);
        for length in [3000, 20000, 65000] {
            let (header, segment) = large_segment(length, 1, 9);
            nic.send(0, header, &segment);
            let received = interface
                .receive(|frame| frame[..6] == segment[..6])
                .expect("a segment");
            assert_eq!(received.len(), segment.len());
            assert_eq!(received[66..], segment[66..]);
        }
        assert_eq!(nic.counters().sent.dropped(), 0);
    });
}

#[test]
fn large_segments_for_the_guest_are_split_unless_it_accepts_them() {
    for accepted in [false, true] {
        in_namespace(|| {
            let (interface, taps) = TapInterface::new(1);
            let features = MERGEABLE | EVENT_IDX | CHECKSUM | if accepted { TSO4 } else { 0 };
            let mut nic = Nic::new(taps, features);
            nic.offer_buffers(0, 200, 1536);
            let (header, segment) = large_segment(14480, 9, 1);
            let mut shorter = [0; 10];
            shorter.copy_from_slice(&header[..10]);
            interface.send_unfinished(shorter, &segment);
            let tcp = |frame: &Frame| frame.bytes[12..14] == [8, 0];
            if accepted {
                let frame = nic.wait_frame(0, tcp);
                assert_eq!(frame.bytes[66..], segment[66..]);
                assert_eq!(frame.buffers, 10);
                assert_eq!(frame.header[1], 1, "VIRTIO_NET_HDR_GSO_TCPV4");
                assert_eq!(frame.header[4..6], header[4..6]);
            } else {
                let parts: Vec<u8> = (0..10)
                    .flat_map(|_| {
                        let frame = nic.wait_frame(0, tcp);
                        assert_eq!((frame.header[1], frame.bytes.len()), (0, 66 + 1448));
                        frame.bytes[66..].to_vec()
                    })
                    .collect();
                assert_eq!(parts, segment[66..]);
            }
        });
    }
}

#[test]
fn the_driver_can_take_its_offloads_back() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let control = 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
        let mut nic = Nic::new(taps, MERGEABLE | EVENT_IDX | CHECKSUM | TSO4 | control);
        nic.offer_buffers(0, 200, 1536);
        let (header, segment) = large_segment(14480, 9, 1);
        let mut shorter = [0; 10];
        shorter.copy_from_slice(&header[..10]);
        for (offloads, length) in [(0x82_u64, 14480), (0, 1448), (0x82, 14480)] {
            let command = [&[5, 0][..], &offloads.to_le_bytes()].concat();
            assert_eq!(nic.command(&command), 0);
            interface.send_unfinished(shorter, &segment);
            for _ in 0..14480 / length {
                let frame = nic.wait_frame(0, |frame| frame.bytes[12..14] == [8, 0]);
                assert_eq!(frame.bytes.len(), 66 + length);
            }
        }
        assert_eq!(
            nic.command(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
            1,
            "TSO for IPv6 was not negotiated"
        );
    });
}

#[test]
fn the_kernel_refuses_hostile_headers_and_the_next_frame_passes() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let mut nic = Nic::new(taps, EVENT_IDX);
        let good = frame(100, 7);
        // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
        let headers: [[u8; HEADER_SIZE]; 8] = [
            [0xff; HEADER_SIZE],
            [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 0xf0, 0, 0xff, 0xff, 0, 0],
            [0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [1, 0x81, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            [0, 0x7f, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0],
            [1, 5, 0x22, 0, 8, 0, 34, 0, 6, 0, 0xff, 0xff],
        ];
        for header in headers {
            for length in [14, 20, 60, 100, 1500, 60000] {
                nic.send(0, header, &frame(length, 3));
            }
        }
        nic.send(0, PLAIN, &[1, 2, 3]);
        nic.wait_sent(0);
        let counters = nic.counters();
        eventually("frames are refused", || counters.sent.dropped() >= 20);
        nic.send(0, PLAIN, &good);
        assert_eq!(
            interface
                .receive(|frame| frame == good)
                .expect("the good frame"),
            good
        );
    });
}

#[test]
fn a_broken_queue_leaves_the_other_one_at_work() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let mut nic = Nic::new(taps, 0);
        nic.receive[0].driver.offer_chain(&[(0x10000, 2000, READ)]);
        nic.receive[0].kick.write(1).unwrap();
        for number in 0..20 {
            interface.send(&frame(60, number));
            nic.send(0, PLAIN, &frame(70, number));
            let sent = interface.receive(|frame| is_ours(frame) && frame.len() == 70);
            assert_eq!(sent.expect("a frame"), frame(70, number));
        }
        assert_eq!(nic.counters().received.frames(), 0);
        // A reset makes it whole again.
        nic.net.reset();
        let mut nic = Nic::start(nic.net, 0);
        nic.offer_buffers(0, 10, 1600);
        interface.send(&frame(60, 99));
        assert_eq!(nic.wait_frame(0, ours).bytes, frame(60, 99));
    });
}

#[test]
fn the_device_works_again_after_each_reset() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let mut net = Net::new(MAC, 1500, taps).unwrap();
        for round in 0..20 {
            let features = if round % 2 == 0 {
                EVENT_IDX | MERGEABLE
            } else {
                0
            };
            let mut nic = Nic::start(net, features);
            nic.offer_buffers(0, 100, 1600);
            interface.send(&frame(300, round));
            assert_eq!(nic.wait_frame(0, ours).bytes, frame(300, round));
            // Traffic is under way when the driver resets.
            for number in 0..50 {
                interface.send(&frame(200, number));
            }
            nic.net.reset();
            net = nic.net;
        }
    });
}

#[test]
fn an_interface_that_goes_away_takes_the_link_down() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let mut nic = Nic::new(taps, EVENT_IDX);
        nic.offer_buffers(0, 100, 1600);
        let mut status = [0; 2];
        nic.net.read_config(6, &mut status);
        assert_eq!(status, [1, 0]);
        interface.remove();
        eventually("the link goes down", || {
            nic.interrupt.config.load(Ordering::SeqCst) == 1
        });
        nic.net.read_config(6, &mut status);
        assert_eq!(status, [0, 0]);
        // The guest may go on sending; it is of no avail.
        for number in 0..100 {
            nic.send(0, PLAIN, &frame(100, number));
        }
        let counters = nic.counters();
        eventually("all frames are dropped", || counters.sent.dropped() == 100);
        nic.net.reset();
    });
}

#[test]
fn an_interface_that_is_down_loses_frames_until_it_is_up() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let mut nic = Nic::new(taps, EVENT_IDX);
        nic.offer_buffers(0, 100, 1600);
        interface.set_up(false);
        nic.send(0, PLAIN, &frame(100, 1));
        nic.wait_sent(0);
        let counters = nic.counters();
        eventually("the frame is dropped", || counters.sent.dropped() == 1);
        interface.set_up(true);
        let good = frame(100, 2);
        nic.send(0, PLAIN, &good);
        assert_eq!(interface.receive(is_ours).expect("the frame"), good);
        interface.send(&good);
        assert_eq!(nic.wait_frame(0, ours).bytes, good);
    });
}

#[test]
fn what_the_device_offers() {
    in_namespace(|| {
        let (_interface, taps) = TapInterface::new(1);
        let net = Net::new(MAC, 1400, taps).unwrap();
        assert_eq!(net.device_type(), DeviceType::Net);
        assert_eq!(net.queue_sizes(), [256, 256, 64]);
        let has = |bit: u32| net.features() & 1 << bit != 0;
        // CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6,
        // HOST_ECN, MRG_RXBUF, STATUS, CTRL_VQ, INDIRECT_DESC, EVENT_IDX.
        for bit in [0, 1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 28, 29] {
            assert!(has(bit), "feature {bit}");
        }
        assert!(!has(22), "one pair needs no MQ");
        let mut config = [0xaa; 16];
        net.read_config(0, &mut config);
        assert_eq!(
            config,
            [
                0x52, 0x54, 0, 0, 0, 1, 1, 0, 1, 0, 0x78, 5, 0xaa, 0xaa, 0xaa, 0xaa
            ]
        );
        let mut mtu = [0; 2];
        net.read_config(10, &mut mtu);
        assert_eq!(mtu, [0x78, 5]);
        for offset in [12, 1000, u64::MAX] {
            net.read_config(offset, &mut config);
        }
    });
}

#[test]
fn without_an_mtu_the_guest_is_free() {
    in_namespace(|| {
        let (_interface, taps) = TapInterface::new(1);
        let net = Net::new(MAC, 0, taps).unwrap();
        assert_eq!(net.features() & 1 << 3, 0);
    });
}

#[test]
fn bad_arguments_are_refused() {
    in_namespace(|| {
        assert!(matches!(
            Net::new(MAC, 1500, vec![]),
            Err(NetError::Pairs(0))
        ));
        let tap = || TapInterface::new(1).1;
        assert!(matches!(
            Net::new([1, 0, 0, 0, 0, 0], 1500, tap()),
            Err(NetError::Mac(_))
        ));
        assert!(matches!(
            Net::new([0; 6], 1500, tap()),
            Err(NetError::Mac(_))
        ));
        assert!(matches!(Net::new(MAC, 67, tap()), Err(NetError::Mtu(67))));
        let file = std::fs::File::open("/dev/null").unwrap();
        let result = Net::new(MAC, 1500, vec![file.into()]);
        assert!(matches!(result, Err(NetError::Tap(TapError::NotATap(_)))));
        let bare = open("bare", libc::IFF_TAP | libc::IFF_NO_PI);
        let result = Net::new(MAC, 1500, vec![bare]);
        assert!(matches!(result, Err(NetError::Tap(TapError::Flags { .. }))));
    });
}

#[test]
fn the_first_pair_must_be_set_up() {
    in_namespace(|| {
        let (_interface, taps) = TapInterface::new(1);
        let mut net = Net::new(MAC, 1500, taps).unwrap();
        let activation = crate::devices::virtio::device::Activation {
            memory: crate::memory::SharedMemory::new(
                crate::devices::virtio::test_driver::guest_memory(0x1000),
            ),
            features: 0,
            queues: vec![],
            interrupt: std::sync::Arc::new(
                crate::devices::virtio::test_driver::TestInterrupt::default(),
            ),
        };
        assert!(matches!(
            net.activate(activation),
            Err(ActivateError::QueueNotReady(0))
        ));
    });
}
