//! What changes in the network namespace of a running container changes in the guest.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hull_tests::command::{eventually, finish};
use hull_tests::{Bundle, Hull, LeakCheck, Netns};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};
use serde_json::Value;

/// A container in a namespace of its own, whose `eth0` leads to a peer's.
struct Live {
    leaks: LeakCheck,
    hull: Hull,
    container: Netns,
    peer: Netns,
    output: std::path::PathBuf,
    // Removed last: the container's root file system is in it.
    _bundle: Bundle,
}

const ID: &str = "live";

impl Live {
    fn new() -> Self {
        Self::running(&["/bin/sleep", "100000"])
    }

    fn running(program: &[&str]) -> Self {
        let (container, peer) = (Netns::new(), Netns::new());
        container.veth(
            "eth0",
            &["10.77.0.2/24", "fd77::2/64"],
            &peer,
            "peer0",
            &["10.77.0.1/24", "fd77::1/64"],
        );
        container.ip("route add default via 10.77.0.1");
        container.ip("-6 route add default via fd77::1");
        let leaks = LeakCheck::new();
        let hull = Hull::new();
        let bundle = Bundle::new(program).in_netns(&container.path());
        // busybox's shows less.
        bundle.add_program("/usr/bin/ip");
        let output = hull.create(&bundle, ID);
        let _ = hull.hull(&["start", ID]).expect(0);
        Self {
            leaks,
            hull,
            container,
            peer,
            output,
            _bundle: bundle,
        }
    }

    /// Another cable to the peer, with names derived from `name`.
    fn cable(&self, name: &str, cidr: &str) {
        self.container
            .veth(name, &[cidr], &self.peer, &format!("p-{name}"), &[]);
    }

    /// `ip WORDS` in the container.
    fn guest(&self, words: &str) -> String {
        let mut arguments = vec!["exec", ID, "/usr/bin/ip"];
        arguments.extend(words.split_whitespace());
        self.hull.hull(&arguments).text()
    }

    /// Waits until what `ip WORDS` prints in the container is as wanted.
    #[track_caller]
    fn becomes(&self, words: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        let became = eventually(|| {
            text = self.guest(words);
            wanted(&text)
        });
        assert!(became, "ip {words}:\n{text}\n{}", self.monitor_log());
        text
    }

    /// The peer gets answers from the container: `ping WORDS`.
    #[track_caller]
    fn reached(&self, words: &str) {
        let pinged = self.peer.exec(&format!("ping {words}"));
        assert!(
            pinged.code == 0,
            "{}\npeer:\n{}namespace:\n{}guest:\n{}{}{}",
            pinged.text(),
            self.peer.ip("neigh"),
            self.container.ip("-s link"),
            self.guest("-s link"),
            self.guest("addr"),
            self.guest("neigh"),
        );
    }

    fn monitor_log(&self) -> String {
        let log = self.sandbox().join("monitor.log");
        fs::read_to_string(log).unwrap_or_default()
    }

    fn sandbox(&self) -> std::path::PathBuf {
        self.hull.root().join("sandboxes").join(ID)
    }

    fn monitor(&self) -> i64 {
        let record = fs::read(self.sandbox().join("sandbox.json")).expect("record");
        let record: Value = serde_json::from_slice(&record).expect("JSON");
        record["monitor"]["pid"].as_i64().expect("monitor")
    }

    /// Deletes the container and looks for what is left.
    fn end(self) {
        let _ = self.hull.hull(&["delete", "--force", ID]).expect(0);
        self.leaks.nothing_left(&self.hull.root());
        let links = self.container.links();
        assert!(
            links.iter().all(|name| !name.starts_with("hull-")),
            "{links:?}"
        );
    }
}

