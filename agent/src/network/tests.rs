//! The network on real links, in a network namespace that each test makes for its thread. Needs root and ip(8).

use std::error::Error;
use std::fs;
use std::process::Command;

use hull_agent_protocol::agent::{Interface, IpAddress, Neighbour, Route, Rule};
use nix::sched::{CloneFlags, unshare};

use super::*;

type TestResult = Result<(), Box<dyn Error + Send + Sync>>;

const FIRST: &str = "02:00:00:00:00:01";
const SECOND: &str = "02:00:00:00:00:02";

/// Runs a test in a thread with a network namespace of its own.
fn in_a_namespace(test: impl AsyncFnOnce(&Network) -> TestResult + Send + 'static) -> TestResult {
    let thread = std::thread::spawn(move || -> TestResult {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        // Names below /proc/sys/net are those of the namespace that looks.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // The machine's own devices are not the test's.
        let sysfs = tempfile::tempdir()?;
        let paths = Sysfs {
            rescan: sysfs.path().join("rescan"),
            interfaces: sysfs.path().join("net"),
        };
        runtime.block_on(async {
            bring_loopback_up().await?;
            test(&Network::new(paths)).await
        })
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs ip(8) in the thread's namespace, and gives its output.
fn ip(arguments: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("ip {arguments}: {errors}").into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A link with a MAC address, whose carrier is up: one end of a veth pair.
fn nic(name: &str, mac: &str) -> TestResult {
    ip(&format!(
        "link add {name} address {mac} type veth peer name p-{name}"
    ))?;
    ip(&format!("link set p-{name} up"))?;
    Ok(())
}

fn interface(mac: &str, name: &str, addresses: &[&str]) -> Interface {
    let addresses = addresses.iter().map(|cidr| IpAddress {
        cidr: (*cidr).to_owned(),
        ..Default::default()
    });
    Interface {
        mac: mac.to_owned(),
        name: name.to_owned(),
        mtu: 1500,
        addresses: addresses.collect(),
        up: true,
        ..Default::default()
    }
}

fn route(destination: &str, gateway: &str, interface: &str) -> Route {
    Route {
        destination: destination.to_owned(),
        gateway: gateway.to_owned(),
        interface: interface.to_owned(),
        table: 254,
        scope: if gateway.is_empty() { 253 } else { 0 },
        protocol: 3,
        kind: 1,
        ..Default::default()
    }
}

async fn set(network: &Network, request: SetNetworkRequest) -> Result<Vec<String>, NetworkError> {
    network.set(&request).await
}

#[test]
fn an_interface_gets_its_name_mtu_addresses_and_routes() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        let mut eth0 = interface(FIRST, "eth0", &["10.1.2.3/24", "fd00::3/64"]);
        eth0.mtu = 1400;
        eth0.addresses[0].broadcast = "10.1.2.255".to_owned();
        let mut far = route("10.9.0.0/16", "10.8.0.1", "eth0");
        far.metric = 50;
        far.mtu = 1300;
        far.source = "10.1.2.3".to_owned();
        let mut other_table = route("0.0.0.0/0", "10.1.2.1", "eth0");
        other_table.table = 1000;
        let mut blackhole = route("10.99.0.0/16", "", "");
        blackhole.kind = 6;
        blackhole.scope = 0;
        let mut on_link = route("192.168.7.0/24", "172.31.0.1", "eth0");
        on_link.flags = 4;
        let request = SetNetworkRequest {
            interfaces: vec![eth0],
            routes: vec![
                // Reachable only through the next one.
                far,
                route("10.8.0.0/24", "", "eth0"),
                route("0.0.0.0/0", "10.1.2.1", "eth0"),
                route("::/0", "fd00::1", "eth0"),
                other_table,
                blackhole,
                on_link,
            ],
            neighbours: vec![Neighbour {
                address: "10.1.2.1".to_owned(),
                mac: SECOND.to_owned(),
                interface: "eth0".to_owned(),
                state: 0x80,
                ..Default::default()
            }],
            rules: vec![Rule {
                priority: 100,
                table: 1000,
                source: "10.1.2.3/32".to_owned(),
                fwmark: 7,
                action: 1,
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(set(network, request.clone()).await?, [""; 0]);
        // The same again changes nothing and fails at nothing.
        assert_eq!(set(network, request.clone()).await?, [""; 0]);

        let link = ip("-o link show eth0")?;
        assert!(link.contains("mtu 1400") && link.contains(",UP"), "{link}");
        let addresses = ip("-o addr show eth0")?;
        assert!(
            addresses.contains("10.1.2.3/24 brd 10.1.2.255"),
            "{addresses}"
        );
        let ipv6 = addresses.lines().find(|line| line.contains("fd00::3/64"));
        assert!(
            ipv6.is_some_and(|line| !line.contains("tentative")),
            "{addresses}"
        );
        let routes = ip("route show table all")?;
        for line in [
            "default via 10.1.2.1 dev eth0 \n",
            "default via 10.1.2.1 dev eth0 table 1000",
            "10.9.0.0/16 via 10.8.0.1 dev eth0 src 10.1.2.3 metric 50 mtu 1300",
            "blackhole 10.99.0.0/16",
            "192.168.7.0/24 via 172.31.0.1 dev eth0 onlink",
            "10.1.2.0/24 dev eth0 proto kernel scope link src 10.1.2.3",
        ] {
            assert!(routes.contains(line), "{line} is not in\n{routes}");
        }
        assert!(ip("-6 route show")?.contains("default via fd00::1 dev eth0"));
        assert!(ip("neigh show")?.contains("10.1.2.1 dev eth0 lladdr 02:00:00:00:00:02 PERMANENT"));
        let rules = ip("rule show")?;
        assert!(
            rules.contains("100:\tfrom 10.1.2.3 fwmark 0x7 lookup 1000"),
            "{rules}"
        );
        assert_eq!(rules.lines().count(), 4);

        let bare = SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &["10.1.2.4/24"])],
            ..Default::default()
        };
        assert_eq!(set(network, bare).await?, [""; 0]);
        let addresses = ip("-o addr show eth0")?;
        assert!(
            !addresses.contains("10.1.2.3") && !addresses.contains("fd00"),
            "{addresses}"
        );
        assert!(addresses.contains("10.1.2.4/24"), "{addresses}");
        let routes = ip("route show table all type unicast")?;
        assert!(
            !routes.contains("default") && !routes.contains("10.9"),
            "{routes}"
        );
        assert!(!ip("neigh show nud permanent")?.contains("10.1.2.1"));
        assert_eq!(ip("rule show")?.lines().count(), 3);
        Ok(())
    })
}

#[test]
fn interfaces_swap_their_names() -> TestResult {
    in_a_namespace(async |network| {
        nic("eth0", FIRST)?;
        nic("eth1", SECOND)?;
        let request = |first: &str, second: &str| SetNetworkRequest {
            interfaces: vec![
                interface(FIRST, first, &["10.0.1.1/24"]),
                interface(SECOND, second, &["10.0.2.1/24"]),
            ],
            routes: vec![route("10.5.0.0/16", "10.0.2.9", second)],
            ..Default::default()
        };
        for (first, second) in [("eth0", "eth1"), ("eth1", "eth0"), ("net0", "eth1")] {
            assert_eq!(set(network, request(first, second)).await?, [""; 0]);
            assert!(ip(&format!("-o link show {first}"))?.contains(FIRST));
            assert!(ip(&format!("-o link show {second}"))?.contains(SECOND));
            assert!(ip(&format!("-o addr show {first}"))?.contains("10.0.1.1/24"));
            let routes = ip("route show")?;
            assert!(
                routes.contains(&format!("10.5.0.0/16 via 10.0.2.9 dev {second}")),
                "{routes}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_nic_that_is_not_wanted_any_more_is_set_down_and_its_name_is_free() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        nic("x1", SECOND)?;
        // A container's own link, which the runtime knows nothing of.
        ip("link add own type veth peer name own-peer")?;
        ip("link set own up")?;
        ip("addr add 10.3.3.3/24 dev own")?;
        let both = SetNetworkRequest {
            interfaces: vec![
                interface(FIRST, "eth0", &["10.0.1.1/24", "10.0.1.2/24"]),
                interface(SECOND, "eth1", &["10.0.2.1/24"]),
            ],
            ..Default::default()
        };
        assert_eq!(set(network, both).await?, [""; 0]);
        let one = SetNetworkRequest {
            interfaces: vec![interface(SECOND, "eth0", &["10.0.2.1/24"])],
            ..Default::default()
        };
        assert_eq!(set(network, one).await?, [""; 0]);
        assert!(ip("-o link show eth0")?.contains(SECOND));
        let links = ip("-o addr show")?;
        assert!(!links.contains("10.0.1."), "{links}");
        assert!(links.contains("10.3.3.3/24"), "{links}");
        let gone = ip("-o link show")?;
        let gone = gone
            .lines()
            .find(|line| line.contains(FIRST))
            .unwrap_or_default();
        assert!(
            gone.contains("hull") && gone.contains("state DOWN"),
            "{gone}"
        );
        Ok(())
    })
}

#[test]
fn a_nic_is_waited_for() -> TestResult {
    in_a_namespace(async |network| {
        let request = SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &["10.0.1.1/24"])],
            wait_ms: 5000,
            ..Default::default()
        };
        let later = async {
            sleep(Duration::from_millis(50)).await;
            nic("late", FIRST)
        };
        let (failures, made) = tokio::join!(network.set(&request), later);
        made?;
        assert_eq!(failures?, [""; 0]);
        assert!(ip("-o addr show eth0")?.contains("10.0.1.1/24"));
        assert_eq!(fs::read_to_string(network.pci_rescan())?, "1");
        Ok(())
    })
}

