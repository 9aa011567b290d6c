//! Every kind of interface that a container's namespace can hold: it works with the model that suits it, or is refused
//! with the reason; and it is afterwards as it was.

use std::process::{Child, Command, Stdio};

use hull_tests::command::eventually;
use hull_tests::{Bundle, Hull, LeakCheck, Netns};
use serde_json::{Value, json};

/// How an uplink is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wired {
    Bridge,
    Tc,
}

/// A container's namespace, one that stands for the host, and a neighbour of the host's, on a wire to it: `wire0` is
/// the host's end, `wire1` the neighbour's.
struct Machine {
    container: Netns,
    host: Netns,
    neighbour: Netns,
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            container: Netns::new(),
            host: Netns::new(),
            neighbour: Netns::new(),
        };
        machine
            .host
            .veth("wire0", &[], &machine.neighbour, "wire1", &[]);
        machine
    }

    /// Gives the container's `eth0` and the other end, a link of the neighbour's, their addresses.
    fn address(&self, other: &str) {
        self.container.ip("addr add 10.92.0.2/24 dev eth0");
        self.container.ip("addr add fd92::2/64 dev eth0 nodad");
        self.container.ip("link set eth0 up");
        self.container.ip("route add default via 10.92.0.1");
        self.neighbour
            .ip(&format!("addr add 10.92.0.1/24 dev {other}"));
        self.neighbour
            .ip(&format!("addr add fd92::1/64 dev {other} nodad"));
        self.container.settle("eth0");
    }

    /// What a sandbox must leave as it is.
    fn facts(&self) -> Vec<String> {
        [
            "-d link",
            "addr show dev eth0",
            "route show table all",
            "-6 route show table all",
            "neigh show nud permanent",
        ]
        .map(|words| steady(&self.container.ip(words)))
        .to_vec()
    }

    fn bundle(&self, model: Option<&str>, script: &str) -> Bundle {
        Bundle::shell(script)
            .in_netns(&self.container.path())
            .with(|config| {
                if let Some(model) = model {
                    config["annotations"] = json!({ "dev.hull.network.model": model });
                }
            })
    }

    /// A container uses its `eth0` both ways, over both protocols, in a sandbox with that model.
    fn works(&self, model: Option<&str>, wired: Wired) {
        let before = self.facts();
        let mac = self.container.mac("eth0");
        let hull = Hull::new();
        let bundle = self.bundle(
            model,
            "cat /sys/class/net/eth0/address; ping -c 2 -W 20 10.92.0.1 && ping -6 -c 2 -W 20 fd92::1; \
             echo pinged $?; sleep 1000",
        );
        let output = hull.create(&bundle, "uplink");
        let has_bridge = self.container.links().contains(&"hull-br0".to_owned());
        assert_eq!(has_bridge, wired == Wired::Bridge);
        let expected_mac = match wired {
            Wired::Bridge => "02:00:ca:fe:00:00",
            Wired::Tc => &mac,
        };
        assert_eq!(self.container.mac("eth0"), expected_mac);
        let _ = hull.hull(&["start", "uplink"]).expect(0);
        let text = await_output(&output, "pinged");
        assert!(text.starts_with(&mac), "{mac}: {text}");
        assert!(text.contains("pinged 0"), "{text}");
        self.neighbour.await_answer_of("10.92.0.2");
        self.neighbour.await_answer_of("fd92::2");
        let _ = hull.hull(&["delete", "--force", "uplink"]).expect(0);
        assert_eq!(self.facts(), before);
    }

    /// Making a container in the namespace fails, and the message has `words`.
    fn is_refused(&self, model: Option<&str>, words: &[&str]) {
        let before = self.facts();
        let leaks = LeakCheck::new();
        let hull = Hull::new();
        let bundle = self.bundle(model, "true");
        let _ = hull.run(&bundle, "refused").expect_error(words);
        assert_eq!(self.facts(), before);
        leaks.nothing_left(&hull.root());
    }
}

/// Output of `ip` without what runs by itself: timers of bridges and what they learn, lifetimes of addresses.
fn steady(text: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    let mut all = text.split(' ');
    while let Some(word) = all.next() {
        words.push(word);
        if word.ends_with("_timer") || word == "fdb_n_learned" {
            while all.next() == Some("") {}
        }
    }
    let kept = words.join(" ");
    let lines = kept.lines().filter(|line| !line.contains("valid_lft"));
    lines.collect::<Vec<_>>().join("\n")
}

