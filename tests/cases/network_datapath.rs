//! How packets move between a NIC and its tap: by the host's kernel or by the VMM, over one pair of queues or several,
//! within limits, and of all kinds.

use std::time::{Duration, Instant};

use hull_tests::command::eventually;
use hull_tests::{Bundle, Hull, Netns, run};
use hull_vmm_protocol::control::{NicCounters, NicTraffic, Request, Response};
use hull_vmm_protocol::socket::ControlClient;
use serde_json::json;

/// Who moves the packets: `dev.hull.network.vhost`.
const MOVERS: [&str; 2] = ["auto", "off"];

/// A container's namespace with `eth0` 10.81.0.2, and a peer's with `peer0` 10.81.0.1.
struct Pair {
    container: Netns,
    peer: Netns,
}

impl Pair {
    fn new(mtu: u32) -> Self {
        let (container, peer) = (Netns::new(), Netns::new());
        container.veth("eth0", &["10.81.0.2/24"], &peer, "peer0", &["10.81.0.1/24"]);
        container.ip(&format!("link set eth0 mtu {mtu}"));
        peer.ip(&format!("link set peer0 mtu {mtu}"));
        Self { container, peer }
    }

    /// A bundle that runs `script` in the container's namespace, with annotations.
    fn bundle(&self, script: &str, annotations: &[(&str, &str)]) -> Bundle {
        Bundle::shell(script)
            .in_netns(&self.container.path())
            .with(|config| {
                for (name, value) in annotations {
                    config["annotations"][*name] = json!(value);
                }
            })
    }

    /// Starts a container `dp` that sleeps.
    fn sleeping(&self, annotations: &[(&str, &str)]) -> (Hull, Bundle) {
        let hull = Hull::new();
        let bundle = self.bundle("sleep 1000", annotations);
        start(&hull, &bundle);
        (hull, bundle)
    }

    fn ping(&self, options: &str) {
        let _ = self.peer.exec(&format!("ping -W 20 {options}")).expect(0);
    }

    /// What the host's side of the tap has counted, seen from the guest: packets and bytes received, then sent.
    fn tap_counters(&self) -> [u64; 4] {
        let tap = &self.container.ip_json("-s link show dev hull-tap0")[0]["stats64"];
        [
            ("tx", "packets"),
            ("tx", "bytes"),
            ("rx", "packets"),
            ("rx", "bytes"),
        ]
        .map(|(direction, what)| tap[direction][what].as_u64().expect("a counter"))
    }
}

fn start(hull: &Hull, bundle: &Bundle) {
    let _ = hull.create(bundle, "dp");
    let _ = hull.hull(&["start", "dp"]).expect(0);
}

/// Runs a shell command in the container; gives what it prints.
fn in_guest(hull: &Hull, script: &str) -> String {
    hull.hull(&["exec", "dp", "sh", "-c", script])
        .expect(0)
        .text()
}

/// The VMM's counters of the only NIC.
fn vmm_counters(hull: &Hull) -> NicCounters {
    let socket = hull.root().join("sandboxes/dp/control.sock");
    let client = ControlClient::connect(&socket, Duration::from_secs(30)).expect("the VMM");
    match client.call(&Request::NetCounters, &[]).expect("counters") {
        Response::NetCounters { mut nics } if nics.len() == 1 => nics.remove(0),
        other => panic!("{other:?}"),
    }
}

/// What the guest has counted on `eth0`: packets and bytes received, then sent.
fn guest_counters(hull: &Hull) -> [u64; 4] {
    let text = in_guest(
        hull,
        "cd /sys/class/net/eth0/statistics; cat rx_packets rx_bytes tx_packets tx_bytes",
    );
    let counters: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    counters.try_into().expect("four counters")
}

