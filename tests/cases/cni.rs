//! Debian's CNI plugins: what they have attached, a container uses; and on the namespace of a live sandbox their
//! `CHECK` and `DEL` pass.
//!
//! With the model tc, which such an interface has unless one was chosen, every `CHECK` passes. With the model bridge those
//! of plugins do not that compare the uplink with what they have made of it: `bridge` and `ptp` its MAC address, which is
//! another one while the sandbox lives, and `tuning` whether it is promiscuous, as a bridge's port is.

use hull_tests::cni::{Attachment, CniNetwork};
use hull_tests::command::eventually;
use hull_tests::{Bundle, Hull, LeakCheck, Netns};
use serde_json::{Value, json};

/// A namespace that stands for the host, with a wire to a neighbour.
struct Machine {
    host: Netns,
    neighbour: Netns,
    container: Netns,
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            host: Netns::new(),
            neighbour: Netns::new(),
            container: Netns::new(),
        };
        machine.host.veth(
            "wire0",
            &[],
            &machine.neighbour,
            "wire1",
            &["10.90.0.1/24", "fd90::1/64"],
        );
        let _ = machine
            .host
            .exec("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
            .expect(0);
        machine
    }

    /// Starts a container in the namespace that serves a page at port 8080 and pings `address` from its `own`, and waits
    /// until it has. Its root file system is in what is given back.
    #[must_use]
    fn run(&self, hull: &Hull, model: Option<&str>, own: &str, address: &str) -> Bundle {
        let bundle = Bundle::shell(&format!(
            "mkdir /www; echo served > /www/page; httpd -p 8080 -h /www
             ping -c 2 -W 20 -I {own} {address}; echo pinged $?; sleep 1000"
        ))
        .in_netns(&self.container.path())
        .with(|config| {
            if let Some(model) = model {
                config["annotations"] = json!({ "dev.hull.network.model": model });
            }
        });
        let output = hull.create(&bundle, "cni");
        let _ = hull.hull(&["start", "cni"]).expect(0);
        let mut text = String::new();
        assert!(eventually(|| {
            text = std::fs::read_to_string(&output).unwrap();
            text.contains("pinged")
        }));
        assert!(text.contains("pinged 0"), "{text}");
        bundle
    }

    /// The container is reached by the port that the host has published: by the neighbour, which knows only the host, and
    /// by the host itself, by its address and by localhost.
    fn published_port_is_served(&self) {
        self.host.ip("addr add 10.90.0.2/24 dev wire0");
        for (client, address) in [
            (&self.neighbour, "10.90.0.2"),
            (&self.host, "10.90.0.2"),
            (&self.host, "127.0.0.1"),
        ] {
            let fetch = format!("busybox wget -T 20 -q -O - http://{address}:18080/page");
            let mut last = None;
            let served = eventually(|| {
                let finished = client.exec(&fetch);
                let served = finished.text() == "served\n";
                last = Some(finished);
                served
            });
            let rules = || self.host.exec("iptables -t nat -vnL").text();
            assert!(served, "{address}: {last:?}\n{}", rules());
        }
    }
}

