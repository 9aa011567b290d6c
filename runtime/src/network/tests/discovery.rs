//! What the guest is told of a namespace.

use super::super::{Model, NotCarried};
use super::lab::{Lab, cidrs, interface, run};

const IFA_F_NOPREFIXROUTE: u32 = 0x200;

#[test]
fn several_interfaces_with_all_their_addresses() {
    let mut lab = Lab::with_eth0();
    lab.cable("veth1", "fifteen-letters", "02:42:0a:00:01:02");
    lab.cable("veth2", "eth2", "02:42:0a:00:02:02");
    run(
        &lab.pod,
        "ip address add 10.0.0.3/24 dev eth0
         ip address add 10.0.1.2/16 brd 10.0.255.255 dev fifteen-letters label other:label
         ip link set fifteen-letters mtu 9000
         ip link set eth2 down",
    );
    let reconciled = lab.reconcile(Model::Bridge);
    assert_eq!(reconciled.not_carried, []);
    let guest = &reconciled.guest;
    assert_eq!(guest.interfaces.len(), 3);

    let eth0 = interface(guest, "eth0");
    assert_eq!(eth0.mac, "02:42:0a:00:00:02");
    assert_eq!((eth0.mtu, eth0.up), (1500, true));
    let link_local = "fe80::42:aff:fe00:2/64";
    assert_eq!(
        cidrs(eth0),
        ["10.0.0.2/24", "10.0.0.3/24", "fd00::2/64", link_local]
    );
    assert_eq!(eth0.addresses[0].broadcast, "10.0.0.255");
    assert_eq!(eth0.addresses[3].scope, u32::from(libc::RT_SCOPE_LINK));
    assert!(
        eth0.addresses
            .iter()
            .all(|address| address.flags & IFA_F_NOPREFIXROUTE == 0)
    );

    let long = interface(guest, "fifteen-letters");
    assert_eq!(long.mtu, 9000);
    assert_eq!(cidrs(long)[0], "10.0.1.2/16");
    assert_eq!(long.addresses[0].broadcast, "10.0.255.255");

    let eth2 = interface(guest, "eth2");
    assert_eq!((eth2.up, cidrs(eth2).len()), (false, 0));

    let attached: Vec<_> = reconciled
        .attach
        .iter()
        .map(|nic| {
            (
                nic.config.id.as_str(),
                nic.config.mac.as_str(),
                nic.config.mtu,
            )
        })
        .collect();
    assert_eq!(
        attached,
        [
            ("net0", "02:42:0a:00:00:02", 1500),
            ("net1", "02:42:0a:00:01:02", 9000),
            ("net2", "02:42:0a:00:02:02", 1500),
        ]
    );
}