/// Connects from the peer to the container's port 7777 until somebody answers, sends `bytes` zeroes, and gives what
/// comes back and how long it took.
fn send_zeroes(pair: &Pair, bytes: usize) -> (String, Duration) {
    let script = format!("head -c {bytes} /dev/zero | busybox nc 10.81.0.2 7777");
    let mut answer = (String::new(), Duration::ZERO);
    assert!(
        eventually(|| {
            let start = Instant::now();
            let sent = run(
                "ip",
                &["netns", "exec", pair.peer.name(), "sh", "-c", &script],
            );
            answer = (sent.text(), start.elapsed());
            !answer.0.is_empty()
        }),
        "nobody listens in the container"
    );
    answer
}

#[test]
fn the_counters_of_guest_vmm_and_tap_agree() {
    for mover in MOVERS {
        let pair = Pair::new(1500);
        let (hull, _bundle) = pair.sleeping(&[("dev.hull.network.vhost", mover)]);
        pair.ping("-c 20 -i 0.05 -s 1000 10.81.0.2");
        let mut seen = String::new();
        let agree = eventually(|| {
            let (guest, nic, tap) = (
                guest_counters(&hull),
                vmm_counters(&hull),
                pair.tap_counters(),
            );
            seen = format!("{mover}: guest {guest:?}, tap {tap:?}, VMM {nic:?}");
            let told = nic.passed.map(|NicTraffic { received, sent }| {
                assert_eq!((received.dropped, sent.dropped), (0, 0), "{seen}");
                [received.packets, received.bytes, sent.packets, sent.bytes]
            });
            // What the kernel moves the VMM does not see, and says so.
            assert_eq!(told.is_some(), mover == "off", "{seen}");
            guest == tap && told.is_none_or(|told| told == tap)
        });
        assert!(agree, "{seen}");
        // Whoever counts, `events` tells it as runc does.
        let event = hull.hull(&["events", "--stats", "dp"]).expect(0).text();
        let event: serde_json::Value = serde_json::from_str(&event).unwrap();
        let nic = &event["data"]["network_interfaces"][0];
        let told = ["RxPackets", "TxPackets"].map(|what| nic[what].as_u64().unwrap());
        assert_eq!(nic["Name"], "eth0");
        assert!(told.iter().all(|packets| *packets >= 20), "{event}");
    }
}

#[test]
fn large_frames_and_a_mebibyte_pass_whoever_moves_them() {
    for mover in MOVERS {
        let pair = Pair::new(9000);
        let hull = Hull::new();
        let script = "while true; do nc -l -p 7777 -e sh -c 'head -c 1048576 | wc -c'; done";
        let bundle = pair.bundle(script, &[("dev.hull.network.vhost", mover)]);
        start(&hull, &bundle);
        pair.ping("-c 3 -s 8900 -M do 10.81.0.2");
        let (answer, _) = send_zeroes(&pair, 1 << 20);
        assert_eq!(answer.trim(), "1048576", "{mover}");
        assert_eq!(in_guest(&hull, "cat /sys/class/net/eth0/mtu"), "9000\n");
    }
}

#[test]
fn multicast_and_vlans_of_the_guest_pass() {
    for mover in MOVERS {
        let pair = Pair::new(1500);
        let hull = Hull::new();
        let bundle = pair
            .bundle("sleep 1000", &[("dev.hull.network.vhost", mover)])
            .with(|config| {
                for set in ["bounding", "effective", "permitted"] {
                    let capabilities = config["process"]["capabilities"][set].as_array_mut();
                    capabilities.unwrap().push(json!("CAP_NET_ADMIN"));
                }
            });
        bundle.add_program("/usr/bin/ip");
        start(&hull, &bundle);
        in_guest(
            &hull,
            "ip=/usr/bin/ip; $ip link add link eth0 name eth0.7 type vlan id 7 && \
             $ip addr add 10.82.0.2/24 dev eth0.7 && $ip link set eth0.7 up && \
             $ip addr add ff05::7777 dev eth0 autojoin",
        );
        pair.peer
            .ip("link add link peer0 name peer0.7 type vlan id 7");
        pair.peer.ip("addr add 10.82.0.1/24 dev peer0.7");
        pair.peer.ip("link set peer0.7 up");
        pair.ping("-c 2 10.82.0.2");
        // A frame as large as the MTU has, and the tag.
        pair.ping("-c 2 -s 1472 -M do 10.82.0.2");
        // What the guest has joined reaches it; a group's address is no source for an answer.
        let _ = pair.peer.exec("ping -6 -c 2 -W 1 -I peer0 ff05::7777");
        let echos = in_guest(&hull, "grep Icmp6InEchos /proc/net/snmp6");
        assert_eq!(echos.split_whitespace().last(), Some("2"), "{mover}");
    }
}

