//! A sandbox with many interfaces: NICs share PCI slots, and come and go one by one.

use std::fmt::Write as _;

use hull_tests::{Bundle, Hull, LeakCheck, Netns, run_ok};

const INTERFACES: usize = 64;

/// Makes `numbers` interfaces `net<n>` in `container`, with 10.83.n.2 and a peer with 10.83.n.1.
fn make_interfaces(container: &Netns, peer: &Netns, numbers: impl Iterator<Item = usize> + Clone) {
    let batch = tempfile::NamedTempFile::new().unwrap();
    let mut lines = String::new();
    for number in numbers.clone() {
        for line in [
            format!(
                "link add net{number} type veth peer name peer{number} netns {}",
                peer.name()
            ),
            format!("addr add 10.83.{number}.2/24 dev net{number}"),
            format!("link set net{number} up"),
        ] {
            writeln!(lines, "{line}").unwrap();
        }
    }
    std::fs::write(batch.path(), &lines).unwrap();
    container.ip(&format!("-batch {}", batch.path().display()));
    lines.clear();
    for number in numbers {
        writeln!(lines, "addr add 10.83.{number}.1/24 dev peer{number}").unwrap();
        writeln!(lines, "link set peer{number} up").unwrap();
    }
    std::fs::write(batch.path(), &lines).unwrap();
    peer.ip(&format!("-batch {}", batch.path().display()));
}

#[test]
fn sixty_four_interfaces_work_and_come_and_go_one_by_one() {
    let leaks = LeakCheck::new();
    let (container, peer) = (Netns::new(), Netns::new());
    make_interfaces(&container, &peer, 0..INTERFACES);
    let macs: Vec<String> = container
        .ip_json("link show")
        .as_array()
        .unwrap()
        .iter()
        .filter(|link| link["ifname"].as_str().unwrap().starts_with("net"))
        .map(|link| link["address"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(macs.len(), INTERFACES);
    let hull = Hull::new();
    let bundle = Bundle::shell("sleep 1000").in_netns(&container.path());
    let _ = hull.create(&bundle, "many");
    // Between create and start some go, from the middle of a slot and at its beginning, and others come.
    for number in [5, 7, 40] {
        container.ip(&format!("link delete net{number}"));
    }
    make_interfaces(&container, &peer, [64, 65, 66].into_iter());
    let _ = hull.hull(&["start", "many"]).expect(0);
    let in_guest = |script: &str| {
        hull.hull(&["exec", "many", "sh", "-c", script])
            .expect(0)
            .text()
    };
    let names = in_guest("ls /sys/class/net");
    let nics = names.lines().filter(|name| name.starts_with("net"));
    assert_eq!(nics.count(), INTERFACES, "{names}");
    for gone in ["net5\n", "net7\n", "net40\n"] {
        assert!(!names.contains(gone), "{names}");
    }
    // All of them, and each under its own address.
    let kept = (0..67).filter(|number| ![5, 7, 40].contains(number));
    let list: Vec<String> = kept.clone().map(|number| number.to_string()).collect();
    in_guest(&format!(
        "for n in {}; do ping -c 1 -W 20 10.83.$n.1 >/dev/null || {{ echo no answer on net$n; exit 1; }}; done",
        list.join(" ")
    ));
    let addresses = in_guest("cat /sys/class/net/net*/address");
    for (number, mac) in macs.iter().enumerate() {
        assert_eq!(
            addresses.contains(mac),
            ![5, 7, 40].contains(&number),
            "net{number}"
        );
    }
    for number in [0, 31, 66] {
        peer.await_answer_of(format!("10.83.{number}.2"));
    }
    let _ = hull.hull(&["delete", "--force", "many"]).expect(0);
    let left = container.links();
    assert!(
        left.iter().all(|name| !name.starts_with("hull-")),
        "{left:?}"
    );
    assert_eq!(
        run_ok("ip", &["-n", container.name(), "link", "show", "net3"])
            .lines()
            .count(),
        2
    );
    drop((container, peer));
    leaks.nothing_left(&hull.root());
}