fn is_running(pid: i64) -> bool {
    let path = format!("/proc/{pid}/stat");
    fs::read_to_string(path).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn addresses_routes_rules_and_neighbours_come_and_go() {
    let live = Live::new();
    let changes = [
        ("addr", "addr add 10.77.0.9/24 dev eth0", "10.77.0.9/24"),
        ("addr", "addr add 10.88.0.2/16 dev eth0", "10.88.0.2/16"),
        ("addr", "addr add fd78::9/64 dev eth0", "fd78::9/64"),
        (
            "route",
            "route add 192.0.2.0/24 via 10.77.0.1 metric 7",
            "192.0.2.0/24 via 10.77.0.1 dev eth0 metric 7",
        ),
        (
            "-6 route",
            "-6 route add fd99::/48 via fd77::1",
            "fd99::/48 via fd77::1 dev eth0",
        ),
        (
            "route show table 100",
            "route add default via 10.77.0.1 table 100",
            "default via 10.77.0.1",
        ),
        (
            "rule",
            "rule add from 10.77.0.9 lookup 100 priority 900",
            "900:\tfrom 10.77.0.9 lookup 100",
        ),
        (
            "neigh show nud permanent",
            "neigh add 10.77.0.50 lladdr 02:00:00:00:00:50 dev eth0",
            "10.77.0.50 dev eth0 lladdr 02:00:00:00:00:50",
        ),
        (
            "-6 neigh show nud permanent",
            "-6 neigh add fd77::50 lladdr 02:00:00:00:00:50 dev eth0",
            "fd77::50 dev eth0 lladdr 02:00:00:00:00:50",
        ),
    ];
    for (look, change, there) in &changes {
        live.container.ip(change);
        let _ = live.becomes(look, |text| text.contains(there));
    }
    for (look, change, gone) in changes.iter().rev() {
        live.container.ip(&change.replace(" add ", " del "));
        let _ = live.becomes(look, |text| !text.contains(gone));
    }
    let addresses = live.guest("addr show dev eth0");
    assert!(addresses.contains("10.77.0.2/24") && addresses.contains("fd77::2/64"));
    live.reached("-c 2 -W 10 10.77.0.2");
    live.end();
}

#[test]
fn ipv6_addresses_are_as_the_kernel_has_judged_them() {
    let live = Live::new();
    // Checked for duplicates first, and not in the guest before that is over.
    live.container.ip("addr add fd77::aa/64 dev eth0");
    let text = live.becomes("-6 addr show dev eth0", |text| text.contains("fd77::aa/64"));
    assert!(!text.contains("tentative"), "{text}");
    live.container
        .ip("addr change fd77::aa/64 dev eth0 preferred_lft 0");
    let is_deprecated = |text: &str| {
        let mut lines = text.lines();
        lines.any(|line| line.contains("fd77::aa/64") && line.contains("deprecated"))
    };
    let _ = live.becomes("-6 addr show dev eth0", is_deprecated);
    let _ = live
        .container
        .exec("sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=1")
        .expect(0);
    let _ = live.becomes("-6 addr show dev eth0", |text| !text.contains("inet6"));
    assert!(live.guest("addr").contains("10.77.0.2/24"));
    let _ = live
        .container
        .exec("sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=0")
        .expect(0);
    live.container.ip("addr add fd77::bb/64 dev eth0 nodad");
    let _ = live.becomes("-6 addr show dev eth0", |text| text.contains("fd77::bb/64"));
    live.reached("-6 -c 2 -W 10 fd77::bb");
    live.end();
}

#[test]
fn an_interface_changes_its_mtu_state_name_and_mac_address() {
    let live = Live::new();
    live.container.ip("link set eth0 mtu 1400");
    let _ = live.becomes("link show eth0", |text| text.contains("mtu 1400"));
    live.container.ip("link set eth0 mtu 1500");
    let _ = live.becomes("link show eth0", |text| text.contains("mtu 1500"));

    live.container.ip("link set eth0 down");
    let _ = live.becomes("link show eth0", |text| !text.contains(",UP"));
    live.container.ip("link set eth0 up");
    let _ = live.becomes("link show eth0", |text| text.contains(",UP"));
    live.reached("-c 2 -W 10 10.77.0.2");

    live.container.ip("link set eth0 down");
    live.container.ip("link set eth0 name wan0");
    live.container.ip("link set wan0 up");
    let _ = live.becomes("addr", |text| {
        text.contains("wan0: <BROADCAST,MULTICAST,UP") && !text.contains("eth0")
    });

    live.container.ip("link set wan0 address 02:42:0a:00:00:99");
    let _ = live.becomes("link show", |text| {
        text.contains("02:42:0a:00:00:99") && text.contains("wan0")
    });
    let text = live.becomes("addr show wan0", |text| text.contains("10.77.0.2/24"));
    // No address of hull's own, which the uplink got while it was set down and up.
    assert!(!text.contains("fe80::caff:fefe"), "{text}");
    // As with any change of a MAC address: it knows the one before for some time.
    live.peer.ip("neigh flush dev peer0");
    live.reached("-c 2 -W 20 10.77.0.2");
    live.end();
}

#[test]
fn interfaces_come_and_go() {
    let live = Live::new();
    live.cable("eth1", "10.78.0.2/24");
    live.cable("eth2", "10.79.0.2/24");
    let _ = live.becomes("-brief addr", |text| {
        text.contains("10.78.0.2/24") && text.contains("10.79.0.2/24")
    });
    live.peer.ip("addr add 10.78.0.1/24 dev p-eth1");
    live.reached("-c 2 -W 10 10.78.0.2");
    live.container.ip("link del eth1");
    let _ = live.becomes("-brief addr", |text| {
        !text.contains("eth1") && text.contains("eth2")
    });
    // As an engine takes it away: down, renamed, out of the namespace.
    live.container.ip("link set eth2 down");
    live.container.ip("link set eth2 name gone2");
    live.container
        .ip(&format!("link set gone2 netns {}", live.peer.name()));
    let _ = live.becomes("-brief addr", |text| {
        !text.contains("eth2") && !text.contains("gone2") && text.contains("eth0")
    });
    live.cable("eth1", "10.78.0.3/24");
    let _ = live.becomes("-brief addr", |text| text.contains("10.78.0.3/24"));
    live.reached("-c 1 -W 10 10.77.0.2");
    live.end();
}

#[test]
fn a_thousand_quick_changes_end_in_the_right_state() {
    const ROUNDS: usize = 170;
    const LEFT: usize = ROUNDS.div_ceil(3);
    let live = Live::new();
    live.cable("eth1", "10.78.0.2/24");
    let mut batch = String::new();
    for round in 0..ROUNDS {
        batch += &format!(
            "addr add 10.80.{round}.1/24 dev eth0\n\
             addr add fd80:{round}::1/64 dev eth0 nodad\n\
             route add 203.0.113.{round}/32 via 10.77.0.1\n\
             link set eth1 mtu {}\n\
             link set eth1 {}\n",
            1300 + round,
            if round % 2 == 0 { "down" } else { "up" },
        );
        if round % 3 != 0 {
            batch += &format!(
                "addr del 10.80.{round}.1/24 dev eth0\n\
                 addr del fd80:{round}::1/64 dev eth0\n\
                 route del 203.0.113.{round}/32\n"
            );
        }
    }
    batch += "link set eth1 down\nlink set eth1 name last1\nlink set last1 up\n";
    assert!(batch.lines().count() > 1000);
    let mut command = Command::new("ip");
    command.args(["-n", live.container.name(), "-batch", "-"]);
    let _ = finish(&mut command, batch.into_bytes()).expect(0);

    let addresses = |text: &str| -> BTreeSet<String> {
        text.split_whitespace()
            .filter(|word| {
                word.contains('/') && !word.starts_with("fe80") && !word.starts_with("127.")
            })
            .map(str::to_owned)
            .collect()
    };
    let wanted = addresses(&live.container.ip("-brief addr"));
    assert!(wanted.len() > 2 * LEFT, "{wanted:?}");
    let _ = live.becomes("-brief addr", |text| addresses(text) == wanted);
    let routes = |text: &str| {
        text.lines()
            .filter(|line| line.contains("203.0.113"))
            .count()
    };
    assert_eq!(routes(&live.container.ip("route")), LEFT);
    let _ = live.becomes("route", |text| routes(text) == LEFT);
    let _ = live.becomes("link", |text| {
        text.contains("last1: <BROADCAST,MULTICAST,UP") && text.contains("mtu 1469")
    });
    live.end();
}

/// Without any command of hull's in between.
#[test]
fn a_monitor_that_is_killed_is_made_anew_and_has_missed_nothing() {
    let live = Live::new();
    let mut last = live.monitor();
    for address in ["10.77.0.9", "10.77.0.10"] {
        assert!(is_running(last));
        hull_tests::run_ok("kill", &["-9", &last.to_string()]);
        assert!(eventually(|| !is_running(last)));
        // Of this nobody may hear: it is found by the first look of the next monitor.
        live.container
            .ip(&format!("addr add {address}/24 dev eth0"));
        let ping = format!("ping -c 1 -W 5 {address}");
        assert!(
            eventually(|| live.peer.exec(&ping).code == 0),
            "{}",
            live.monitor_log()
        );
        let next = live.monitor();
        assert_ne!(last, next);
        last = next;
    }
    live.end();
    assert!(!is_running(last));
}

#[test]
fn the_monitor_ends_with_its_vm() {
    let live = Live::new();
    let monitor = live.monitor();
    let record = fs::read(live.sandbox().join("sandbox.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    hull_tests::run_ok("kill", &["-9", &record["vmm"]["pid"].to_string()]);
    assert!(eventually(|| !is_running(monitor)));
    live.end();
}

#[test]
fn what_routers_announce_the_guest_makes_of_it_and_has_it_once() {
    let live = Live::new();
    let address = |text: &str| text.matches("inet6 fd66:").count();
    advertise(&live.peer, "peer0");
    let _ = live.becomes("-6 addr show dev eth0", |text| address(text) == 1);
    // The namespace's own stack no longer hears routers.
    assert_eq!(address(&live.container.ip("-6 addr show dev eth0")), 0);
    let default = |text: &str| text.matches("default via fe80:").count();
    assert_eq!(default(&live.guest("-6 route")), 1);
    // Another change leaves it alone.
    live.container.ip("addr add fd77::9/64 dev eth0 nodad");
    let text = live.becomes("-6 addr show dev eth0", |text| text.contains("fd77::9/64"));
    assert_eq!((address(&text), default(&live.guest("-6 route"))), (1, 1));
    // A namespace that ignores routers has a guest that does.
    let _ = live
        .container
        .exec("sysctl -q -w net.ipv6.conf.eth0.accept_ra=0")
        .expect(0);
    live.container.ip("addr del fd77::9/64 dev eth0");
    let _ = live.becomes("-6 addr show dev eth0", |text| !text.contains("fd77::9/64"));
    let accept_ra = ["exec", ID, "cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"];
    assert_eq!(live.hull.hull(&accept_ra).text(), "0\n");
    live.end();
}

/// Sends a router advertisement (RFC 4861 §4.2) with the prefix `fd66::/64` for all hosts behind a link of a namespace.
fn advertise(netns: &Netns, link: &str) {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let index = &netns.ip_json(&format!("link show dev {link}"))[0]["ifindex"];
    let index = u32::try_from(index.as_u64().expect("index")).expect("index");
    // A router is known by its link-local address, which has to have been judged.
    assert!(eventually(|| {
        let addresses = netns.ip(&format!("-6 addr show dev {link} scope link -tentative"));
        addresses.contains("fe80:")
    }));
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend(1800_u16.to_be_bytes());
    message.extend([0; 8]);
    // Prefix information (§4.6.2): on link, and for autonomous configuration.
    message.extend([3, 4, 64, 0xc0]);
    message.extend(3600_u32.to_be_bytes());
    message.extend(1800_u32.to_be_bytes());
    message.extend([0; 4]);
    message.extend(Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, 0).octets());
    let path = netns.path();
    let send = move || {
        setns(
            fs::File::open(path).expect("namespace"),
            CloneFlags::CLONE_NEWNET,
        )
        .expect("setns");
        let socket = socket(
            AddressFamily::Inet6,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::IcmpV6,
        )
        .expect("raw socket");
        setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).expect("hops");
        let to = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, index));
        sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty()).expect("send");
    };
    // A thread of its own, which enters the namespace.
    std::thread::spawn(send).join().expect("sent");
}