#[test]
fn routes_keep_prefix_gateway_source_metric_table_and_flags() {
    let mut lab = Lab::with_eth0();
    run(
        &lab.pod,
        "ip route add 10.9.0.0/16 via 10.0.0.1 src 10.0.0.2 metric 50 mtu 1300
         ip route add 10.10.0.0/24 via 192.0.2.1 dev eth0 onlink
         ip route add 10.11.0.0/24 dev eth0 table 100 proto static scope link
         ip route add unreachable 10.12.0.0/24
         ip route add fd01::/48 via fd00::1 metric 77
         ip route add blackhole fd02::/64",
    );
    let guest = lab.reconcile(Model::Bridge).guest;
    let routes: Vec<String> = guest
        .routes
        .iter()
        .map(|route| {
            format!(
                "{} via={} src={} dev={} table={} kind={} scope={} proto={} metric={} mtu={} flags={}",
                route.destination,
                route.gateway,
                route.source,
                route.interface,
                route.table,
                route.kind,
                route.scope,
                route.protocol,
                route.metric,
                route.mtu,
                route.flags
            )
        })
        .collect();
    let mut expected = vec![
        "0.0.0.0/0 via=10.0.0.1 src= dev=eth0 table=254 kind=1 scope=0 proto=3 metric=0 mtu=0 flags=0",
        "10.9.0.0/16 via=10.0.0.1 src=10.0.0.2 dev=eth0 table=254 kind=1 scope=0 proto=3 metric=50 mtu=1300 flags=0",
        "10.10.0.0/24 via=192.0.2.1 src= dev=eth0 table=254 kind=1 scope=0 proto=3 metric=0 mtu=0 flags=4",
        "10.11.0.0/24 via= src= dev=eth0 table=100 kind=1 scope=253 proto=4 metric=0 mtu=0 flags=0",
        "10.12.0.0/24 via= src= dev= table=254 kind=7 scope=0 proto=3 metric=0 mtu=0 flags=0",
        "::/0 via=fd00::1 src= dev=eth0 table=254 kind=1 scope=0 proto=3 metric=1024 mtu=0 flags=0",
        "fd01::/48 via=fd00::1 src= dev=eth0 table=254 kind=1 scope=0 proto=3 metric=77 mtu=0 flags=0",
        "fd02::/64 via= src= dev= table=254 kind=6 scope=0 proto=3 metric=1024 mtu=0 flags=0",
    ];
    let mut found: Vec<&str> = routes.iter().map(String::as_str).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_replaced_prefix_route_stays_replaced() {
    let mut lab = Lab::with_eth0();
    // What CNI's ptp plugin does.
    run(
        &lab.pod,
        "ip route del default
         ip route del 10.0.0.0/24 dev eth0
         ip route add 10.0.0.1 dev eth0 src 10.0.0.2
         ip route add 10.0.0.0/24 via 10.0.0.1 src 10.0.0.2",
    );
    let guest = lab.reconcile(Model::Bridge).guest;
    let eth0 = interface(&guest, "eth0");
    assert_eq!(eth0.addresses[0].cidr, "10.0.0.2/24");
    assert_eq!(
        eth0.addresses[0].flags & IFA_F_NOPREFIXROUTE,
        IFA_F_NOPREFIXROUTE
    );
    assert_eq!(eth0.addresses[1].cidr, "fd00::2/64");
    assert_eq!(eth0.addresses[1].flags & IFA_F_NOPREFIXROUTE, 0);
    let destinations: Vec<&str> = guest
        .routes
        .iter()
        .map(|route| route.destination.as_str())
        .collect();
    assert_eq!(destinations, ["10.0.0.0/24", "10.0.0.1/32", "::/0"]);
}

#[test]
fn rules_and_permanent_neighbours_are_carried() {
    let mut lab = Lab::with_eth0();
    run(
        &lab.pod,
        "ip rule add from 10.0.0.2 table 100 priority 900
         ip rule add fwmark 0x10/0xff table 300 priority 901
         ip -6 rule add to fd09::/48 oif eth0 blackhole priority 902
         ip rule add not from 10.0.0.9 table 100 priority 903
         ip neighbour add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0
         ip neighbour add fd00::77 lladdr 02:00:00:00:00:77 dev eth0
         ip neighbour add proxy 10.0.0.78 dev eth0",
    );
    let reconciled = lab.reconcile(Model::Bridge);
    let rules: Vec<_> = reconciled
        .guest
        .rules
        .iter()
        .map(|rule| (rule.ipv6, rule.priority, rule.table, rule.action))
        .collect();
    assert_eq!(
        rules,
        [
            (false, 900, 100, 1),
            (false, 901, 300, 1),
            (true, 902, 0, 6)
        ]
    );
    let [from, mark, to] = &reconciled.guest.rules[..] else {
        unreachable!("there are three");
    };
    assert_eq!(from.source, "10.0.0.2/32");
    assert_eq!((mark.fwmark, mark.fwmask), (0x10, 0xff));
    assert_eq!(to.destination, "fd09::/48");
    assert_eq!(to.output_interface, "eth0");
    assert!(
        matches!(
            reconciled.not_carried[..],
            [NotCarried::Rule { priority: 903, .. }]
        ),
        "{:?}",
        reconciled.not_carried
    );
    let neighbours: Vec<_> = reconciled
        .guest
        .neighbours
        .iter()
        .map(|of| {
            (
                of.address.as_str(),
                of.mac.as_str(),
                of.interface.as_str(),
                of.state,
            )
        })
        .collect();
    assert_eq!(
        neighbours,
        [
            ("10.0.0.77", "02:00:00:00:00:77", "eth0", 0x80),
            ("fd00::77", "02:00:00:00:00:77", "eth0", 0x80),
        ]
    );
}

#[test]
fn what_a_vm_cannot_have_is_named_with_the_reason() {
    let mut lab = Lab::with_eth0();
    lab.cable("veth1", "eth1", "02:42:0a:00:01:02");
    run(
        &lab.pod,
        "ip tuntap add tun0 mode tun
         ip tuntap add idle0 mode tun
         ip link set tun0 up
         ip link add mine type bridge
         ip link set mine up
         ip link set eth1 master mine
         ip route add 10.19.0.0/16 via 10.0.0.1 initcwnd 10
         ip route add 10.20.0.0/16 nexthop via 10.0.0.1 weight 1 nexthop via 10.0.0.9 weight 1",
    );
    let reconciled = lab.reconcile(Model::Bridge);
    let mut named: Vec<String> = reconciled
        .not_carried
        .iter()
        .map(ToString::to_string)
        .collect();
    named.sort();
    assert_eq!(
        named,
        [
            "interface tun0 cannot be given to the VM: it does not carry Ethernet frames",
            "route 10.19.0.0/16 goes to the VM without its metrics other than the MTU",
            "route 10.20.0.0/16 cannot be given to the VM: it has several next hops",
        ]
    );
    // The port of a bridge is behind it, and the bridge is an interface.
    let names = |name: &str| interface(&reconciled.guest, name).name.clone();
    assert_eq!([names("eth0"), names("mine")], ["eth0", "mine"]);
    assert_eq!(reconciled.guest.interfaces.len(), 2);
}

#[test]
fn without_a_model_no_interface_is_taken() {
    let mut lab = Lab::with_eth0();
    let before = lab.pod_as_seen();
    let reconciled = lab.reconcile(Model::None);
    assert!(reconciled.attach.is_empty() && reconciled.guest.interfaces.is_empty());
    assert_eq!(lab.pod_as_seen(), before);
}