#[test]
fn what_cannot_be_applied_is_told_and_the_rest_is_applied() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        let request = SetNetworkRequest {
            interfaces: vec![
                interface(FIRST, "eth0", &["10.0.1.1/24"]),
                interface(SECOND, "eth1", &["10.0.2.1/24"]),
            ],
            routes: vec![
                route("10.7.0.0/16", "10.66.0.1", "eth0"),
                route("10.6.0.0/16", "10.0.1.9", "eth0"),
                route("10.5.0.0/16", "", "eth1"),
            ],
            ..Default::default()
        };
        let failures = set(network, request).await?;
        assert_eq!(failures.len(), 3, "{failures:?}");
        assert_eq!(
            failures[0],
            "eth1: no NIC has the MAC address 02:00:00:00:00:02"
        );
        assert!(
            failures[1].starts_with("add the route to 10.5.0.0/16: there is no interface eth1")
        );
        assert!(failures[2].starts_with("add the route to 10.7.0.0/16: the kernel refused: "));
        assert!(ip("route show")?.contains("10.6.0.0/16 via 10.0.1.9"));
        Ok(())
    })
}

#[test]
fn ipv6_is_switched_on_for_addresses_and_off_on_request() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
        let mut request = SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &["10.0.1.1/24", "fd00::1/64"])],
            ..Default::default()
        };
        assert_eq!(set(network, request.clone()).await?, [""; 0]);
        assert!(ip("-6 -o addr show eth0")?.contains("fd00::1/64"));
        request.interfaces[0].addresses.pop();
        request.interfaces[0].disable_ipv6 = true;
        assert_eq!(set(network, request).await?, [""; 0]);
        assert_eq!(ip("-6 -o addr show eth0")?, "");
        Ok(())
    })
}

