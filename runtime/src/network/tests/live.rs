//! What changes in a namespace while a sandbox lives: that it is heard of, and what the guest is told.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::{Model, Watch};
use super::lab::{Lab, cidrs, interface, run};

/// `IFA_F_DEPRECATED` of <linux/if_addr.h>.
const DEPRECATED: u32 = 0x20;

/// Whether `watch` hears of something within `limit`, in milliseconds.
fn hears(watch: &mut Watch, limit: u16) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(limit.into()) {
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(limit)).unwrap() > 0 && watch.drain().unwrap() {
            return true;
        }
    }
    false
}

/// Waits until the kernel has told all of what it does by itself with new links.
fn settle(watch: &mut Watch) {
    while hears(watch, 300) {}
}

#[test]
fn every_kind_of_change_is_heard_of() {
    let lab = Lab::with_eth0();
    let mut watch = lab.pod.run(Watch::start).unwrap().unwrap();
    for script in [
        "ip link add other0 type bridge",
        "ip link set other0 up",
        "ip link set eth0 mtu 1400",
        "ip link set eth0 address 02:42:0a:00:00:77",
        "ip link set other0 down; ip link set other0 name other1",
        "ip address add 10.0.0.9/24 dev eth0",
        "ip address del 10.0.0.9/24 dev eth0",
        "ip address add fd00::9/64 dev eth0 nodad",
        "ip address change fd00::9/64 dev eth0 preferred_lft 0",
        "ip route add 192.0.2.0/24 via 10.0.0.1",
        "ip route del 192.0.2.0/24",
        "ip -6 route add fd09::/64 via fd00::1",
        "ip rule add from 10.0.0.2 lookup 100",
        "ip -6 rule add from fd00::2 lookup 100",
        "ip neighbour add 10.0.0.7 lladdr 02:00:00:00:00:07 dev eth0",
        "ip -6 neighbour add fd00::7 lladdr 02:00:00:00:00:07 dev eth0",
        "tc qdisc add dev eth0 ingress",
        "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6",
        "ip link del other1",
    ] {
        watch.drain().unwrap();
        run(&lab.pod, script);
        assert!(hears(&mut watch, 10_000), "{script}");
    }
}

#[test]
fn neighbours_that_the_kernel_learns_are_no_news_and_permanent_ones_are() {
    let lab = Lab::with_eth0();
    let mut watch = lab.pod.run(Watch::start).unwrap().unwrap();
    settle(&mut watch);
    for script in [
        "ip neighbour replace 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud reachable",
        "ip neighbour replace fd00::1 lladdr 02:00:00:00:00:01 dev eth0 nud stale",
        "ip neighbour del 10.0.0.1 dev eth0",
    ] {
        run(&lab.pod, script);
        assert!(!hears(&mut watch, 100), "{script}");
    }
    run(
        &lab.pod,
        "ip neighbour add 10.0.0.7 lladdr 02:00:00:00:00:07 dev eth0",
    );
    assert!(hears(&mut watch, 10_000));
    watch.expect_neighbours(HashSet::from([IpAddr::from([10, 0, 0, 7])]));
    run(
        &lab.pod,
        "ip neighbour change 10.0.0.7 lladdr 02:00:00:00:00:07 dev eth0 nud reachable",
    );
    assert!(hears(&mut watch, 10_000));
}

#[test]
fn events_that_the_kernel_has_no_room_for_are_one_event() {
    let lab = Lab::with_eth0();
    let mut watch = lab.pod.run(Watch::start).unwrap().unwrap();
    run(
        &lab.pod,
        "for number in $(seq 1 2000); do
             echo address add 10.1.$((number / 250)).$((number % 250))/32 dev eth0
         done | ip -batch -",
    );
    assert!(watch.drain().unwrap());
    settle(&mut watch);
    run(&lab.pod, "ip address add 10.2.0.1/32 dev eth0");
    assert!(hears(&mut watch, 10_000));
}

#[test]
fn hulls_own_changes_end_in_silence() {
    for model in [Model::Bridge, Model::Tc] {
        let mut lab = Lab::with_eth0();
        let mut watch = lab.pod.run(Watch::start).unwrap().unwrap();
        let first = lab.reconcile(model);
        assert_eq!(first.attach.len(), 1);
        // The carriers of the new links are noticed a moment later.
        for _ in 0..20 {
            if !hears(&mut watch, 1000) {
                break;
            }
            let again = lab.reconcile(model);
            assert!(again.attach.is_empty() && again.detach.is_empty());
            assert_eq!(again.guest, first.guest);
        }
        assert!(!watch.drain().unwrap());
    }
}

