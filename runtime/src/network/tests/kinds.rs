//! Uplinks of every kind that a namespace can hold and hull can wire.
//!
//! A kind that the kernel has not is left out, but with `HULL_TEST_ALL_LINKS` in the environment its tests fail: the
//! test bed, whose kernel has them all, sets it.

use std::process::Command;

use super::super::{Model, Netns};
use super::lab::{Lab, run};

/// A kind of uplink.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// The kernel's word for it.
    link_type: &'static str,
    /// How it is wired in a sandbox with the bridge model.
    pub(super) wired: Model,
    /// What makes `eth0` in the pod; `PARENT` is a link of the host whose peer is `parent1`, `POD` where the pod's
    /// namespace is.
    on_host: &'static str,
    in_pod: &'static str,
    /// The link of the host that its frames come out of, where there is one.
    pub(super) peer: Option<&'static str>,
}

/// What is stacked on a link of the host is one command.
const fn stacked(
    name: &'static str,
    link_type: &'static str,
    wired: Model,
    on_host: &'static str,
    peer: Option<&'static str>,
) -> Kind {
    Kind {
        name,
        link_type,
        wired,
        on_host,
        in_pod: "",
        peer,
    }
}

pub(super) const KINDS: &[Kind] = &[
    stacked(
        "veth",
        "veth",
        Model::Bridge,
        "ip link add veth0 type veth peer name eth0 netns POD
         ip link set veth0 up",
        Some("veth0"),
    ),
    Kind {
        name: "tap",
        link_type: "dummy",
        wired: Model::Bridge,
        on_host: "",
        in_pod: "ip tuntap add eth0 mode tap",
        peer: None,
    },
    stacked(
        "dummy",
        "dummy",
        Model::Bridge,
        "ip link add eth0 netns POD type dummy",
        None,
    ),
    stacked(
        "vxlan",
        "vxlan",
        Model::Bridge,
        "ip link add eth0 netns POD type vxlan id 7 dstport 4789 remote 10.1.0.1",
        None,
    ),
    stacked(
        "macvlan in mode bridge",
        "macvlan",
        Model::Tc,
        "ip link add link PARENT name eth0 netns POD type macvlan mode bridge",
        Some("parent1"),
    ),
    stacked(
        "macvlan in mode passthru",
        "macvlan",
        Model::Tc,
        "ip link add link PARENT name eth0 netns POD type macvlan mode passthru",
        Some("parent1"),
    ),
    stacked(
        "ipvlan in mode l2",
        "ipvlan",
        Model::Tc,
        "ip link add link PARENT name eth0 netns POD type ipvlan mode l2",
        Some("parent1"),
    ),
    stacked(
        "ipvlan in mode l3",
        "ipvlan",
        Model::Tc,
        "ip link add link PARENT name eth0 netns POD type ipvlan mode l3",
        None,
    ),
    stacked(
        "vlan",
        "vlan",
        Model::Tc,
        "ip link add link PARENT name eth0 netns POD type vlan id 5
         ip link add link parent1 name vlan1 type vlan id 5
         ip link set vlan1 up",
        Some("vlan1"),
    ),
    Kind {
        name: "vlan of a link of the same namespace",
        link_type: "vlan",
        wired: Model::Tc,
        on_host: "ip link set PARENT netns POD
                  ip link add link parent1 name vlan1 type vlan id 5
                  ip link set vlan1 up",
        in_pod: "ip link set PARENT up
                 ip link add link PARENT name eth0 type vlan id 5",
        peer: Some("vlan1"),
    },
    Kind {
        name: "bond",
        link_type: "bond",
        wired: Model::Tc,
        on_host: "ip link set PARENT netns POD",
        in_pod: "ip link add eth0 type bond mode active-backup
                 ip link set PARENT down
                 ip link set PARENT master eth0",
        peer: Some("parent1"),
    },
    Kind {
        name: "bridge",
        link_type: "bridge",
        wired: Model::Tc,
        on_host: "ip link set PARENT netns POD",
        in_pod: "ip link add eth0 type bridge
                 ip link set PARENT up master eth0",
        peer: Some("parent1"),
    },
];

impl Kind {
    /// A lab whose pod has such an `eth0`, up, with addresses and routes; nothing where it may be left out.
    pub(super) fn lab(&self) -> Option<Lab> {
        let needs_all = std::env::var_os("HULL_TEST_ALL_LINKS").is_some();
        if !needs_all && !kernel_has(self.link_type) {
            eprintln!("this kernel has no {}", self.link_type);
            return None;
        }
        let lab = Lab::new();
        run(
            &lab.host,
            "ip link add parent0 type veth peer name parent1
             ip link set parent0 up
             ip link set parent1 up",
        );
        let script = |text: &str| {
            text.replace("PARENT", "parent0")
                .replace("POD", &lab.pod_path())
        };
        run(&lab.host, &script(self.on_host));
        run(&lab.pod, &script(self.in_pod));
        run(
            &lab.pod,
            "ip address add 10.0.0.2/24 brd + dev eth0
             ip address add fd00::2/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via 10.0.0.1
             ip route add default via fd00::1
             ip neighbour add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0",
        );
        lab.settle();
        Some(lab)
    }
}

/// Whether the kernel can make links of a type.
fn kernel_has(link_type: &str) -> bool {
    let script = format!(
        "ip link add lower type veth peer name peer
         ip link add link lower name probe type {link_type} || ip link add probe type {link_type}"
    );
    let output = Netns::create()
        .unwrap()
        .run(|| Command::new("sh").args(["-c", &script]).output())
        .unwrap()
        .unwrap();
    !String::from_utf8_lossy(&output.stderr).contains("Unknown device type")
}
