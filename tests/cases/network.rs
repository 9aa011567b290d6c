//! The container's network: found in its namespace, given to the guest, and put back afterwards.

use std::process::Stdio;

use hull_tests::{Bundle, Hull, LeakCheck, Netns, run_ok};
use serde_json::json;

/// A container's namespace and a peer's, with one veth pair between them.
struct Pair {
    container: Netns,
    peer: Netns,
}

impl Pair {
    fn new() -> Self {
        let (container, peer) = (Netns::new(), Netns::new());
        container.veth(
            "eth0",
            &["10.77.0.2/24", "fd77::2/64"],
            &peer,
            "peer0",
            &["10.77.0.1/24", "fd77::1/64"],
        );
        container.ip("route add default via 10.77.0.1 src 10.77.0.2");
        container.ip("-6 route add default via fd77::1 metric 512");
        container.settle("eth0");
        Self { container, peer }
    }

    fn bundle(&self, script: &str) -> Bundle {
        Bundle::shell(script).in_netns(&self.container.path())
    }
}

#[test]
fn the_guest_has_the_interface_with_its_addresses_mac_mtu_and_routes() {
    let pair = Pair::new();
    pair.container.ip("link set eth0 mtu 1400");
    pair.container
        .ip("route add 192.0.2.0/24 via 10.77.0.1 metric 77 mtu 1300");
    pair.container
        .ip("route add 198.51.100.0/24 dev eth0 table 100");
    let mac = pair.container.mac("eth0");
    let hull = Hull::new();
    let bundle = pair.bundle(
        "ip addr show dev eth0; ip link show dev lo; ip route; ip route show table 100; ip -6 route; \
         cat /sys/class/net/eth0/mtu /sys/class/net/eth0/address; /usr/bin/ip route",
    );
    // busybox does not show the MTU of a route.
    bundle.add_program("/usr/bin/ip");
    let text = hull.run(&bundle, "facts").expect(0).text();
    for wanted in [
        "10.77.0.2/24",
        "fd77::2/64",
        "LOOPBACK,UP",
        "default via 10.77.0.1 dev eth0  src 10.77.0.2",
        "192.0.2.0/24 via 10.77.0.1 dev eth0  metric 77",
        "mtu 1300",
        "198.51.100.0/24 dev eth0",
        "default via fd77::1 dev eth0  metric 512",
        "\n1400\n",
        &mac,
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in:\n{text}");
    }
}

#[test]
fn packets_pass_both_ways_over_both_protocols() {
    let pair = Pair::new();
    let hull = Hull::new();
    let bundle = pair.bundle(
        "ping -c 2 -W 10 10.77.0.1 && ping -6 -c 2 -W 10 fd77::1; echo pinged $?; sleep 1000",
    );
    let output = hull.create(&bundle, "ping");
    let _ = hull.hull(&["start", "ping"]).expect(0);
    assert!(hull_tests::command::eventually(|| {
        std::fs::read_to_string(&output).unwrap().contains("pinged")
    }));
    let text = std::fs::read_to_string(&output).unwrap();
    assert!(text.contains("pinged 0"), "{text}");
    pair.peer.await_answer_of("10.77.0.2");
    pair.peer.await_answer_of("fd77::2");
}

#[test]
fn a_mebibyte_over_tcp_comes_back_equal() {
    let pair = Pair::new();
    let hull = Hull::new();
    let bundle = pair.bundle("nc -l -p 7777 -e sha256sum");
    let _output = hull.create(&bundle, "tcp");
    let _ = hull.hull(&["start", "tcp"]).expect(0);
    let file = bundle.path().join("random");
    run_ok(
        "dd",
        &[
            "if=/dev/urandom",
            &format!("of={}", file.display()),
            "bs=65536",
            "count=16",
        ],
    );
    let wanted = run_ok("sha256sum", &[file.to_str().unwrap()]);
    let wanted = wanted.split(' ').next().unwrap();
    let script = format!("busybox nc 10.77.0.2 7777 < {}", file.display());
    let mut got = String::new();
    assert!(hull_tests::command::eventually(|| {
        got = run_ok(
            "ip",
            &[
                "netns",
                "exec",
                pair.peer.name(),
                "sh",
                "-c",
                &format!("{script} || true"),
            ],
        );
        !got.is_empty()
    }));
    assert!(got.starts_with(wanted), "{got} is not {wanted}");
}

#[test]
fn several_interfaces_come_in_order_and_work() {
    for count in [2_u8, 3] {
        let (container, peer) = (Netns::new(), Netns::new());
        let leaks = LeakCheck::new();
        for number in 0..count {
            container.veth(
                &format!("net{number}"),
                &[
                    &format!("10.78.{number}.2/24"),
                    &format!("fd78:{number}::2/64"),
                ],
                &peer,
                &format!("peer{number}"),
                &[
                    &format!("10.78.{number}.1/24"),
                    &format!("fd78:{number}::1/64"),
                ],
            );
        }
        let macs: Vec<String> = (0..count)
            .map(|number| container.mac(&format!("net{number}")))
            .collect();
        let hull = Hull::new();
        let script = (0..count)
            .map(|number| {
                format!("cat /sys/class/net/net{number}/address && ping -c 1 -W 20 10.78.{number}.1 >&2 && \
                         ping -6 -c 1 -W 20 fd78:{number}::1 >&2")
            })
            .collect::<Vec<_>>()
            .join(" && ");
        let bundle = Bundle::shell(&script).in_netns(&container.path());
        let finished = hull.run(&bundle, "several").expect(0);
        assert_eq!(finished.text().lines().collect::<Vec<_>>(), macs);
        leaks.nothing_left(&hull.root());
    }
}