/// How long changes take to reach the guest. Printed only: the machine may be an emulated one.
#[test]
fn latency_of_a_change() {
    let live = Live::running(&["/usr/bin/ip", "monitor", "address", "link"]);
    let log = live.output.clone();
    // It says nothing of what was before it listened.
    for number in 1.. {
        live.container
            .ip(&format!("addr add 10.89.{number}.1/24 dev eth0"));
        std::thread::sleep(Duration::from_millis(500));
        if fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            break;
        }
        assert!(number < 100, "{}", live.monitor_log());
    }
    let mut times = Vec::new();
    for number in 1..=20 {
        let address = format!("10.90.{number}.1/24");
        let start = Instant::now();
        live.container.ip(&format!("addr add {address} dev eth0"));
        let command = start.elapsed();
        assert!(await_text(&log, &address), "{}", live.monitor_log());
        times.push((start.elapsed(), command));
        // Each is a burst of its own.
        std::thread::sleep(Duration::from_millis(300));
    }
    times.sort();
    let start = Instant::now();
    live.cable("eth1", "10.91.0.2/24");
    let command = start.elapsed();
    assert!(await_text(&log, "10.91.0.2/24"), "{}", live.monitor_log());
    println!(
        "address to guest: median {:?}, worst {:?}, of which ip(8) took {:?}; \
         new interface to guest: {:?}, of which ip(8) took {command:?}",
        times[times.len() / 2].0,
        times[times.len() - 1].0,
        times[times.len() / 2].1,
        start.elapsed(),
    );
    live.end();
}

fn await_text(file: &Path, text: &str) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if fs::read_to_string(file).is_ok_and(|all| all.contains(text)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}