fn await_output(path: &std::path::Path, word: &str) -> String {
    let mut text = String::new();
    let came = eventually(|| {
        text = std::fs::read_to_string(path).unwrap();
        text.contains(word)
    });
    assert!(came, "{text}");
    text
}

#[test]
fn a_veth_works_with_either_model() {
    for (model, wired) in [
        (None, Wired::Bridge),
        (Some("bridge"), Wired::Bridge),
        (Some("tc"), Wired::Tc),
    ] {
        let machine = Machine::new();
        machine
            .container
            .veth("eth0", &[], &machine.neighbour, "other", &[]);
        machine.address("other");
        machine.works(model, wired);
    }
}

#[test]
fn a_macvlan_works_by_tc_in_every_mode() {
    for mode in ["bridge", "vepa", "private", "passthru"] {
        let machine = Machine::new();
        machine.host.ip(&format!(
            "link add link wire0 name eth0 netns {} type macvlan mode {mode}",
            machine.container.name()
        ));
        machine.address("wire1");
        machine.works(None, Wired::Tc);
    }
}

#[test]
fn an_ipvlan_works_by_tc_in_mode_l2() {
    for flag in ["bridge", "private"] {
        let machine = Machine::new();
        machine.host.ip(&format!(
            "link add link wire0 name eth0 netns {} type ipvlan mode l2 {flag}",
            machine.container.name()
        ));
        machine.address("wire1");
        machine.works(None, Wired::Tc);
    }
}

#[test]
fn two_containers_on_ipvlans_of_one_parent_reach_each_other() {
    let machine = Machine::new();
    let sibling = Netns::new();
    for (netns, number) in [(&machine.container, 2), (&sibling, 3)] {
        machine.host.ip(&format!(
            "link add link wire0 name eth0 netns {} type ipvlan mode l2",
            netns.name()
        ));
        netns.ip(&format!("addr add 10.92.0.{number}/24 dev eth0"));
        netns.ip("link set eth0 up");
    }
    machine.container.settle("eth0");
    let hull = Hull::new();
    let waiting = Bundle::shell("sleep 1000").in_netns(&sibling.path());
    let _output = hull.create(&waiting, "sibling");
    let _ = hull.hull(&["start", "sibling"]).expect(0);
    let pinging = machine.bundle(None, "ping -c 2 -W 60 10.92.0.3");
    let _ = hull.run(&pinging, "pinging").expect(0);
}

/// In mode l3 the parent's namespace routes, and nobody asks for anybody's MAC address.
#[test]
fn an_ipvlan_works_by_tc_in_mode_l3() {
    let machine = Machine::new();
    machine.host.ip(&format!(
        "link add link wire0 name eth0 netns {} type ipvlan mode l3",
        machine.container.name()
    ));
    machine.container.ip("link set eth0 up");
    for (family, network, container, host, neighbour) in [
        (
            "-4",
            "10.92.0.0/24",
            "10.92.0.2/24",
            "10.93.0.254",
            "10.93.0.1",
        ),
        ("-6", "fd92::/64", "fd92::2/64", "fd93::254", "fd93::1"),
    ] {
        let (length, nodad) = if family == "-4" {
            (24, "")
        } else {
            (64, "nodad")
        };
        machine
            .container
            .ip(&format!("{family} addr add {container} dev eth0 {nodad}"));
        machine
            .container
            .ip(&format!("{family} route add default dev eth0"));
        machine.host.ip(&format!(
            "{family} addr add {host}/{length} dev wire0 {nodad}"
        ));
        machine.neighbour.ip(&format!(
            "{family} addr add {neighbour}/{length} dev wire1 {nodad}"
        ));
        machine
            .neighbour
            .ip(&format!("{family} route add {network} via {host}"));
    }
    machine.container.settle("eth0");
    let before = machine.facts();
    let hull = Hull::new();
    let bundle = machine.bundle(
        None,
        "ip link show dev eth0; ping -c 2 -W 20 10.93.0.1 && ping -6 -c 2 -W 20 fd93::1; \
         echo pinged $?; sleep 1000",
    );
    let output = hull.create(&bundle, "l3");
    let _ = hull.hull(&["start", "l3"]).expect(0);
    let text = await_output(&output, "pinged");
    assert!(text.contains("NOARP"), "{text}");
    assert!(text.contains("pinged 0"), "{text}");
    machine.neighbour.await_answer_of("10.92.0.2");
    machine.neighbour.await_answer_of("fd92::2");
    let _ = hull.hull(&["delete", "--force", "l3"]).expect(0);
    assert_eq!(machine.facts(), before);
}