#[test]
fn each_vcpu_has_a_pair_of_queues() {
    for mover in MOVERS {
        let pair = Pair::new(1500);
        let hull = Hull::new();
        let annotations = [("dev.hull.vcpus", "2"), ("dev.hull.network.vhost", mover)];
        let bundle = pair.bundle("sleep 1000", &annotations);
        bundle.add_program("/usr/sbin/ethtool");
        start(&hull, &bundle);
        assert_eq!(vmm_counters(&hull).queue_pairs, 2);
        let channels = in_guest(&hull, "/usr/sbin/ethtool -l eth0");
        let combined: Vec<&str> = channels
            .lines()
            .filter_map(|line| line.strip_prefix("Combined:"))
            .map(str::trim)
            .collect();
        assert_eq!(
            combined,
            ["2", "2"],
            "the most, and those in use: {channels}"
        );
        pair.ping("-c 3 10.81.0.2");
    }
}

#[test]
fn a_rate_holds_in_its_direction_and_loses_nothing() {
    // Beyond the burst, 1 MiB takes some three seconds.
    let rate = "300k,128Ki";
    let least = Duration::from_millis(2800);
    let pair = Pair::new(1500);
    let hull = Hull::new();
    let script = "while true; do nc -l -p 7777 -e sh -c 'head -c 1048576 | wc -c'; done";
    let bundle = pair.bundle(script, &[("dev.hull.network.rate.rx", rate)]);
    start(&hull, &bundle);
    let (answer, took) = send_zeroes(&pair, 1 << 20);
    assert_eq!(answer.trim(), "1048576");
    assert!(took > least, "received in {took:?}");
    let passed = vmm_counters(&hull).passed.expect("the VMM keeps the rate");
    assert!(passed.received.bytes > 1 << 20, "{passed:?}");
    drop(hull);

    let pair = Pair::new(1500);
    let hull = Hull::new();
    let script =
        "while true; do nc -l -p 7777 -e sh -c 'cat >/dev/null; head -c 1048576 /dev/zero'; done";
    let kata = "io.katacontainers.config.hypervisor.tx_rate_limiter_max_rate";
    let annotations = [(kata, "80000000"), ("dev.hull.network.rate.tx.eth0", rate)];
    let bundle = pair.bundle(script, &annotations);
    start(&hull, &bundle);
    let (answer, took) = send_zeroes(&pair, 1);
    assert_eq!(answer.len(), 1 << 20);
    assert!(took > least, "sent in {took:?}");
}

#[test]
fn a_host_whose_vhost_net_does_not_work_has_the_vmm_move_packets() {
    let pair = Pair::new(1500);
    let hull = Hull::new();
    let bundle = pair.bundle("ping -c 2 -W 20 10.81.0.1", &[]);
    let script = format!(
        "mount --bind /dev/null /dev/vhost-net && exec hull --root {} run --bundle {} dp",
        hull.root().display(),
        bundle.arg()
    );
    let finished = run("unshare", &["--mount", "sh", "-c", &script]).expect(0);
    assert!(finished.text().contains("2 packets received"));
    assert!(
        finished.stderr.contains("VHOST_GET_FEATURES"),
        "{}",
        finished.stderr
    );
}

#[test]
fn settings_that_are_none_are_refused_by_name() {
    for (name, value) in [
        ("dev.hull.network.vhost", "on"),
        ("dev.hull.network.rate.rx", "fast"),
        ("dev.hull.network.rate.sideways", "10M"),
    ] {
        let bundle = Bundle::shell("true").with(|config| {
            config["annotations"][name] = json!(value);
        });
        Hull::new()
            .run(&bundle, "refused")
            .expect_error(&[name, value]);
    }
}