#[test]
fn the_uplink_has_the_mac_of_the_rule_while_the_sandbox_lives_and_its_own_afterwards() {
    let pair = Pair::new();
    let before = (
        pair.container.mac("eth0"),
        pair.container.links(),
        pair.container.ip("addr"),
        pair.container.ip("route"),
        pair.container.ip("-6 route"),
    );
    let hull = Hull::new();
    let bundle = pair.bundle("sleep 1000");
    let _ = hull.create(&bundle, "rule");
    assert_eq!(pair.container.mac("eth0"), "02:00:ca:fe:00:00");
    let links = pair.container.ip_json("link show");
    let uplink = links
        .as_array()
        .unwrap()
        .iter()
        .find(|link| link["ifname"] == "eth0")
        .unwrap();
    assert!(
        uplink["master"].is_string(),
        "the uplink is a port of the bridge"
    );
    let bridge = links
        .as_array()
        .unwrap()
        .iter()
        .find(|link| link["ifname"] == uplink["master"])
        .unwrap();
    let data = &bridge["linkinfo"]["info_data"];
    assert_eq!(data["mcast_snooping"], 0);
    assert_eq!(data["stp_state"], 0);
    assert_eq!(data["forward_delay"], 0);
    let _ = hull.hull(&["delete", "--force", "rule"]).expect(0);
    let after = (
        pair.container.mac("eth0"),
        pair.container.links(),
        pair.container.ip("addr"),
        pair.container.ip("route"),
        pair.container.ip("-6 route"),
    );
    assert_eq!(after, before);
}

#[test]
fn an_interface_that_arrives_between_create_and_start_is_there() {
    let leaks = LeakCheck::new();
    let hull = Hull::new();
    let peer = Netns::new();
    let bundle = Bundle::shell("ip addr show dev eth0 && ping -c 1 -W 20 10.79.0.1");
    let output = hull.create(&bundle, "late");
    let pid = hull.state("late")["pid"].as_i64().unwrap().to_string();
    // As Docker 28 and later do it: through /proc/PID/ns/net of what `create` gave.
    peer.ip(&format!(
        "link add peer0 type veth peer name late0 netns {pid}"
    ));
    peer.ip("addr add 10.79.0.1/24 dev peer0");
    peer.ip("link set peer0 up");
    for words in [
        "link set late0 name eth0",
        "addr add 10.79.0.2/24 dev eth0",
        "link set eth0 up",
        "route add default via 10.79.0.1",
    ] {
        let mut arguments = vec!["-t", &pid, "-n", "ip"];
        arguments.extend(words.split(' '));
        run_ok("nsenter", &arguments);
    }
    let _ = hull.hull(&["start", "late"]).expect(0);
    hull.await_status("late", "stopped");
    let text = std::fs::read_to_string(output).unwrap();
    assert!(text.contains("10.79.0.2/24"), "{text}");
    assert!(text.contains("1 packets received"), "{text}");
    let _ = hull.hull(&["delete", "late"]).expect(0);
    drop(peer);
    leaks.nothing_left(&hull.root());
}

#[test]
fn a_container_without_interfaces_has_lo() {
    let hull = Hull::new();
    let bundle = Bundle::shell(
        "ls /sys/class/net; ping -c 1 -W 10 127.0.0.1 >/dev/null && ping -6 -c 1 ::1 >/dev/null && echo up",
    );
    assert_eq!(hull.run(&bundle, "lo").expect(0).text(), "lo\nup\n");
}

#[test]
fn only_one_answers_for_the_containers_address() {
    let pair = Pair::new();
    let hull = Hull::new();
    let bundle = pair.bundle("sleep 1000");
    let mac = pair.container.mac("eth0").to_uppercase();
    let _ = hull.create(&bundle, "arp");
    let _ = hull.hull(&["start", "arp"]).expect(0);
    let text = pair
        .peer
        .exec("arping -c 3 -w 20 -I peer0 10.77.0.2")
        .text();
    let macs: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("reply from"))
        .collect();
    assert!(!macs.is_empty(), "{text}");
    assert!(
        macs.iter().all(|line| line.to_uppercase().contains(&mac)),
        "another answers: {text}"
    );
}