#[test]
fn an_ipvlan_in_mode_l3s_is_refused() {
    let machine = Machine::new();
    machine.host.ip(&format!(
        "link add link wire0 name eth0 netns {} type ipvlan mode l3s",
        machine.container.name()
    ));
    machine.address("wire1");
    for model in ["bridge", "tc"] {
        machine.is_refused(Some(model), &["eth0", "mode l3s", "use mode l2 or l3"]);
    }
}

#[test]
fn a_vlan_works_by_tc_and_follows_its_parent_afterwards() {
    let machine = Machine::new();
    machine.host.ip(&format!(
        "link add link wire0 name eth0 netns {} type vlan id 5",
        machine.container.name()
    ));
    machine
        .neighbour
        .ip("link add link wire1 name wire1.5 type vlan id 5");
    machine.neighbour.ip("link set wire1.5 up");
    machine.address("wire1.5");
    machine.works(None, Wired::Tc);
    machine.host.ip("link set wire0 address 02:00:00:00:00:55");
    assert_eq!(machine.container.mac("eth0"), "02:00:00:00:00:55");
}

#[test]
fn the_parent_of_a_vlan_is_behind_it() {
    let machine = Machine::new();
    machine.host.ip(&format!(
        "link set wire0 netns {}",
        machine.container.name()
    ));
    machine.container.ip("link set wire0 up");
    machine
        .container
        .ip("link add link wire0 name eth0 type vlan id 5");
    machine
        .neighbour
        .ip("link add link wire1 name wire1.5 type vlan id 5");
    machine.neighbour.ip("link set wire1.5 up");
    machine.address("wire1.5");
    machine.works(None, Wired::Tc);

    // With an address the parent is an interface of its own, and has what it carries.
    machine.container.ip("addr add 10.94.0.2/24 dev wire0");
    machine.is_refused(None, &["eth0", "stacked on wire0"]);
}

#[test]
fn a_bond_works_by_tc_and_survives_the_loss_of_a_link() {
    let machine = Machine::new();
    machine.neighbour.ip("link add switch type bridge");
    machine.neighbour.ip("link set switch up");
    machine
        .container
        .ip("link add eth0 type bond mode active-backup miimon 50");
    for number in 0..2 {
        let (link, port) = (format!("leg{number}"), format!("port{number}"));
        machine.container.ip(&format!(
            "link add {link} type veth peer name {port} netns {}",
            machine.neighbour.name()
        ));
        machine
            .container
            .ip(&format!("link set {link} master eth0"));
        machine
            .neighbour
            .ip(&format!("link set {port} master switch up"));
    }
    machine.address("switch");
    let hull = Hull::new();
    let bundle = machine.bundle(
        None,
        "ping -c 2 -W 20 10.92.0.1; echo pinged $?; sleep 1000",
    );
    let output = hull.create(&bundle, "bond");
    assert!(!machine.container.links().contains(&"hull-br0".to_owned()));
    let _ = hull.hull(&["start", "bond"]).expect(0);
    let text = await_output(&output, "pinged");
    assert!(text.contains("pinged 0"), "{text}");
    machine.neighbour.ip("link set port0 down");
    machine.neighbour.await_answer_of("10.92.0.2");
    let _ = hull.hull(&["delete", "--force", "bond"]).expect(0);
}

#[test]
fn a_bridge_works_by_tc_with_its_ports_behind_it() {
    let machine = Machine::new();
    machine.host.ip(&format!(
        "link set wire0 netns {}",
        machine.container.name()
    ));
    machine.container.ip("link add eth0 type bridge");
    machine.container.ip("link set wire0 master eth0 up");
    machine.address("wire1");
    machine.works(None, Wired::Tc);
}

