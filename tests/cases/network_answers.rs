//! Who answers for the container's addresses, seen from the bridge of the host that it is plugged into: its guest, with
//! the MAC address that its interface was given, and nobody else. And what the user has set in its namespace stays.

use hull_tests::command::eventually;
use hull_tests::{Bundle, Finished, Hull, Netns};
use serde_json::json;

const MODELS: [&str; 2] = ["bridge", "tc"];

/// A host with a bridge, and a container plugged into it.
struct Plugged {
    host: Netns,
    container: Netns,
}

impl Plugged {
    fn new() -> Self {
        let plugged = Self {
            host: Netns::new(),
            container: Netns::new(),
        };
        plugged.host.ip("link add br0 type bridge");
        plugged.host.ip("addr add 10.91.0.1/24 dev br0");
        plugged.host.ip("addr add fd91::1/64 dev br0 nodad");
        plugged.host.ip("link set br0 up");
        plugged.container.veth(
            "eth0",
            &["10.91.0.2/24", "10.91.0.3/24", "fd91::2/64"],
            &plugged.host,
            "port0",
            &[],
        );
        plugged.host.ip("link set port0 master br0");
        plugged.container.ip("route add default via 10.91.0.1");
        plugged.container.settle("eth0");
        plugged
    }

    /// Starts a container with the model, and waits until the host can reach it.
    fn start(&self, hull: &Hull, model: &str) {
        let bundle = Bundle::shell("sleep 1000")
            .in_netns(&self.container.path())
            .with(|config| config["annotations"] = json!({ "dev.hull.network.model": model }));
        let _output = hull.create(&bundle, "answers");
        let _ = hull.hull(&["start", "answers"]).expect(0);
        for address in ["10.91.0.2", "fd91::2"] {
            self.host.await_answer_of(address);
        }
    }

    fn link_local(&self) -> String {
        let text = self.container.ip("-6 -o addr show dev eth0 scope link");
        let cidr = text.split_whitespace().nth(3).expect("an address");
        cidr.split('/').next().expect("an address").to_owned()
    }
}

fn lines_with(finished: &Finished, words: &str) -> Vec<String> {
    let text = finished.text().to_lowercase();
    let lines = text.lines().filter(|line| line.contains(words));
    lines.map(str::to_owned).collect()
}

#[test]
fn arp_requests_get_one_answer_each() {
    for model in MODELS {
        let plugged = Plugged::new();
        let mac = plugged.container.mac("eth0");
        let hull = Hull::new();
        plugged.start(&hull, model);
        for address in ["10.91.0.2", "10.91.0.3"] {
            // Each probe is a broadcast, to which everybody could answer.
            let asked = plugged
                .host
                .exec(&format!("arping -b -c 3 -w 30 -I br0 {address}"))
                .expect(0);
            let replies = lines_with(&asked, "reply from");
            assert_eq!(replies.len(), 3, "{model}: {}", asked.text());
            assert!(
                replies.iter().all(|reply| reply.contains(&mac)),
                "{model}, {mac}: {replies:?}"
            );
        }
        // Duplicate address detection: the address is in use, once. A request that the guest itself sends just then is
        // taken for an answer too; that was none.
        let mut replies = Vec::new();
        assert!(eventually(|| {
            let probed = plugged
                .host
                .exec("arping -D -c 2 -w 30 -I br0 10.91.0.2")
                .expect(1);
            replies = lines_with(&probed, "reply from");
            !replies.is_empty()
        }));
        assert_eq!(replies.len(), 1, "{replies:?}");
        // And nobody answers for what is not the container's.
        let free = plugged
            .host
            .exec("arping -D -c 2 -w 5 -I br0 10.91.0.9")
            .expect(0);
        assert_eq!(lines_with(&free, "reply from").len(), 0, "{}", free.text());
    }
}

#[test]
fn neighbour_solicitations_get_one_answer_each() {
    for model in MODELS {
        let plugged = Plugged::new();
        let mac = plugged.container.mac("eth0");
        let hull = Hull::new();
        plugged.start(&hull, model);
        for address in ["fd91::2".to_owned(), plugged.link_local()] {
            // It waits for everyone that answers.
            let asked = plugged
                .host
                .exec(&format!("ndisc6 -m -r 3 -w 15000 {address} br0"))
                .expect(0);
            let answers = lines_with(&asked, "target link-layer address:");
            assert_eq!(answers.len(), 1, "{model}, {address}: {}", asked.text());
            assert!(answers[0].contains(&mac), "{model}, {mac}: {answers:?}");
        }
    }
}

#[test]
fn the_hosts_bridge_learns_the_original_mac_address() {
    for model in MODELS {
        let plugged = Plugged::new();
        let mac = plugged.container.mac("eth0");
        let hull = Hull::new();
        plugged.start(&hull, model);
        let learned = plugged
            .host
            .exec("bridge fdb show br br0 brport port0 dynamic")
            .expect(0)
            .text();
        assert!(learned.contains(&mac), "{model}, {mac}: {learned}");
        if model == "tc" {
            // The other model's uplink has one of its own, with which it still tells of its multicast groups.
            assert_eq!(learned.lines().count(), 1, "{learned}");
        }
    }
}

/// The user's rules, without the counters of what they have met.
fn rules(netns: &Netns) -> String {
    let commands = [
        "nft -s list ruleset",
        "iptables-save",
        "ip6tables-save",
        "tc qdisc show dev eth0 root",
        "ip rule",
    ];
    let dumps = commands.map(|command| netns.exec(command).expect(0).text());
    // Those of iptables-save say when they were made.
    let lines = dumps.iter().flat_map(|dump| dump.lines());
    lines
        .filter(|line| !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_users_rules_stay_and_bridged_frames_do_not_meet_them() {
    for model in MODELS {
        let plugged = Plugged::new();
        let netns = &plugged.container;
        for command in [
            "iptables -P FORWARD DROP",
            "iptables -A INPUT -p tcp --dport 22 -j REJECT",
            "iptables -t nat -A PREROUTING -p tcp --dport 15001 -j REDIRECT --to-ports 15006",
            "ip6tables -P FORWARD DROP",
            "nft add table inet mine",
            "nft add chain inet mine forward { type filter hook forward priority 0 ; policy drop ; }",
            "nft add table netdev early",
            "nft add chain netdev early eth0 { type filter hook ingress device eth0 priority 0 ; }",
            "ip rule add from 10.91.0.3 table 100",
            "sysctl -q -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1 \
             net.bridge.bridge-nf-call-arptables=1",
        ] {
            let _ = netns.exec(command).expect(0);
        }
        let filters = || netns.exec("sysctl net.bridge").expect(0).text();
        let (before, filters_before) = (rules(netns), filters());
        assert!(
            before.contains("15006") && before.contains("mine"),
            "{before}"
        );
        let hull = Hull::new();
        // The pings in here pass a bridge whose namespace forwards nothing.
        plugged.start(&hull, model);
        assert_eq!(rules(netns), before, "{model}, while the sandbox lives");
        for name in ["iptables", "ip6tables", "arptables"] {
            let line = format!("net.bridge.bridge-nf-call-{name} = 0\n");
            assert!(
                filters().contains(&line),
                "{model}: {}{}",
                filters(),
                hull.state("answers")
            );
        }
        let _ = hull.hull(&["delete", "--force", "answers"]).expect(0);
        assert_eq!(rules(netns), before, "{model}, afterwards");
        assert_eq!(filters(), filters_before);
    }
}