#[test]
fn the_network_is_put_back_when_create_fails_half_way() {
    let pair = Pair::new();
    let before = (
        pair.container.mac("eth0"),
        pair.container.links(),
        pair.container.ip("addr"),
    );
    let hull = Hull::new();
    let bundle = pair.bundle("true").with(|config| {
        config["process"]["args"] = serde_json::json!(["no-such-program"]);
    });
    let leaks = LeakCheck::new();
    let _ = hull.run(&bundle, "half-way").expect(127);
    assert_eq!(
        (
            pair.container.mac("eth0"),
            pair.container.links(),
            pair.container.ip("addr")
        ),
        before
    );
    leaks.nothing_left(&hull.root());
}

#[test]
fn the_network_is_put_back_when_the_vmm_was_killed() {
    let pair = Pair::new();
    let before = (
        pair.container.mac("eth0"),
        pair.container.links(),
        pair.container.ip("addr"),
    );
    let hull = Hull::new();
    let bundle = pair.bundle("sleep 1000");
    let status = hull
        .command(&["create", "--bundle", bundle.arg(), "killed"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    run_ok(
        "sh",
        &[
            "-c",
            &format!(
                "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = hull-vmm ] && \
         tr '\\0' ' ' < $p/cmdline | grep -q '{}' && kill -9 ${{p#/proc/}}; done; true",
                hull.root().display()
            ),
        ],
    );
    hull.await_status("killed", "stopped");
    let _ = hull.hull(&["delete", "killed"]).expect(0);
    assert_eq!(
        (
            pair.container.mac("eth0"),
            pair.container.links(),
            pair.container.ip("addr")
        ),
        before
    );
}

/// What a container with CAP_NET_ADMIN makes for itself under another runtime, where the host's kernel has it as a module.
#[test]
fn a_container_makes_links_qdiscs_and_rules_for_itself() {
    const LINKS: &[&str] = &[
        "dummy",
        "ifb",
        "bridge mcast_snooping 0",
        "veth",
        "vrf table 10",
        "wireguard",
        "vxlan id 7 dstport 4789 remote 10.77.0.1",
        "geneve id 7 remote 10.77.0.1",
        "ipip local 10.77.0.2 remote 10.77.0.1",
        "gre local 10.77.0.2 remote 10.77.0.1",
        "gretap local 10.77.0.2 remote 10.77.0.1",
        "sit local 10.77.0.2 remote 10.77.0.1",
        "ip6gre local fd77::2 remote fd77::1",
        "xfrm if_id 7",
    ];
    // Above the dummy and the veth.
    const STACKED: &[(&str, &str)] = &[
        ("own0", "macvlan mode bridge"),
        ("own0", "vlan id 7"),
        ("own3", "ipvlan mode l3"),
    ];
    const QDISCS: &[&str] = &[
        "fq",
        "fq_codel",
        "htb",
        "tbf rate 1mbit burst 32kbit latency 400ms",
        "prio",
        "sfq",
        "netem delay 1ms",
    ];
    const RULES: &str = "table inet own {
        set addresses { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
        chain before {
            type filter hook prerouting priority mangle
            meta l4proto tcp ip daddr @addresses tproxy ip to 127.0.0.1:50080 accept
            socket transparent 1 accept
        }
        chain after {
            type nat hook postrouting priority srcnat
            ip saddr @addresses masquerade
        }
    }\n";

    // busybox has an ip and a tc of its own, which its shell prefers.
    let mut script = "echo there: $(ls /sys/class/net); set -e\n".to_owned();
    for (number, link) in LINKS.iter().enumerate() {
        script += &format!("echo {link}; /usr/bin/ip link add own{number} type {link}\n");
    }
    for (parent, link) in STACKED {
        let number = script.len();
        script += &format!(
            "echo {link}; /usr/bin/ip link add link {parent} name own{number} type {link}\n"
        );
    }
    for qdisc in QDISCS {
        script += &format!("echo {qdisc}; /usr/sbin/tc qdisc replace dev own0 root {qdisc}\n");
    }
    script += "echo filters
        tc=/usr/sbin/tc
        $tc qdisc add dev own0 clsact
        $tc filter add dev own0 ingress protocol ip flower dst_ip 192.0.2.1 action drop
        $tc filter add dev own0 ingress u32 match u32 0 0 police rate 1mbit burst 10k drop
        $tc filter add dev own0 egress matchall action mirred egress redirect dev own1
        echo rules; nft -f /rules
        echo transports; cat /proc/sys/net/ipv4/tcp_available_congestion_control; ls /proc/net/sctp
        echo all";
    let pair = Pair::new();
    let bundle = pair.bundle(&format!("exec 2>&1; {script}")).with(|config| {
        let capabilities = &mut config["process"]["capabilities"];
        for set in ["bounding", "effective", "permitted"] {
            let set = capabilities[set].as_array_mut().unwrap();
            set.push(json!("CAP_NET_ADMIN"));
        }
    });
    for program in ["/usr/bin/ip", "/usr/sbin/tc", "/usr/sbin/nft"] {
        bundle.add_program(program);
    }
    bundle.add_file("/rules", RULES.as_bytes(), 0o644);
    let text = Hull::new().run(&bundle, "own").text();
    assert!(text.starts_with("there: eth0 lo\n"), "{text}");
    assert!(text.contains(" bbr") && text.contains("snmp"), "{text}");
    assert!(text.ends_with("all\n"), "{text}");
}
