//! The bridge model through the life of a sandbox.

use super::super::Model;
use super::lab::{Lab, cidrs, interface, run};

const EVERYTHING: &str = "ip link; bridge link";

#[test]
fn tap_and_uplink_become_ports_of_a_bridge() {
    let mut lab = Lab::with_eth0();
    run(&lab.pod, "ip link set eth0 mtu 1400");
    let reconciled = lab.reconcile(Model::Bridge);
    let links = run(&lab.pod, "ip -details link");
    let bridge = run(&lab.pod, "ip -details link show hull-br0");
    for setting in [
        "stp_state 0",
        "forward_delay 0",
        "mcast_snooping 0",
        "ageing_time 30000",
    ] {
        assert!(bridge.contains(setting), "{setting}: {bridge}");
    }
    let tap = run(&lab.pod, "ip -details link show hull-tap0");
    for setting in ["mtu 1400", "master hull-br0", "tun type tap", "vnet_hdr on"] {
        assert!(tap.contains(setting), "{setting}: {tap}");
    }
    let uplink = run(&lab.pod, "ip -details link show eth0");
    for setting in [
        "02:00:ca:fe:00:00",
        "master hull-br0",
        "learning off",
        "mtu 1400",
        "UP",
    ] {
        assert!(uplink.contains(setting), "{setting}: {uplink}");
    }
    // The engines still find the container's addresses where they have put them.
    assert!(
        run(&lab.pod, "ip address show eth0").contains("10.0.0.2/24"),
        "{links}"
    );

    // Nothing has changed, so nothing is done; the guest's view is the same.
    let before = run(&lab.pod, EVERYTHING);
    let again = lab.reconcile(Model::Bridge);
    assert!(again.attach.is_empty() && again.detach.is_empty());
    assert_eq!(again.guest, reconciled.guest);
    assert_eq!(run(&lab.pod, EVERYTHING), before);
}

#[test]
fn several_queue_pairs_make_a_multi_queue_tap() {
    let lab = Lab::with_eth0();
    let mut state = super::super::NetworkState::default();
    let options = super::super::Options {
        model: Model::Bridge,
        queue_pairs: 4,
        chosen: true,
    };
    let reconciled =
        super::super::reconcile(&lab.pod, &options, &mut state, &mut |_| Ok(())).unwrap();
    assert_eq!(reconciled.attach[0].taps.len(), 4);
    let tap = run(&lab.pod, "ip -details link show hull-tap0");
    assert!(tap.contains("multi_queue numqueues 4"), "{tap}");
}

#[test]
fn undo_leaves_the_namespace_as_it_was() {
    let mut lab = Lab::with_eth0();
    lab.cable("veth1", "fifteen-letters", "02:42:0a:00:01:02");
    lab.cable("veth2", "eth2", "02:42:0a:00:02:02");
    run(
        &lab.pod,
        "ip neighbour add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0
         ip neighbour add fd00::77 lladdr 02:00:00:00:00:77 dev eth0
         ip route add 10.9.0.0/16 via 10.0.0.1 src 10.0.0.2 metric 50
         ip link set eth2 down
         ip link set fifteen-letters arp off",
    );
    let before = lab.pod_as_seen();
    let reconciled = lab.reconcile(Model::Bridge);
    assert_eq!(reconciled.attach.len(), 3);
    assert_ne!(lab.pod_as_seen(), before);
    drop(reconciled);
    lab.undo_from_kept();
    assert_eq!(lab.pod_as_seen(), before);
    lab.undo();
    assert_eq!(lab.pod_as_seen(), before);
}

