//! Frames really flow between host and tap, and nobody but the guest answers for its addresses.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::super::{MacAddress, Model, Netns, NewNic};
use super::kinds::KINDS;
use super::lab::{Lab, run};

const VNET_HEADER: [u8; 12] = [0; 12];
const GUEST_MAC: [u8; 6] = [0x02, 0x42, 0x0a, 0, 0, 2];
const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// IEEE 802 local experimental.
const ETHERTYPE_EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
const LONG: Duration = Duration::from_secs(5);

/// The guest's end of a tap.
struct Guest {
    tap: File,
    mac: [u8; 6],
}

impl Guest {
    fn new(mut nic: NewNic) -> Self {
        Self {
            tap: nic.taps.remove(0).into(),
            mac: nic.config.mac.parse::<MacAddress>().unwrap().0,
        }
    }

    fn send(&mut self, frame: &[u8]) {
        let packet = [&VNET_HEADER, frame].concat();
        assert_eq!(self.tap.write(&packet).unwrap(), packet.len());
    }

    /// The first frame that `wanted` takes, without its virtio-net header.
    fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + LONG;
        let mut packet = vec![0; 65_536 + VNET_HEADER.len()];
        while Instant::now() < deadline {
            match self.tap.read(&mut packet) {
                Ok(length) if wanted(&packet[VNET_HEADER.len()..length]) => {
                    return Some(packet[VNET_HEADER.len()..length].to_vec());
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        None
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind, payload].concat()
}

fn arp_reply(mac: [u8; 6], request: &[u8]) -> Vec<u8> {
    let (asker_mac, asker_ip) = (&request[22..28], &request[28..32]);
    let asked_ip = &request[38..42];
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    let arp = [&head[..], &mac, asked_ip, asker_mac, asker_ip].concat();
    ethernet(asker_mac.try_into().unwrap(), mac, ETHERTYPE_ARP, &arp)
}

fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![
        0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0,
    ];
    header.extend(from);
    header.extend(to);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [&header[..], payload].concat()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).unwrap();
    (!folded).to_be_bytes()
}

fn socket_on(netns: &Netns, address: &str) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind((address.parse::<IpAddr>().unwrap(), 7777)));
    let socket = socket.unwrap().unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

#[test]
fn a_datagram_goes_to_the_guest_and_back_over_every_kind_of_uplink() {
    for kind in KINDS {
        let Some(peer) = kind.peer else { continue };
        for model in [Model::Bridge, Model::Tc] {
            let Some(lab) = kind.lab() else { break };
            run(&lab.host, &format!("ip address add 10.0.0.1/24 dev {peer}"));
            let _ = there_and_back(lab, model);
        }
    }
}

#[test]
fn the_guest_is_reached_through_a_hairpin_port_which_gives_its_broadcasts_back() {
    for model in [Model::Bridge, Model::Tc] {
        let lab = Lab::with_eth0();
        run(
            &lab.host,
            "ip address flush dev veth0
             ip link add switch type bridge
             ip link set veth0 master switch
             ip link set veth0 type bridge_slave hairpin on
             ip address add 10.0.0.1/24 dev switch
             ip link set switch up
             until ip link show dev switch | grep -q 'state UP'; do sleep 0.01; done",
        );
        let (_lab, mut guest, socket) = there_and_back(lab, model);
        guest.send(&ethernet(
            BROADCAST,
            guest.mac,
            ETHERTYPE_EXPERIMENTAL,
            &[0; 46],
        ));
        let own = guest.receive(|frame| frame[12..14] == ETHERTYPE_EXPERIMENTAL);
        assert!(own.is_some(), "{model}: the port is no hairpin");
        socket.send_to(b"again", ("10.0.0.2", 8888)).unwrap();
        let again = guest.receive(|frame| frame.ends_with(b"again"));
        assert!(again.is_some(), "{model}");
    }
}

/// The host sends a datagram to the guest, and gets one back.
fn there_and_back(mut lab: Lab, model: Model) -> (Lab, Guest, UdpSocket) {
    let mut guest = Guest::new(lab.reconcile(model).attach.remove(0));
    let socket = socket_on(&lab.host, "10.0.0.1");
    socket.send_to(b"ping", ("10.0.0.2", 8888)).unwrap();

    let request = guest
        .receive(|frame| frame[12..14] == ETHERTYPE_ARP)
        .unwrap();
    assert_eq!(request[38..42], [10, 0, 0, 2]);
    guest.send(&arp_reply(guest.mac, &request));
    let datagram = guest.receive(|frame| frame.ends_with(b"ping")).unwrap();
    assert_eq!(datagram[..6], guest.mac);

    let host_mac: [u8; 6] = datagram[6..12].try_into().unwrap();
    // From port 8888 to 7777, without checksum.
    let udp = [&[0x22, 0xb8, 0x1e, 0x61, 0, 12, 0, 0][..], b"pong"].concat();
    let packet = ipv4(17, [10, 0, 0, 2], [10, 0, 0, 1], &udp);
    guest.send(&ethernet(host_mac, guest.mac, ETHERTYPE_IPV4, &packet));
    let mut answer = [0; 16];
    let (length, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"pong");
    assert_eq!(from.ip(), Ipv4Addr::new(10, 0, 0, 2));
    let neighbours = run(&lab.host, "ip neighbour show to 10.0.0.2");
    let mac = MacAddress(guest.mac).to_string();
    assert!(neighbours.contains(&mac), "{mac}: {neighbours}");
    (lab, guest, socket)
}