#[test]
fn a_nic_is_named_until_the_vm_has_let_go_of_it() {
    let mut lab = Lab::with_eth0();
    let _first = lab.reconcile(Model::Bridge);
    run(&lab.host, "ip link del veth0");
    let _second = lab.reconcile(Model::Bridge);
    // A process that was killed before it took the NIC from the VM has left it in what was kept.
    let kept = lab.kept.lock().unwrap().clone();
    assert_eq!(kept.leaving, ["net0"]);
    lab.cable("veth0", "eth0", "02:42:0a:00:00:02");
    lab.state = kept;
    let options = super::lab::options(Model::Bridge);
    let third =
        super::super::reconcile(&lab.pod, &options, &mut lab.state, &mut |_| Ok(())).unwrap();
    assert_eq!(third.detach, ["net0"]);
    // Its index is not given to another before.
    assert_eq!(third.attach[0].config.id, "net1");
}

#[test]
fn an_address_is_carried_once_it_is_known_to_be_nobody_elses() {
    let mut lab = Lab::with_eth0();
    run(
        &lab.pod,
        "echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_dad
         echo 5 > /proc/sys/net/ipv6/conf/eth0/dad_transmits
         ip address add fd00::aa/64 dev eth0",
    );
    let before = lab.reconcile(Model::Bridge);
    assert!(before.settling);
    assert!(!cidrs(interface(&before.guest, "eth0")).contains(&"fd00::aa/64"));
    run(
        &lab.pod,
        "until ip -6 address show dev eth0 -tentative | grep -q fd00::aa; do sleep 0.05; done",
    );
    let after = lab.reconcile(Model::Bridge);
    assert!(!after.settling);
    assert!(cidrs(interface(&after.guest, "eth0")).contains(&"fd00::aa/64"));
}

#[test]
fn lifetimes_by_hand_are_carried_and_deprecation_is_told() {
    let mut lab = Lab::with_eth0();
    run(
        &lab.pod,
        "ip address add fd00::5/64 dev eth0 nodad valid_lft 1000 preferred_lft 500
         ip address change fd00::2/64 dev eth0 preferred_lft 0",
    );
    let guest = lab.reconcile(Model::Bridge).guest;
    let eth0 = interface(&guest, "eth0");
    let flags = |cidr: &str| {
        let mut addresses = eth0.addresses.iter();
        addresses
            .find(|address| address.cidr == cidr)
            .map(|address| address.flags & DEPRECATED)
    };
    assert_eq!(flags("fd00::5/64"), Some(0));
    assert_eq!(flags("fd00::2/64"), Some(DEPRECATED));
}

#[test]
fn an_uplink_that_was_down_has_no_address_of_hulls_in_the_guest() {
    let mut lab = Lab::with_eth0();
    let _first = lab.reconcile(Model::Bridge);
    run(
        &lab.pod,
        "ip link set eth0 down
         ip link set eth0 up
         until ip -6 address show dev eth0 scope link | grep -q fe80::caff:fefe:0 ||
             ip -6 address show dev eth0 scope link -tentative | grep -q fe80; do sleep 0.05; done
         ip -6 address show dev eth0",
    );
    lab.settle();
    let guest = lab.reconcile(Model::Bridge).guest;
    let eth0 = interface(&guest, "eth0");
    let is_link_local = |cidr: &&str| cidr.starts_with("fe80");
    let link_local: Vec<&str> = cidrs(eth0).into_iter().filter(is_link_local).collect();
    assert_eq!(link_local, ["fe80::42:aff:fe00:2/64"]);

    // As the uplink of another NIC it has the MAC address of the first still in that address.
    run(&lab.pod, "ip link set eth0 address 02:42:0a:00:00:99");
    let second = lab.reconcile(Model::Bridge);
    assert_eq!(second.attach[0].config.id, "net1");
    let eth0 = interface(&second.guest, "eth0");
    let link_local: Vec<&str> = cidrs(eth0).into_iter().filter(is_link_local).collect();
    assert_eq!(link_local, ["fe80::42:aff:fe00:99/64"]);
}

#[test]
fn routers_are_ignored_in_the_guest_where_they_are_on_the_uplink() {
    let mut lab = Lab::with_eth0();
    let told = |lab: &mut Lab| {
        let guest = lab.reconcile(Model::Bridge).guest;
        let eth0 = interface(&guest, "eth0");
        (
            eth0.ignore_router_advertisements,
            eth0.no_address_autoconfiguration,
        )
    };
    run(
        &lab.pod,
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/forwarding
         echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra
         echo 1 > /proc/sys/net/ipv6/conf/eth0/autoconf",
    );
    assert_eq!(told(&mut lab), (false, false));
    run(
        &lab.pod,
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/autoconf
         echo 1 > /proc/sys/net/ipv6/conf/eth0/forwarding",
    );
    assert_eq!(told(&mut lab), (true, true));
    run(&lab.pod, "echo 2 > /proc/sys/net/ipv6/conf/eth0/accept_ra");
    assert_eq!(told(&mut lab), (false, true));
    run(
        &lab.pod,
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/forwarding
         echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_ra",
    );
    assert_eq!(told(&mut lab), (true, true));
}
