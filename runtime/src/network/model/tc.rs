//! The tc model: what arrives at the uplink is redirected to the tap, and what arrives from the tap to the uplink.
//!
//! The uplink stays as it is, with its MAC address, which is the guest's as well. The redirection takes packets
//! before the namespace's own stack sees them, so that it answers nothing.

use netlink_packet_route::link::InfoKind;

use super::super::error::Error;
use super::super::link::{Link, Links};
use super::super::netlink::Netlink;
use super::super::state::NicState;
use super::{MAKE_TAP, Step, Wiring};

pub(super) struct Tc;

impl Wiring for Tc {
    fn objection(&self, netlink: &Netlink, link: &Link) -> Result<Option<&'static str>, Error> {
        Ok(netlink.has_ingress_qdisc(link)?.then_some(
            "it has an ingress qdisc of its own, which the redirection would have to replace",
        ))
    }

    fn ipv6_settings(&self) -> &'static [&'static str] {
        &[]
    }

    fn steps(&self) -> &'static [Step] {
        STEPS
    }

    fn is_intact(&self, nic: &NicState, uplink: &Link, links: &Links) -> bool {
        let tap = links.named(&nic.tap_name());
        uplink.mac == Some(nic.uplink.mac)
            && tap.is_some_and(|tap| tap.is(&InfoKind::Tun) && tap.is_up())
    }
}

const STEPS: &[Step] = &[
    MAKE_TAP,
    Step {
        name: "set the tap up",
        apply: |work| work.netlink.set_up(&work.named(&work.nic.tap_name())?),
        undo: |_| Ok(()),
    },
    Step {
        name: "redirect from the tap to the uplink",
        apply: |work| {
            let tap = work.named(&work.nic.tap_name())?;
            work.netlink.redirect(&tap, &work.uplink()?)
        },
        undo: |work| match work.netlink.link_by_name(&work.nic.tap_name())? {
            Some(tap) => work.netlink.delete_ingress_qdisc(&tap),
            None => Ok(()),
        },
    },
    Step {
        name: "redirect from the uplink to the tap",
        apply: |work| {
            let tap = work.named(&work.nic.tap_name())?;
            work.netlink.redirect(&work.uplink()?, &tap)
        },
        undo: |work| match work.uplink_if_there()? {
            Some(uplink) => work.netlink.delete_ingress_qdisc(&uplink),
            None => Ok(()),
        },
    },
];