#[test]
fn an_interface_that_comes_late_is_wired_at_the_next_look() {
    let mut lab = Lab::new();
    let nothing = lab.reconcile(Model::Bridge);
    assert!(nothing.attach.is_empty() && nothing.guest.interfaces.is_empty());
    lab.cable("veth0", "eth0", "02:42:0a:00:00:02");
    let first = lab.reconcile(Model::Bridge);
    assert_eq!(first.attach[0].config.id, "net0");
    lab.cable("veth1", "eth1", "02:42:0a:00:01:02");
    run(&lab.pod, "ip address add 10.0.1.2/24 dev eth1");
    let second = lab.reconcile(Model::Bridge);
    assert_eq!(second.attach.len(), 1);
    assert_eq!(second.attach[0].config.id, "net1");
    assert_eq!(second.guest.interfaces.len(), 2);
    assert_eq!(cidrs(interface(&second.guest, "eth1"))[0], "10.0.1.2/24");
}

#[test]
fn changes_of_an_uplink_are_followed() {
    let mut lab = Lab::with_eth0();
    let _first = lab.reconcile(Model::Bridge);
    run(
        &lab.pod,
        "ip address add 10.0.0.9/24 dev eth0
         ip address del fd00::2/64 dev eth0
         ip link set eth0 mtu 1280
         ip link set eth0 down
         ip link set eth0 name net9",
    );
    let second = lab.reconcile(Model::Bridge);
    assert!(second.attach.is_empty() && second.detach.is_empty());
    let net9 = interface(&second.guest, "net9");
    assert_eq!((net9.mtu, net9.up), (1280, false));
    assert!(cidrs(net9).contains(&"10.0.0.9/24"));
    assert!(!cidrs(net9).contains(&"fd00::2/64"));
    assert!(run(&lab.pod, "ip link show hull-tap0").contains("mtu 1280"));
    assert_eq!(lab.kept.lock().unwrap().nics[0].uplink.name, "net9");
}

#[test]
fn a_new_mac_address_or_a_larger_mtu_makes_a_new_nic() {
    let mut lab = Lab::with_eth0();
    let first = lab.reconcile(Model::Bridge);
    run(&lab.pod, "ip link set eth0 address 02:42:0a:00:00:99");
    let second = lab.reconcile(Model::Bridge);
    assert_eq!(second.detach, ["net0"]);
    // The VMM still has the first tap, and so its name is taken.
    assert_eq!(second.attach[0].config.id, "net1");
    assert_eq!(second.attach[0].config.mac, "02:42:0a:00:00:99");
    assert!(run(&lab.pod, "ip link show eth0").contains("02:00:ca:fe:00:01"));
    drop(first);

    run(&lab.pod, "ip link set eth0 mtu 9000");
    let third = lab.reconcile(Model::Bridge);
    assert_eq!(third.detach, ["net1"]);
    assert_eq!(
        (
            third.attach[0].config.id.as_str(),
            third.attach[0].config.mtu
        ),
        ("net0", 9000)
    );
    drop(second);
    drop(third);
    lab.undo();
    let links = run(&lab.pod, "ip link");
    assert!(
        links.contains("02:42:0a:00:00:99") && !links.contains("hull-"),
        "{links}"
    );
}

#[test]
fn a_vanished_uplink_takes_its_bridge_along() {
    let mut lab = Lab::with_eth0();
    lab.cable("veth1", "eth1", "02:42:0a:00:01:02");
    let first = lab.reconcile(Model::Bridge);
    run(&lab.host, "ip link del veth0");
    let second = lab.reconcile(Model::Bridge);
    assert_eq!(second.detach, ["net0"]);
    assert_eq!(second.guest.interfaces.len(), 1);
    let links = run(&lab.pod, "ip link");
    assert!(
        !links.contains("hull-br0") && links.contains("hull-br1"),
        "{links}"
    );
    // The tap stays until the VMM has let go of it.
    assert!(links.contains("hull-tap0"), "{links}");
    drop(first);
    drop(second);
    assert!(!run(&lab.pod, "ip link").contains("hull-tap"));
    // net1 lost its tap, as when a VMM dies: it is made anew.
    let third = lab.reconcile(Model::Bridge);
    assert_eq!(third.detach, ["net1"]);
    assert_eq!(third.attach[0].config.id, "net0");
}

