//! A NIC whose pairs the host's kernel serves. Hosts without `/dev/vhost-net` have nothing to test here; the cases of
//! the test bed use it with real guests.

use std::fs::File;
use std::os::fd::OwnedFd;

use hull_vmm_protocol::config::RateLimit;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::nic::{MAC, Nic};
use super::pairs::arrivals;
use super::tap_interface::{TapInterface, frame, in_namespace, is_ours};
use crate::devices::virtio::device::VirtioDevice as _;
use crate::devices::virtio::net::HEADER_SIZE;
use crate::devices::virtio::net::device::{Limits, Net, NetError};

const FEATURES: u64 =
    1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Descriptors of vhost-net, if the host has it.
fn vhosts(count: usize) -> Option<Vec<OwnedFd>> {
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/vhost-net")
    };
    let opened: Result<_, _> = (0..count).map(|_| open().map(OwnedFd::from)).collect();
    opened
        .inspect_err(|error| println!("not tested: /dev/vhost-net: {error}"))
        .ok()
}

fn net(taps: Vec<OwnedFd>, vhosts: Vec<OwnedFd>) -> Net {
    Net::new(MAC, 1500, taps)
        .unwrap()
        .with_vhost(vhosts)
        .unwrap()
}

fn pass_frames(interface: &TapInterface, nic: &mut Nic, pair: usize) {
    for seed in 0..20 {
        nic.send(pair, [0; HEADER_SIZE], &frame(60 + seed * 70, seed));
        let sent = interface.receive(is_ours).expect("a frame");
        assert_eq!(sent, frame(60 + seed * 70, seed));
    }
    nic.wait_sent(pair);
}

fn receive_frames(interface: &TapInterface, nic: &mut Nic) {
    for seed in 0..20 {
        let length = 60 + seed * 70;
        interface.send(&frame(length, seed));
        let received = nic.wait_frame(0, |frame| is_ours(&frame.bytes));
        assert_eq!(received.bytes, frame(length, seed));
    }
}

#[test]
fn frames_cross_both_ways_also_after_a_reset() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let Some(vhosts) = vhosts(1) else { return };
        let net = net(taps, vhosts);
        assert!(net.counters().is_none(), "the VMM does not see what passes");
        let mut nic = Nic::start(net, FEATURES);
        for _ in 0..3 {
            nic.offer_buffers(0, 200, 1600);
            receive_frames(&interface, &mut nic);
            pass_frames(&interface, &mut nic, 0);
            assert_eq!(nic.command(&[77, 0]), 1, "commands are the VMM's");
            nic.net.reset();
            nic = Nic::start(nic.net, FEATURES);
        }
    });
}

#[test]
fn several_pairs_are_served() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(2);
        let Some(vhosts) = vhosts(2) else { return };
        let features = FEATURES | 1 << VIRTIO_NET_F_MQ;
        let mut nic = Nic::start(net(taps, vhosts), features);
        nic.offer_buffers(0, 200, 1600);
        nic.offer_buffers(1, 200, 1600);
        assert_eq!(arrivals(&interface, &mut nic), [200, 0], "one at first");
        assert_eq!(nic.command(&[4, 0, 2, 0]), 0);
        let both = arrivals(&interface, &mut nic);
        assert!(both.iter().all(|count| *count > 0), "{both:?}");
        pass_frames(&interface, &mut nic, 0);
        pass_frames(&interface, &mut nic, 1);
        assert_eq!(nic.command(&[4, 0, 1, 0]), 0);
        pass_frames(&interface, &mut nic, 0);
        assert_eq!(nic.command(&[4, 0, 3, 0]), 1);
    });
}

#[test]
fn a_ring_that_the_driver_breaks_stops_until_the_reset() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let Some(vhosts) = vhosts(1) else { return };
        let mut nic = Nic::start(net(taps, vhosts), FEATURES);
        for queue in [&mut nic.transmit[0], &mut nic.receive[0]] {
            // Far more than the ring holds, of descriptors that lead anywhere.
            for index in 0..64 {
                let buffer = (0x7fff_ffff_f000 * u64::from(index), u32::MAX, 7);
                queue.driver.set_descriptor(index, buffer, 0xffff);
                queue.driver.offer(index);
            }
            queue.driver.set_avail_index(0x8000);
            queue.kick.write(1).unwrap();
        }
        interface.send(&frame(100, 1));
        std::thread::sleep(std::time::Duration::from_millis(50));
        nic.net.reset();
        let mut nic = Nic::start(nic.net, FEATURES);
        nic.offer_buffers(0, 200, 1600);
        receive_frames(&interface, &mut nic);
        pass_frames(&interface, &mut nic, 0);
    });
}

#[test]
fn a_queue_follows_its_driver_to_another_vector() {
    in_namespace(|| {
        let (interface, taps) = TapInterface::new(1);
        let Some(vhosts) = vhosts(1) else { return };
        let mut nic = Nic::start(net(taps, vhosts), FEATURES);
        nic.offer_buffers(0, 200, 1600);
        receive_frames(&interface, &mut nic);
        nic.interrupt.forget_eventfds();
        nic.net.vectors_changed();
        // Interrupts are waited for on the new eventfds.
        receive_frames(&interface, &mut nic);
    });
}

#[test]
fn descriptors_that_do_not_fit_and_limits_are_refused() {
    in_namespace(|| {
        let (_interface, taps) = TapInterface::new(1);
        let refused = Net::new(MAC, 1500, taps).unwrap().with_vhost(Vec::new());
        assert!(matches!(
            refused.err(),
            Some(NetError::VhostPairs {
                pairs: 1,
                vhosts: 0
            })
        ));
    });
    in_namespace(|| {
        let (_interface, taps) = TapInterface::new(1);
        let Some(vhosts) = vhosts(1) else { return };
        let limits = Limits {
            receive: None,
            send: Some(RateLimit {
                bytes_per_second: 1000,
                burst_bytes: 1000,
            }),
        };
        let limited = Net::new(MAC, 1500, taps).unwrap().with_limits(limits);
        let refused = limited.unwrap().with_vhost(vhosts);
        assert!(matches!(refused.err(), Some(NetError::VhostWithLimit)));
    });
}