#[test]
fn equal_routes_with_several_gateways_are_all_there() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        nic("x1", SECOND)?;
        let request = SetNetworkRequest {
            interfaces: vec![
                interface(FIRST, "eth0", &["10.0.1.1/24", "fd01::1/64"]),
                interface(SECOND, "eth1", &["10.0.2.1/24", "fd02::1/64"]),
            ],
            routes: vec![
                route("fd77::/64", "fd01::9", "eth0"),
                route("fd77::/64", "fd02::9", "eth1"),
                route("fe80::/64", "", "eth0"),
                route("fe80::/64", "", "eth1"),
            ],
            ..Default::default()
        };
        assert_eq!(set(network, request).await?, [""; 0]);
        let routes = ip("-6 route show fd77::/64")?;
        assert!(
            routes.contains("fd01::9") && routes.contains("fd02::9"),
            "{routes}"
        );
        Ok(())
    })
}

#[test]
fn an_address_is_deprecated_and_preferred_again() -> TestResult {
    /// `IFA_F_DEPRECATED` of <linux/if_addr.h>.
    const DEPRECATED: u32 = 0x20;
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        let mut request = SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &["10.0.1.1/24", "fd00::1/64"])],
            ..Default::default()
        };
        for flags in [0, DEPRECATED, 0] {
            for address in &mut request.interfaces[0].addresses {
                address.flags = flags;
            }
            assert_eq!(set(network, request.clone()).await?, [""; 0]);
            let addresses = ip("-o addr show eth0 scope global")?;
            let deprecated = addresses.matches("deprecated").count();
            assert_eq!(deprecated, if flags == 0 { 0 } else { 2 }, "{addresses}");
        }
        Ok(())
    })
}

#[test]
fn what_a_container_set_by_itself_stays() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        let request = |addresses: &[&str]| SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", addresses)],
            ..Default::default()
        };
        let both = ["10.0.1.1/24", "fe80::77/64", "fe80::ff:fe00:1/64"];
        assert_eq!(set(network, request(&both)).await?, [""; 0]);
        ip("addr add 10.9.9.9/24 dev eth0")?;
        ip("addr add fd99::9/64 dev eth0 nodad")?;
        ip("route add 10.55.0.0/16 via 10.9.9.1")?;
        assert_eq!(set(network, request(&["10.0.1.2/24"])).await?, [""; 0]);
        let addresses = ip("-o addr show eth0")?;
        // The link-local address of the MAC address is the kernel's, too, and every link has it.
        for there in [
            "10.0.1.2/24",
            "10.9.9.9/24",
            "fd99::9/64",
            "fe80::ff:fe00:1/64",
        ] {
            assert!(addresses.contains(there), "{there}: {addresses}");
        }
        for gone in ["10.0.1.1/24", "fe80::77/64"] {
            assert!(!addresses.contains(gone), "{gone}: {addresses}");
        }
        assert!(ip("route")?.contains("10.55.0.0/16 via 10.9.9.1"));
        Ok(())
    })
}

