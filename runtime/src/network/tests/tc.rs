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
fn when_the_redirection_is_taken_away_it_is_made_anew() {
    let mut lab = Lab::with_eth0();
    let first = lab.reconcile(Model::Tc);
    run(&lab.pod, "tc qdisc del dev eth0 ingress");
    let second = lab.reconcile(Model::Tc);
    assert_eq!((second.detach.len(), second.attach.len()), (1, 1));
    drop(first);
    let third = lab.reconcile(Model::Tc);
    assert!(third.detach.is_empty() && third.attach.is_empty());
}
