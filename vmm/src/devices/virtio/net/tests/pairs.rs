//! Several pairs of queues on one tap.

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::nic::{MAC, Nic};
use super::tap_interface::{TapInterface, frame, in_namespace, is_ours, open};
use crate::devices::virtio::device::VirtioDevice as _;
use crate::devices::virtio::net::HEADER_SIZE;
use crate::devices::virtio::net::device::{Net, NetError};
use crate::devices::virtio::net::tap::TapError;
use crate::devices::virtio::test_driver::eventually;

const FEATURES: u64 = 1 << VIRTIO_NET_F_MQ
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A UDP packet of flow `flow`, which is what the host steers by.
fn flow(flow: u16) -> Vec<u8> {
    let mut packet = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 8, 0];
    packet.extend([
        0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 9, 9, 9, 10, 9, 9, 8,
    ]);
    packet.extend(flow.to_be_bytes());
    packet.extend([0x20, 0, 0, 8, 0, 0]);
    packet.resize(60, 0);
    packet
}

/// Sends 200 flows and counts what arrives on each pair.
pub(super) fn arrivals(interface: &TapInterface, nic: &mut Nic) -> Vec<usize> {
    for number in 0..200 {
        interface.send(&flow(1000 + number));
    }
    let mut counts = vec![0; nic.receive.len()];
    eventually("all flows arrive", || {
        for (pair, count) in counts.iter_mut().enumerate() {
            while let Some(frame) = nic.take_frame(pair) {
                *count += usize::from(frame.bytes[12..14] == [8, 0]);
            }
        }
        counts.iter().sum::<usize>() == 200
    });
    counts
}

#[test]
fn the_driver_sets_how_many_pairs_are_used() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(3);
        let mut nic = Nic::new(taps, FEATURES);
        for pair in 0..3 {
            nic.offer_buffers(pair, 250, 400);
        }
        assert_eq!(
            arrivals(&interface, &mut nic),
            [200, 0, 0],
            "one pair at first"
        );
        for (count, used) in [(3, 3), (2, 2), (1, 1), (3, 3)] {
            assert_eq!(nic.command(&[4, 0, count, 0]), 0);
            let counts = arrivals(&interface, &mut nic);
            assert_eq!(
                counts.iter().filter(|count| **count > 0).count(),
                used,
                "{counts:?}"
            );
            assert!(counts[..used].iter().all(|count| *count > 0), "{counts:?}");
        }
        for impossible in [0, 4, 255] {
            assert_eq!(nic.command(&[4, 0, impossible, 0]), 1);
        }
        let mut status = [0; 4];
        nic.net.read_config(6, &mut status);
        assert_eq!(
            status,
            [1, 0, 3, 0],
            "the link is still up, and there are three pairs"
        );
        for pair in 0..3 {
            nic.send(pair, [0; HEADER_SIZE], &frame(100, pair));
            assert_eq!(
                interface.receive(is_ours).expect("a frame"),
                frame(100, pair)
            );
        }
        // After a reset there is one pair again.
        nic.net.reset();
        let mut nic = Nic::start(nic.net, FEATURES);
        for pair in 0..3 {
            nic.offer_buffers(pair, 250, 400);
        }
        assert_eq!(arrivals(&interface, &mut nic), [200, 0, 0]);
    });
}

#[test]
fn a_driver_without_several_pairs_has_its_control_queue_third() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(2);
        let features = 1 << VIRTIO_NET_F_CTRL_VQ | 1 << 2 | 1 << 1;
        let mut nic = Nic::new(taps, features);
        // Queue 2 is the control queue now.
        std::mem::swap(&mut nic.receive[1], &mut nic.control);
        assert_eq!(nic.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
        nic.offer_buffers(0, 250, 1600);
        interface.send(&frame(100, 1));
        assert_eq!(
            nic.wait_frame(0, |frame| is_ours(&frame.bytes)).bytes,
            frame(100, 1)
        );
    });
}

#[test]
fn pairs_must_be_queues_of_one_tap() {
    in_namespace(|| {
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // Two taps; and one that cannot have several queues, twice.
        let two = ["one", "two"].map(|name| open(name, flags | libc::IFF_MULTI_QUEUE));
        let result = Net::new(MAC, 1500, two.into());
        assert!(matches!(
            result,
            Err(NetError::Tap(TapError::NotOneInterface))
        ));
        let single = open("single", flags);
        let result = Net::new(MAC, 1500, vec![single.try_clone().unwrap(), single]);
        assert!(matches!(
            result,
            Err(NetError::Tap(TapError::NotOneInterface))
        ));
    });
}