#[test]
fn the_route_to_an_addresses_network_goes_and_comes() -> TestResult {
    /// `IFA_F_NOPREFIXROUTE` of <linux/if_addr.h>.
    const NO_PREFIX_ROUTE: u32 = 0x200;
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        let mut request = SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &["10.0.1.1/24", "fd00::1/64"])],
            ..Default::default()
        };
        for flags in [0, NO_PREFIX_ROUTE, 0] {
            for address in &mut request.interfaces[0].addresses {
                address.flags = flags;
            }
            assert_eq!(set(network, request.clone()).await?, [""; 0]);
            let routes = ip("route")? + &ip("-6 route")?;
            for network in ["10.0.1.0/24", "fd00::/64"] {
                assert_eq!(routes.contains(network), flags == 0, "{routes}");
            }
        }
        Ok(())
    })
}

/// The runtime may have looked at the addresses just before one was added, and at the routes just after.
#[test]
fn a_route_that_was_seen_before_its_address_stays_when_it_is_the_addresses_own() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        let mut routes = [
            route("10.0.1.0/24", "", "eth0"),
            route("fd00::/64", "", "eth0"),
        ];
        for route in &mut routes {
            route.protocol = 2;
        }
        routes[1].metric = 256;
        let seen = SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &[])],
            routes: routes.to_vec(),
            ..Default::default()
        };
        assert_eq!(set(network, seen).await?, [""; 0]);
        let request = SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &["10.0.1.1/24", "fd00::1/64"])],
            ..Default::default()
        };
        assert_eq!(set(network, request).await?, [""; 0]);
        let routes = ip("route")? + &ip("-6 route")?;
        for network in ["10.0.1.0/24", "fd00::/64"] {
            assert!(routes.contains(network), "{network}: {routes}");
        }
        Ok(())
    })
}

#[test]
fn ipv6_stays_off_where_a_container_has_switched_it_off() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        let request = SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &["10.0.1.1/24", "fd00::1/64"])],
            routes: vec![route("::/0", "fd00::9", "eth0")],
            neighbours: vec![Neighbour {
                address: "fd00::9".to_owned(),
                mac: SECOND.to_owned(),
                interface: "eth0".to_owned(),
                state: 0x80,
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(set(network, request.clone()).await?, [""; 0]);
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
        assert_eq!(set(network, request).await?, [""; 0]);
        assert_eq!(ip("-6 -o addr show eth0")?, "");
        assert!(ip("-o addr show eth0")?.contains("10.0.1.1/24"));
        Ok(())
    })
}

#[test]
fn routers_are_listened_to_as_on_the_uplink() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        let mut request = SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &[])],
            ..Default::default()
        };
        for ignored in [false, true, false] {
            request.interfaces[0].ignore_router_advertisements = ignored;
            request.interfaces[0].no_address_autoconfiguration = ignored;
            assert_eq!(set(network, request.clone()).await?, [""; 0]);
            for name in ["accept_ra", "autoconf"] {
                let path = format!("/proc/sys/net/ipv6/conf/eth0/{name}");
                let value = fs::read_to_string(path)?;
                assert_eq!(value, if ignored { "0\n" } else { "1\n" }, "{name}");
            }
        }
        Ok(())
    })
}

#[test]
fn what_could_not_be_removed_is_removed_later() -> TestResult {
    in_a_namespace(async |network| {
        nic("x0", FIRST)?;
        let request = |routes: &[&str]| SetNetworkRequest {
            interfaces: vec![interface(FIRST, "eth0", &["10.0.1.1/24"])],
            routes: routes
                .iter()
                .map(|destination| route(destination, "10.0.1.9", "eth0"))
                .collect(),
            ..Default::default()
        };
        assert_eq!(set(network, request(&["10.5.0.0/16"])).await?, [""; 0]);
        // A failure of anything: what was there may still be.
        let mut unreachable = request(&[]);
        unreachable.routes = vec![route("10.6.0.0/16", "10.66.0.1", "eth0")];
        assert_eq!(set(network, unreachable).await?.len(), 1);
        ip("route add 10.5.0.0/16 via 10.0.1.9")?;
        assert_eq!(set(network, request(&[])).await?, [""; 0]);
        assert!(!ip("route")?.contains("10.5.0.0/16"));
        Ok(())
    })
}