#[test]
fn a_dummy_gives_the_guest_its_addresses() {
    let machine = Machine::new();
    machine.container.ip("link add eth0 type dummy");
    machine.container.ip("addr add 10.92.0.2/32 dev eth0");
    machine.container.ip("link set eth0 up");
    machine.container.settle("eth0");
    let before = machine.facts();
    let hull = Hull::new();
    let bundle = machine.bundle(
        None,
        "ip addr show dev eth0; ping -c 1 -W 20 10.92.0.2 >/dev/null && echo own",
    );
    let text = hull.run(&bundle, "dummy").expect(0).text();
    for wanted in ["NOARP", "10.92.0.2/32", "own"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert_eq!(machine.facts(), before);
}

/// A program that holds the other ends of two taps and passes frames between them.
struct Relay(Child);

impl Relay {
    fn start(netns: &Netns, one: &str, other: &str) -> Self {
        let tap = |name| format!("TUN,tun-name={name},tun-type=tap,iff-no-pi");
        let child = Command::new("ip")
            .args(["netns", "exec", netns.name(), "socat", "-b", "65536"])
            .args([tap(one), tap(other)])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        assert!(eventually(|| {
            let links = netns.links();
            [one, other]
                .iter()
                .all(|name| links.contains(&(*name).to_owned()))
        }));
        Self(child)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_tap_of_another_program_works_with_a_bridge() {
    let machine = Machine::new();
    let _relay = Relay::start(&machine.host, "eth0", "other");
    machine
        .host
        .ip(&format!("link set eth0 netns {}", machine.container.name()));
    machine.host.ip(&format!(
        "link set other netns {}",
        machine.neighbour.name()
    ));
    machine.neighbour.ip("link set other up");
    machine.address("other");
    machine.works(None, Wired::Bridge);
}

#[test]
fn what_carries_no_ethernet_frames_is_refused() {
    let machine = Machine::new();
    machine.container.ip("tuntap add eth0 mode tun");
    machine.container.ip("addr add 10.92.0.2/24 dev eth0");
    machine.container.ip("link set eth0 up");
    machine.is_refused(None, &["eth0", "does not carry Ethernet frames"]);
}

#[test]
fn an_ingress_qdisc_of_the_users_is_kept() {
    let machine = Machine::new();
    machine
        .container
        .veth("eth0", &[], &machine.neighbour, "other", &[]);
    machine.address("other");
    let _ = machine
        .container
        .exec("tc qdisc add dev eth0 clsact")
        .expect(0);
    machine.is_refused(Some("tc"), &["eth0", "ingress qdisc of its own"]);
    // A bridge leaves it in its place.
    machine.works(None, Wired::Bridge);
    let qdiscs = machine.container.exec("tc qdisc show dev eth0").text();
    assert!(qdiscs.contains("clsact"), "{qdiscs}");
}

#[test]
fn with_the_model_none_the_guest_has_lo_and_the_interface_is_left_alone() {
    let machine = Machine::new();
    machine
        .container
        .veth("eth0", &[], &machine.neighbour, "other", &[]);
    machine.address("other");
    let before = machine.facts();
    let hull = Hull::new();
    let bundle = machine.bundle(Some("none"), "ls /sys/class/net; sleep 1000");
    let output = hull.create(&bundle, "none");
    let _ = hull.hull(&["start", "none"]).expect(0);
    assert_eq!(await_output(&output, "\n"), "lo\n");
    assert_eq!(machine.facts(), before);
}

#[test]
fn the_configuration_chooses_the_model_and_an_annotation_overrides_it() {
    let machine = Machine::new();
    machine
        .container
        .veth("eth0", &[], &machine.neighbour, "other", &[]);
    machine.address("other");
    let config = tempfile::NamedTempFile::with_prefix("hull-config-").unwrap();
    std::fs::write(config.path(), "[network]\nmodel = 'tc'\n").unwrap();
    let hull = Hull::with_options(&["--config", config.path().to_str().unwrap()]);
    for (model, has_bridge) in [(None, false), (Some("bridge"), true)] {
        let bundle = machine.bundle(model, "sleep 1000");
        let _ = hull.create(&bundle, "chosen");
        let links = machine.container.links();
        assert_eq!(
            links.contains(&"hull-br0".to_owned()),
            has_bridge,
            "{links:?}"
        );
        assert!(links.contains(&"hull-tap0".to_owned()), "{links:?}");
        let _ = hull.hull(&["delete", "--force", "chosen"]).expect(0);
    }
}

#[test]
fn a_model_that_there_is_not_is_refused() {
    let hull = Hull::new();
    for model in ["macvtap", "", "Bridge"] {
        let bundle = Bundle::shell("true").with(|config| {
            config["annotations"] = json!({ "dev.hull.network.model": model });
        });
        let _ = hull.run(&bundle, "wrong").expect_error(&[
            "dev.hull.network.model",
            &format!("{model:?}"),
            "bridge, tc or none is expected",
        ]);
    }
}

#[test]
fn a_container_that_joins_a_sandbox_has_its_model() {
    let machine = Machine::new();
    machine
        .container
        .veth("eth0", &[], &machine.neighbour, "other", &[]);
    machine.address("other");
    let hull = Hull::new();
    let first = machine.bundle(Some("tc"), "sleep 1000");
    let _ = hull.create(&first, "first");
    let _ = hull.hull(&["start", "first"]).expect(0);
    for model in [None, Some("tc")] {
        let _ = hull.run(&machine.bundle(model, "true"), "second").expect(0);
    }
    let other = machine.bundle(Some("bridge"), "true");
    let _ = hull
        .run(&other, "second")
        .expect_error(&["sandbox first has the network model tc", "bridge"]);
}

/// Two NICs of the machine with a wire between them: a USB gadget and the host's side of it, on a controller without
/// hardware. The kernel gives them back to the host when the namespace goes that they are in.
struct PhysicalNics {
    one: String,
    other: String,
}

impl PhysicalNics {
    fn new() -> Self {
        for module in ["dummy_hcd", "g_ether"] {
            let _ = hull_tests::run_ok("modprobe", &[module]);
        }
        let mut nics = [None, None];
        assert!(eventually(|| {
            // udev renames them when they appear.
            let _ = hull_tests::run_ok("udevadm", &["settle"]);
            nics = ["gadget", "usb"].map(nic_on_bus);
            nics.iter().all(Option::is_some)
        }));
        let [one, other] = nics.map(Option::unwrap);
        Self { one, other }
    }
}

impl Drop for PhysicalNics {
    fn drop(&mut self) {
        for module in ["g_ether", "dummy_hcd"] {
            drop(hull_tests::run("modprobe", &["--remove", module]));
        }
    }
}

/// The name of the host's link whose device is on that bus.
fn nic_on_bus(bus: &str) -> Option<String> {
    let links = hull_tests::run_ok("ip", &["-j", "-d", "link"]);
    let links: Value = serde_json::from_str(&links).unwrap();
    let nic = links
        .as_array()?
        .iter()
        .find(|link| link["parentbus"] == bus)?;
    Some(nic["ifname"].as_str()?.to_owned())
}

fn link_on_host(name: &str) -> Option<Value> {
    let links = hull_tests::run("ip", &["-j", "-d", "link", "show", "dev", name]);
    let links: Value = serde_json::from_slice(&links.stdout).ok()?;
    links.get(0).cloned()
}

#[test]
fn a_physical_nic_works_by_tc_and_comes_back_from_a_namespace_that_died() {
    let nics = PhysicalNics::new();
    let mac = link_on_host(&nics.one).unwrap()["address"].clone();
    let neighbour = Netns::new();
    let _ = hull_tests::run_ok(
        "ip",
        &["link", "set", &nics.other, "netns", neighbour.name()],
    );
    neighbour.ip(&format!("addr add 10.95.0.1/24 dev {}", nics.other));
    neighbour.ip(&format!("link set {} up", nics.other));

    let hull = Hull::new();
    // The namespace is the container's own, so it goes with the last process in it.
    let bundle = Bundle::shell(&format!(
        "cat /sys/class/net/{}/address; ping -c 2 -W 20 10.95.0.1; echo pinged $?; sleep 1000",
        nics.one
    ));
    let output = hull.create(&bundle, "nic");
    let pid = hull.state("nic")["pid"].as_i64().unwrap().to_string();
    let _ = hull_tests::run_ok("ip", &["link", "set", &nics.one, "netns", &pid]);
    for words in [
        format!("addr add 10.95.0.2/24 dev {}", nics.one),
        format!("link set {} up", nics.one),
    ] {
        let mut arguments = vec!["-t", &pid, "-n", "ip"];
        arguments.extend(words.split(' '));
        let _ = hull_tests::run_ok("nsenter", &arguments);
    }
    let _ = hull.hull(&["start", "nic"]).expect(0);
    let text = await_output(&output, "pinged");
    assert!(text.starts_with(mac.as_str().unwrap()), "{mac}: {text}");
    assert!(text.contains("pinged 0"), "{text}");
    assert!(link_on_host(&nics.one).is_none());

    // Nothing of hull's is left to put anything back.
    kill_everything_of(&hull, &pid);
    assert!(eventually(|| link_on_host(&nics.one).is_some()));
    assert_eq!(link_on_host(&nics.one).unwrap()["address"], mac);
    let _ = hull.hull(&["delete", "--force", "nic"]).expect(0);
    neighbour.ip(&format!("link set {} netns 1", nics.other));
}

/// Kills a container's process proxy, and all processes whose command line names the state directory.
fn kill_everything_of(hull: &Hull, proxy: &str) {
    let root = hull.root();
    let mut pids = vec![proxy.to_owned()];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(root.to_str().unwrap()) {
            pids.push(entry.file_name().into_string().unwrap());
        }
    }
    for pid in pids {
        drop(hull_tests::run("kill", &["-9", &pid]));
    }
}
