//! Each step fails in turn, and the namespace is as it was.

use std::io;

use super::super::model::{Step, Work, suited, unwire, wire};
use super::super::netlink::Netlink;
use super::super::state::NicState;
use super::super::{Error, Model, Netns};
use super::kinds::{KINDS, Kind};
use super::lab::{Lab, assert_as_before, options, run};

const FAILS: Step = Step {
    name: "fail",
    apply: |_| Err(Error::Exhausted),
    undo: |_| Ok(()),
};

const LOSES_THE_UPLINK: Step = Step {
    name: "lose the uplink",
    apply: |work| {
        let uplink = work.netlink.link_by_name("eth0")?.unwrap();
        work.netlink.delete(&uplink)?;
        Err(Error::Exhausted)
    },
    undo: |_| Ok(()),
};

/// The steps by which a sandbox of `model` wires the pod's `eth0`.
fn steps(lab: &Lab, model: Model) -> &'static [Step] {
    let eth0 = lab
        .pod
        .run(|| Netlink::connect().unwrap().link_by_name("eth0").unwrap())
        .unwrap()
        .unwrap();
    suited(&options(model), &eth0).unwrap().steps()
}

/// What is kept of `eth0`'s NIC when its first step is about to be taken.
fn planned_nic(lab: &mut Lab, model: Model) -> NicState {
    let mut planned: Option<NicState> = None;
    let reconciled = lab.try_reconcile(model, |state| {
        let nic = || state.nics.iter().find(|nic| nic.uplink.name == "eth0");
        planned = planned.take().or_else(|| nic().cloned());
        Ok(())
    });
    drop(reconciled.unwrap());
    lab.undo();
    planned.unwrap()
}

/// Takes the steps, with one put in at `place` that fails, and undoes them all.
fn fail_at(place: usize, failing: Step, steps: &[Step], pod: &Netns, nic: &NicState) {
    let mut steps = steps.to_vec();
    steps.insert(place, failing);
    let failure = pod.run(|| {
        let mut work = Work {
            netlink: &Netlink::connect().unwrap(),
            nic,
            taps: vec![],
            vmm_has_tap: false,
        };
        let failure = wire(&steps, &mut work);
        unwire(&steps, &mut work).unwrap();
        failure
    });
    assert!(
        matches!(failure, Ok(Err(Error::Exhausted))),
        "step {place}: {failure:?}"
    );
}

/// Runs a test for every kind of uplink in sandboxes of both models.
fn for_each_kind_and_model(test: impl Fn(&Kind, Model)) {
    for kind in KINDS {
        for model in [Model::Bridge, Model::Tc] {
            test(kind, model);
        }
    }
}

/// The same, but once for a kind that both models wire by the same steps.
fn for_each_kind_and_wiring(test: impl Fn(&Kind, Model)) {
    for_each_kind_and_model(|kind, model| {
        if model == Model::Tc || kind.wired != Model::Tc {
            test(kind, model);
        }
    });
}

#[test]
fn when_a_step_fails_those_before_it_are_undone() {
    for_each_kind_and_wiring(|kind, model| {
        let Some(mut lab) = kind.lab() else { return };
        let before = lab.pod_as_seen();
        let nic = planned_nic(&mut lab, model);
        let steps = steps(&lab, model);
        for place in 0..=steps.len() {
            fail_at(place, FAILS, steps, &lab.pod, &nic);
            let place = format!("{}, {model}, step {place}", kind.name);
            assert_as_before(&lab, &before, &place);
        }
    });
}

#[test]
fn when_the_uplink_goes_before_a_step_what_is_hulls_goes_too() {
    for_each_kind_and_wiring(|kind, model| {
        let mut place = 0;
        loop {
            let Some(mut lab) = kind.lab() else { return };
            let nic = planned_nic(&mut lab, model);
            let steps = steps(&lab, model);
            fail_at(place, LOSES_THE_UPLINK, steps, &lab.pod, &nic);
            let links = run(&lab.pod, "ip -oneline link");
            assert!(
                !links.contains("hull-") && !links.contains("eth0"),
                "{}, {model:?}, step {place}: {links}",
                kind.name
            );
            if place == steps.len() {
                return;
            }
            place += 1;
        }
    });
}

#[test]
fn a_sandboxs_whole_life_leaves_nothing() {
    for_each_kind_and_model(|kind, model| {
        let Some(mut lab) = kind.lab() else { return };
        let before = lab.pod_as_seen();
        let reconciled = lab.reconcile(model);
        let wired = if model == Model::Bridge {
            kind.wired
        } else {
            model
        };
        assert_eq!(
            lab.state
                .nics
                .iter()
                .map(|nic| nic.model)
                .collect::<Vec<_>>(),
            [wired],
            "{}",
            kind.name
        );
        assert_eq!(reconciled.not_carried, [], "{}", kind.name);
        let again = lab.reconcile(model);
        assert!(
            again.attach.is_empty() && again.detach.is_empty(),
            "{}, {model:?}: {again:?}",
            kind.name
        );
        drop(reconciled);
        lab.undo_from_kept();
        assert_as_before(&lab, &before, &format!("{}, {model}", kind.name));
    });
}

#[test]
fn when_the_state_cannot_be_kept_everything_is_undone_at_once() {
    for model in [Model::Bridge, Model::Tc] {
        let mut fails_at = 0;
        loop {
            let mut lab = Lab::with_eth0();
            lab.cable("veth1", "eth1", "02:42:0a:00:01:02");
            run(
                &lab.pod,
                "ip neighbour add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0",
            );
            let before = lab.pod_as_seen();
            let mut calls = 0;
            let result = lab.try_reconcile(model, |_| {
                calls += 1;
                if calls > fails_at {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(())
            });
            if result.is_ok() {
                break;
            }
            assert!(matches!(result, Err(Error::Persist(_))), "{result:?}");
            assert_eq!(lab.state.nics, []);
            // But for the sysctls, which are back when the sandbox is undone.
            lab.undo_from_kept();
            assert_as_before(&lab, &before, &format!("{model}, fails at {fails_at}"));
            fails_at += 1;
        }
        assert!(fails_at >= 2, "the state is kept before each change");
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
    assert_as_before(&lab, &before, "after the second has failed");
}