#[test]
fn frames_for_any_multicast_group_reach_the_guest() {
    for kind in KINDS {
        let Some(peer) = kind.peer else { continue };
        let Some(mut lab) = kind.lab() else { continue };
        run(&lab.host, &format!("ip address add 10.0.0.1/24 dev {peer}"));
        let mut guest = Guest::new(lab.reconcile(Model::Bridge).attach.remove(0));
        let socket = socket_on(&lab.host, "10.0.0.1");
        // Of mDNS, which nobody in the namespace has joined.
        socket.send_to(b"group", ("224.0.0.251", 5353)).unwrap();
        let frame = guest.receive(|frame| frame.ends_with(b"group"));
        let frame = frame.unwrap_or_else(|| panic!("{}", kind.name));
        assert_eq!(frame[..6], [1, 0, 0x5e, 0, 0, 0xfb]);
    }
}

#[test]
fn only_the_guest_answers_arp_and_neighbour_solicitations() {
    for model in [Model::Bridge, Model::Tc] {
        let mut lab = Lab::with_eth0();
        let v4 = socket_on(&lab.host, "10.0.0.1");
        let v6 = socket_on(&lab.host, "fd00::1");
        let ask = |lab: &Lab| {
            run(&lab.host, "ip neighbour flush all");
            v4.send_to(b"4", ("10.0.0.2", 8888)).unwrap();
            v6.send_to(b"6", ("fd00::2", 8888)).unwrap();
        };
        // Without hull the namespace does answer, so that silence means something below.
        ask(&lab);
        run(
            &lab.host,
            "until [ $(ip neighbour show dev veth0 | grep -c 'lladdr 02:42:0a:00:00:02') = 2 ]; do sleep 0.01; done",
        );

        let mut guest = Guest::new(lab.reconcile(model).attach.remove(0));
        ask(&lab);
        assert!(
            guest
                .receive(|frame| frame[12..14] == ETHERTYPE_ARP)
                .is_some()
        );
        // An ICMPv6 neighbour solicitation.
        let solicits =
            |frame: &[u8]| frame[12..14] == ETHERTYPE_IPV6 && frame.get(54) == Some(&135);
        assert!(guest.receive(solicits).is_some());
        sleep(Duration::from_millis(200));
        let known = run(&lab.host, "ip neighbour show dev veth0");
        assert!(!known.contains("lladdr"), "{model:?}: {known}");
    }
}

#[test]
fn the_namespaces_own_stack_answers_no_packet_and_sends_no_arp() {
    let mut lab = Lab::with_eth0();
    let mut guest = Guest::new(lab.reconcile(Model::Bridge).attach.remove(0));
    let bridge_mac = run(&lab.pod, "ip -brief link show hull-br0");
    let bridge_mac = bridge_mac.split_whitespace().nth(2).unwrap();
    let bridge_mac: MacAddress = bridge_mac.parse().unwrap();
    let mut echo = vec![8, 0, 0, 0, 0, 1, 0, 1];
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum);
    let packet = ipv4(1, [10, 0, 0, 1], [10, 0, 0, 2], &echo);
    for to in [BROADCAST, GUEST_MAC, bridge_mac.0] {
        guest.send(&ethernet(to, [2, 0, 0, 0, 0, 9], ETHERTYPE_IPV4, &packet));
    }
    sleep(Duration::from_millis(100));
    let sent = run(&lab.pod, "nstat -asz IcmpOutEchoReps | tail -1");
    assert_eq!(sent.split_whitespace().nth(1), Some("0"), "{sent}");

    // Something in the namespace sends: the host must not learn the uplink's MAC address for the guest's.
    let before = run(&lab.host, "ip neighbour flush all; ip neighbour");
    let socket = socket_on(&lab.pod, "10.0.0.2");
    let _ = socket.send_to(b"astray", ("10.0.0.1", 7777));
    sleep(Duration::from_millis(100));
    let after = run(&lab.host, "ip neighbour show to 10.0.0.2");
    assert!(!after.contains("02:00:ca:fe"), "{before} {after}");
}
