//! Each step fails in turn, and the namespace is as it was.

use std::io;

use super::super::model::{Step, Work, unwire, wire, wiring};
use super::super::netlink::Netlink;
use super::super::state::{NicState, SavedNeighbour, SavedSetting, UplinkState};
use super::super::{Error, MacAddress, Model};
use super::lab::{Lab, run};

const FAILS: Step = Step {
    name: "fail",
    apply: |_| Err(Error::Exhausted),
    undo: |_| Ok(()),
};

fn nic_of_eth0(lab: &Lab, model: Model) -> NicState {
    let eth0 = lab
        .pod
        .run(|| Netlink::connect().unwrap().link_by_name("eth0").unwrap())
        .unwrap()
        .unwrap();
    NicState {
        index: 0,
        model,
        uplink: UplinkState {
            name: eth0.name.clone(),
            ifindex: eth0.index,
            mac: eth0.mac.unwrap(),
            arp: true,
            ipv6: vec![SavedSetting {
                name: "router_solicitations".into(),
                value: "-1".into(),
            }],
        },
        mtu: 1500,
        queue_pairs: 2,
        neighbours: vec![SavedNeighbour {
            address: "10.0.0.77".parse().unwrap(),
            mac: MacAddress([2, 0, 0, 0, 0, 0x77]),
        }],
    }
}

#[test]
fn when_a_step_fails_those_before_it_are_undone() {
    for model in [Model::Bridge, Model::Tc] {
        let lab = Lab::with_eth0();
        run(
            &lab.pod,
            "ip neighbour add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0",
        );
        let nic = nic_of_eth0(&lab, model);
        let before = lab.pod_as_seen();
        let steps = wiring(model).unwrap().steps();
        for place in 0..=steps.len() {
            let mut failing = steps.to_vec();
            failing.insert(place, FAILS);
            let result = lab.pod.run(|| {
                let mut work = Work {
                    netlink: &Netlink::connect().unwrap(),
                    nic: &nic,
                    taps: vec![],
                    vmm_has_tap: false,
                };
                let failure = wire(&failing, &mut work);
                unwire(&failing, &mut work).unwrap();
                failure
            });
            assert!(matches!(result, Ok(Err(Error::Exhausted))), "{result:?}");
            assert_eq!(lab.pod_as_seen(), before, "{model:?}, step {place}");
        }
    }
}

#[test]
fn when_the_uplink_goes_before_a_step_what_is_hulls_goes_too() {
    for model in [Model::Bridge, Model::Tc] {
        let steps = wiring(model).unwrap().steps();
        for place in 0..=steps.len() {
            let lab = Lab::with_eth0();
            let nic = nic_of_eth0(&lab, model);
            let mut failing = steps.to_vec();
            failing.insert(
                place,
                Step {
                    name: "lose the uplink",
                    apply: |work| {
                        let uplink = work.netlink.link_by_name("eth0")?.unwrap();
                        work.netlink.delete(&uplink)?;
                        Err(Error::Exhausted)
                    },
                    undo: |_| Ok(()),
                },
            );
            let result = lab.pod.run(|| {
                let mut work = Work {
                    netlink: &Netlink::connect().unwrap(),
                    nic: &nic,
                    taps: vec![],
                    vmm_has_tap: false,
                };
                let failure = wire(&failing, &mut work);
                unwire(&failing, &mut work).unwrap();
                failure
            });
            assert!(matches!(result, Ok(Err(Error::Exhausted))), "{result:?}");
            let links = run(&lab.pod, "ip -oneline link");
            assert_eq!(links.lines().count(), 1, "{model:?}, step {place}: {links}");
        }
    }
}

#[test]
fn when_the_state_cannot_be_kept_everything_is_undone_at_once() {
    for fails_at in 0..6 {
        let mut lab = Lab::with_eth0();
        lab.cable("veth1", "eth1", "02:42:0a:00:01:02");
        run(
            &lab.pod,
            "ip neighbour add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0",
        );
        let before = lab.pod_as_seen();
        let mut calls = 0;
        let result = lab.try_reconcile(Model::Bridge, |_| {
            calls += 1;
            if calls > fails_at {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        });
        assert!(matches!(result, Err(Error::Persist(_))), "{result:?}");
        assert_eq!(lab.state.nics, []);
        // But for the sysctls, which are back when the sandbox is undone.
        lab.undo_from_kept();
        assert_eq!(lab.pod_as_seen(), before, "fails at {fails_at}");
    }
}

#[test]
fn when_the_second_interface_fails_the_first_is_released_too() {
    let mut lab = Lab::with_eth0();
    lab.cable("veth1", "eth1", "02:42:0a:00:01:02");
    // What is a macvlan's parent cannot be a bridge's port, which only the kernel tells.
    let host = lab.host_path();
    run(
        &lab.pod,
        &format!("ip link add link eth1 name child netns {host} type macvlan"),
    );
    let before = lab.pod_as_seen();
    let result = lab.try_reconcile(Model::Bridge, |_| Ok(()));
    assert!(
        matches!(&result, Err(Error::Netlink { object, source, .. })
            if object == "eth1" && source.errno() == Some(libc::EBUSY)),
        "{result:?}"
    );
    assert_eq!(lab.state.nics, []);
    lab.undo_from_kept();
    assert_eq!(lab.pod_as_seen(), before);
}
