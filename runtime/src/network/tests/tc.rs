//! The tc model through the life of a sandbox.

use super::super::{Model, NotCarried};
use super::lab::{Lab, run};

#[test]
fn the_uplink_stays_as_it_is_but_for_the_redirection() {
    let mut lab = Lab::with_eth0();
    let before = lab.pod_as_seen();
    let uplink = run(&lab.pod, "ip link show eth0");
    let reconciled = lab.reconcile(Model::Tc);
    assert_eq!(reconciled.attach[0].config.mac, "02:42:0a:00:00:02");
    assert_eq!(run(&lab.pod, "ip link show eth0"), uplink);
    let filters = run(
        &lab.pod,
        "tc filter show dev eth0 ingress; tc filter show dev hull-tap0 ingress",
    );
    assert!(
        filters.contains("Redirect to device hull-tap0"),
        "{filters}"
    );
    assert!(filters.contains("Redirect to device eth0"), "{filters}");
    let again = lab.reconcile(Model::Tc);
    assert!(again.attach.is_empty() && again.detach.is_empty());
    drop(reconciled);
    lab.undo_from_kept();
    assert_eq!(lab.pod_as_seen(), before);
}

#[test]
fn an_uplink_with_an_ingress_qdisc_is_refused() {
    let mut lab = Lab::with_eth0();
    run(&lab.pod, "tc qdisc add dev eth0 clsact");
    let before = lab.pod_as_seen();
    let reconciled = lab.reconcile(Model::Tc);
    assert!(reconciled.attach.is_empty());
    assert!(
        matches!(&reconciled.not_carried[..], [NotCarried::Uplink { name, .. }, ..] if name == "eth0"),
        "{:?}",
        reconciled.not_carried
    );
    assert_eq!(lab.pod_as_seen(), before);
}

#[test]
fn a_macvlan_is_wired_by_tc_and_refused_by_bridge() {
    let mut lab = Lab::with_eth0();
    let pod = lab.pod_path();
    run(
        &lab.host,
        &format!(
            "ip link add parent0 type veth peer name parent1
             ip link set parent0 up
             ip link add link parent0 name macvlan0 address 02:42:0a:00:00:03 netns {pod} type macvlan mode bridge"
        ),
    );
    run(&lab.pod, "ip link set macvlan0 up");
    let refused = lab.reconcile(Model::Bridge);
    assert!(
        matches!(&refused.not_carried[..], [NotCarried::Uplink { name, .. }] if name == "macvlan0"),
        "{:?}",
        refused.not_carried
    );
    drop(refused);
    lab.undo();
    let taken = lab.reconcile(Model::Tc);
    assert_eq!(taken.not_carried, []);
    assert_eq!(taken.attach.len(), 2);
}