/// `plugin` with addresses of 10.88.0.0/24.
fn with_ipam(mut plugin: Value) -> Value {
    plugin["ipam"] = json!({
        "ranges": [[{ "subnet": "10.88.0.0/24" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
    });
    plugin
}

/// `plugin` with addresses of the neighbour's network.
fn in_neighbours_network(mut plugin: Value) -> Value {
    plugin["ipam"] = json!({ "ranges": [[{
        "subnet": "10.90.0.0/24", "rangeStart": "10.90.0.10", "gateway": "10.90.0.1"
    }]] });
    plugin
}

/// A list as engines have it: a bridge, and everything that is chained to one.
fn bridge_and_all() -> Vec<Value> {
    vec![
        with_ipam(json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true
        })),
        json!({ "type": "portmap", "snat": true, "runtimeConfig": {
            "portMappings": [{ "hostPort": 18080, "containerPort": 8080, "protocol": "tcp" }]
        } }),
        json!({ "type": "firewall" }),
        json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.log_martians": "1" }, "mtu": 1400 }),
        json!({ "type": "bandwidth",
            "ingressRate": 8_000_000_000_u64, "ingressBurst": 800_000_000,
            "egressRate": 8_000_000_000_u64, "egressBurst": 800_000_000 }),
    ]
}

/// The whole life of an attachment: `ADD`, a container, `CHECK`, `DEL` while the container runs, and its end.
fn live(
    plugins: &[Value],
    model: Option<&str>,
    target: &str,
    look: impl FnOnce(&Machine, &Attachment<'_>),
) {
    // The module of what `bandwidth` uses makes links on the host when it is loaded.
    let _ = hull_tests::run_ok("modprobe", &["ifb"]);
    let leaks = LeakCheck::new();
    let machine = Machine::new();
    let network = CniNetwork::new(&machine.host, plugins);
    let attachment = network.add(&machine.container, "eth0");
    let hull = Hull::new();
    let bundle = machine.run(&hull, model, &attachment.addresses()[0], target);
    look(&machine, &attachment);
    attachment.delete();
    assert!(!network.has_reservations());
    assert!(!machine.container.links().contains(&"eth0".to_owned()));
    let _ = hull.hull(&["delete", "--force", "cni"]).expect(0);
    drop(bundle);
    assert_eq!(machine.container.links(), ["lo"]);
    // A second time nothing is there any more, which is no failure; but `sbr` wants its interface to be there.
    if plugins.iter().all(|plugin| plugin["type"] != "sbr") {
        attachment.delete();
    }
    drop(attachment);
    drop(network);
    drop(machine);
    leaks.nothing_left(&hull.root());
}

#[test]
fn everything_that_is_chained_to_a_bridge_checks_and_deletes() {
    live(
        &bridge_and_all(),
        None,
        "10.88.0.1",
        |machine, attachment| {
            attachment.check_passes();
            let address = &attachment.addresses()[0];
            machine.host.await_answer_of(address);
            machine.published_port_is_served();
            attachment.check_passes();
        },
    );
}

#[test]
fn with_a_bridge_what_looks_at_the_host_checks_and_everything_deletes() {
    live(
        &bridge_and_all(),
        Some("bridge"),
        "10.88.0.1",
        |machine, attachment| {
            machine.published_port_is_served();
            for (plugin, verdict) in attachment.check() {
                match (plugin.as_str(), verdict) {
                    ("bridge", Err(reason)) => assert!(reason.contains("Mac"), "{reason}"),
                    ("tuning", Err(reason)) => assert!(reason.contains("promisc"), "{reason}"),
                    (_, verdict) => assert_eq!(verdict, Ok(()), "CHECK of {plugin}"),
                }
            }
        },
    );
}

#[test]
fn a_point_to_point_link_checks_unless_bridged_and_deletes_with_either_model() {
    let plugins = [with_ipam(json!({ "type": "ptp", "ipMasq": true }))];
    live(&plugins, None, "10.88.0.1", |_, attachment| {
        attachment.check_passes();
    });
    live(&plugins, Some("bridge"), "10.88.0.1", |_, attachment| {
        let (_, verdict) = attachment.check().remove(0);
        let reason = verdict.unwrap_err();
        assert!(reason.contains("Mac"), "{reason}");
    });
}

/// `sbr` moves the routes to a table of the interface's own, where the `CHECK` of `bridge` looks for none.
#[test]
fn routes_by_source_are_the_guests_and_delete_with_either_model() {
    for model in ["bridge", "tc"] {
        let mut plugins = bridge_and_all();
        plugins.truncate(1);
        plugins.push(json!({ "type": "sbr" }));
        live(&plugins, Some(model), "10.88.0.1", |machine, attachment| {
            let rules = machine.container.ip("rule");
            assert!(rules.contains("lookup 100"), "{rules}");
            let address = &attachment.addresses()[0];
            machine.host.await_answer_of(address);
            let verdicts = attachment.check();
            assert_eq!(verdicts[1], ("sbr".to_owned(), Ok(())));
        });
    }
}

#[test]
fn a_macvlan_checks_and_deletes() {
    let plugins = [in_neighbours_network(
        json!({ "type": "macvlan", "master": "wire0", "mode": "bridge" }),
    )];
    live(
        &plugins,
        Some("bridge"),
        "10.90.0.1",
        |machine, attachment| {
            attachment.check_passes();
            let address = &attachment.addresses()[0];
            machine.neighbour.await_answer_of(address);
        },
    );
}

#[test]
fn an_ipvlan_checks_and_deletes() {
    let plugins = [in_neighbours_network(
        json!({ "type": "ipvlan", "master": "wire0", "mode": "l2" }),
    )];
    live(
        &plugins,
        Some("bridge"),
        "10.90.0.1",
        |machine, attachment| {
            attachment.check_passes();
            let address = &attachment.addresses()[0];
            machine.neighbour.await_answer_of(address);
        },
    );
}

#[test]
fn a_mac_address_that_tuning_has_set_checks() {
    let plugins = [
        with_ipam(json!({ "type": "bridge", "bridge": "cni0", "isGateway": true })),
        json!({ "type": "tuning", "mac": "02:42:0a:58:00:99", "promisc": true }),
    ];
    live(&plugins, None, "10.88.0.1", |machine, attachment| {
        attachment.check_passes();
        let neighbours = machine.host.ip("neigh show dev cni0");
        assert!(neighbours.contains("02:42:0a:58:00:99"), "{neighbours}");
    });
}