#[test]
fn undo_after_the_uplink_has_vanished() {
    let mut lab = Lab::with_eth0();
    let _reconciled = lab.reconcile(Model::Bridge);
    run(&lab.host, "ip link del veth0");
    lab.undo_from_kept();
    let links = run(&lab.pod, "ip -oneline link");
    assert_eq!(links.lines().count(), 1, "{links}");
}

#[test]
fn an_uplink_that_moves_out_leaves_nothing() {
    let mut lab = Lab::with_eth0();
    let reconciled = lab.reconcile(Model::Bridge);
    // What Docker does on disconnect: down, rename, and out of the namespace.
    let host = lab.host_path();
    run(
        &lab.pod,
        &format!(
            "ip link set eth0 down
             ip link set eth0 name away
             ip link set away netns {host}"
        ),
    );
    let second = lab.reconcile(Model::Bridge);
    assert_eq!(second.detach, ["net0"]);
    drop(reconciled);
    let links = run(&lab.pod, "ip -oneline link");
    assert_eq!(links.lines().count(), 1, "{links}");
}

#[test]
fn ipv6_is_off_in_the_guest_where_it_is_off_on_the_uplink() {
    let mut lab = Lab::with_eth0();
    lab.cable("veth1", "eth1", "02:42:0a:00:01:02");
    run(
        &lab.pod,
        "echo 1 > /proc/sys/net/ipv6/conf/eth1/disable_ipv6",
    );
    let guest = lab.reconcile(Model::Bridge).guest;
    assert!(!interface(&guest, "eth0").disable_ipv6);
    assert!(interface(&guest, "eth1").disable_ipv6);
    assert_eq!(cidrs(interface(&guest, "eth1")).len(), 0);
}

#[test]
fn the_state_is_of_one_namespace() {
    let mut lab = Lab::with_eth0();
    let _reconciled = lab.reconcile(Model::Bridge);
    let other = Lab::new();
    let error = super::super::undo(&other.pod, &mut lab.state, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, super::super::Error::OtherNetns), "{error}");
    assert_eq!(lab.state.nics.len(), 1);
}

#[test]
fn bridge_filters_are_off_while_a_nic_is_there() {
    let mut lab = Lab::with_eth0();
    let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let there = run(&lab.pod, &format!("test -e {path} && echo there || true"));
    if there.is_empty() {
        // Without br_netfilter there is nothing to switch off, and nothing to remember.
        let _reconciled = lab.reconcile(Model::Bridge);
        assert_eq!(lab.state.sysctls, []);
        return;
    }
    run(&lab.pod, &format!("echo 1 > {path}"));
    let before = lab.pod_as_seen();
    let reconciled = lab.reconcile(Model::Bridge);
    assert_eq!(run(&lab.pod, &format!("cat {path}")), "0\n");
    drop(reconciled);
    lab.undo_from_kept();
    assert_eq!(lab.pod_as_seen(), before);
}

#[test]
fn sixty_four_interfaces_fit_one_sandbox() {
    let mut lab = Lab::new();
    let pod = lab.pod_path();
    run(
        &lab.host,
        &format!(
            "for number in $(seq 0 63); do
                 echo link add veth$number type veth peer name net$number netns {pod}
                 echo link set veth$number up
             done | ip -batch -"
        ),
    );
    run(
        &lab.pod,
        "for number in $(seq 0 63); do
             echo address add 10.$number.0.2/24 dev net$number
             echo link set net$number up
         done | ip -batch -",
    );
    let reconciled = lab.reconcile(Model::Bridge);
    assert_eq!(reconciled.attach.len(), 64);
    assert_eq!(reconciled.guest.interfaces.len(), 64);
    let last = &reconciled.attach[63].config;
    assert_eq!(last.id, "net63");
    assert!(run(&lab.pod, "ip link show net63").contains("02:00:ca:fe:00:3f"));
    drop(reconciled);
    lab.undo();
    let links = run(&lab.pod, "ip -oneline link");
    assert_eq!(links.lines().count(), 65, "{links}");
    assert!(!links.contains("hull-"), "{links}");
}
