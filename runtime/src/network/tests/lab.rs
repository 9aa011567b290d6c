//! A host and a container's network namespace with cables between them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::{Arc, Mutex};

use hull_agent_protocol::agent::{Interface, SetNetworkRequest};

use super::super::{Model, Netns, NetworkState, Options, Reconciled, reconcile, undo};

/// One queue pair, and the model under test.
pub(super) fn options(model: Model) -> Options {
    Options {
        model,
        chosen: true,
        queue_pairs: 1,
    }
}

/// Two namespaces that nothing else knows. They go with the value.
pub(super) struct Lab {
    pub(super) host: Netns,
    pub(super) pod: Netns,
    pub(super) state: NetworkState,
    /// What was last persisted.
    pub(super) kept: Arc<Mutex<NetworkState>>,
}

impl Lab {
    pub(super) fn new() -> Self {
        let lab = Self {
            host: Netns::create().unwrap(),
            pod: Netns::create().unwrap(),
            state: NetworkState::default(),
            kept: Arc::default(),
        };
        for netns in [&lab.host, &lab.pod] {
            // Without duplicate address detection nothing changes by itself while a test looks.
            run(netns, "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
        }
        lab
    }

    /// A veth from `peer` on the host to `uplink` in the pod, both up.
    pub(super) fn cable(&self, peer: &str, uplink: &str, mac: &str) {
        let pod = path(&self.pod);
        run(
            &self.host,
            &format!(
                "ip link add {peer} type veth peer name {uplink} address {mac} netns {pod}
                 ip link set {peer} up"
            ),
        );
        run(&self.pod, &format!("ip link set {uplink} up"));
        self.settle();
    }

    /// Waits until the kernel has done what it does by itself in the pod once a link is up: the carrier is noticed, and a
    /// work queue then makes the link-local address, judges it, and enters its route. Whoever looks before that sees
    /// the namespace change without a hand in it.
    pub(super) fn settle(&self) {
        run(
            &self.pod,
            "ip -oneline link show up | sed 's/^[0-9]*: //; s/[@:].*//' | while read link; do
                 ip link show dev $link | grep -q LOWER_UP || continue
                 ip link show dev $link | grep -q ',SLAVE,' && continue
                 until ip link show dev $link | grep -Eq 'state (UP|UNKNOWN)'; do sleep 0.01; done
                 [ $link != lo ] && [ $(cat /proc/sys/net/ipv6/conf/$link/disable_ipv6) = 0 ] || continue
                 until address=$(ip -6 -brief address show dev $link scope link -tentative | grep -o 'fe80:[^/]*') &&
                     ip -6 route show table local dev $link | grep -q $address; do sleep 0.01; done
             done",
        );
    }

    /// Where `ip` finds the host's namespace.
    pub(super) fn host_path(&self) -> String {
        path(&self.host)
    }

    /// Where `ip` finds the pod's namespace.
    pub(super) fn pod_path(&self) -> String {
        path(&self.pod)
    }

    /// `eth0` with 10.0.0.2/24 and fd00::2/64, its peer `veth0` with .1 and ::1, and a default route.
    pub(super) fn with_eth0() -> Self {
        let lab = Self::new();
        lab.cable("veth0", "eth0", "02:42:0a:00:00:02");
        run(
            &lab.host,
            "ip address add 10.0.0.1/24 dev veth0
             ip address add fd00::1/64 dev veth0 nodad",
        );
        run(
            &lab.pod,
            "ip address add 10.0.0.2/24 brd + dev eth0
             ip address add fd00::2/64 dev eth0 nodad
             ip route add default via 10.0.0.1
             ip route add default via fd00::1",
        );
        lab
    }

    pub(super) fn reconcile(&mut self, model: Model) -> Reconciled {
        self.try_reconcile(model, |_| Ok(())).unwrap()
    }

    /// `persist` is asked first, and what it lets pass is kept.
    pub(super) fn try_reconcile(
        &mut self,
        model: Model,
        mut persist: impl FnMut(&NetworkState) -> io::Result<()> + Send,
    ) -> Result<Reconciled, super::super::Error> {
        let kept = Arc::clone(&self.kept);
        // A VM that lets go of each NIC at once.
        self.state.leaving.clear();
        reconcile(&self.pod, &options(model), &mut self.state, &mut |state| {
            persist(state)?;
            *kept.lock().unwrap() = state.clone();
            Ok(())
        })
    }

    pub(super) fn undo(&mut self) {
        let kept = Arc::clone(&self.kept);
        undo(&self.pod, &mut self.state, &mut |state| {
            *kept.lock().unwrap() = state.clone();
            Ok(())
        })
        .unwrap();
    }

    /// Undoes as a process does that knows only what was persisted.
    pub(super) fn undo_from_kept(&mut self) {
        self.state = self.kept.lock().unwrap().clone();
        self.undo();
        assert_eq!(*self.kept.lock().unwrap(), NetworkState::default());
    }

    /// Everything of the pod's namespace that a user can see and set.
    pub(super) fn pod_as_seen(&self) -> String {
        run(
            &self.pod,
            "ip -details link | grep -v 'altname' | sed 's/_timer *[0-9.]*//g; s/fdb_n_learned [0-9]*//'
             ip address | grep -v valid_lft
             ip route show table all | sort
             ip -6 route show table all | sort
             ip rule
             ip -6 rule
             ip neighbour show nud permanent
             ip -6 neighbour show nud permanent
             tc qdisc
             for uplink in /proc/sys/net/ipv6/conf/*; do
                 echo $uplink $(cat $uplink/router_solicitations $uplink/ndisc_notify $uplink/disable_ipv6)
             done
             cat /proc/sys/net/bridge/bridge-nf-call-* 2>&1 || true",
        )
    }
}

/// Asserts that the pod is as [`Lab::pod_as_seen`] gave it before; `place` says where that is not so.
#[track_caller]
pub(super) fn assert_as_before(lab: &Lab, before: &str, place: &str) {
    let after = lab.pod_as_seen();
    let gone = before.lines().filter(|line| !after.contains(*line));
    let new = after.lines().filter(|line| !before.contains(*line));
    let changes: Vec<String> = gone
        .map(|line| format!("- {line}"))
        .chain(new.map(|line| format!("+ {line}")))
        .collect();
    assert!(after == before, "{place}: {changes:#?}");
}

fn path(netns: &Netns) -> String {
    let descriptor = netns.as_fd().as_raw_fd();
    format!("/proc/{}/fd/{descriptor}", std::process::id())
}

/// Runs a shell script in a namespace and gives what it prints.
pub(super) fn run(netns: &Netns, script: &str) -> String {
    let output = netns
        .run(|| Command::new("sh").args(["-ec", script]).output())
        .unwrap()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{text}{errors}");
    text
}

/// The guest's interface of that name.
pub(super) fn interface<'a>(guest: &'a SetNetworkRequest, name: &str) -> &'a Interface {
    guest
        .interfaces
        .iter()
        .find(|interface| interface.name == name)
        .unwrap_or_else(|| panic!("no {name} in {guest:?}"))
}

/// The addresses of an interface, in order.
pub(super) fn cidrs(interface: &Interface) -> Vec<&str> {
    let addresses = interface.addresses.iter();
    addresses.map(|address| address.cidr.as_str()).collect()
}
