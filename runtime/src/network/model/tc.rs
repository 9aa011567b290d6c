//! The tc model: what arrives at the uplink is redirected to the tap, and what arrives from the tap to the uplink.
//!
//! The uplink stays as it is, with its MAC address, which is the guest's as well. The redirection takes packets
//! before the namespace's own stack sees them, so that it answers nothing. A link that lets only those multicast
//! frames through which its own stack has asked for is told to let all through, for the guest has groups of its own.

use netlink_packet_route::link::{InfoKind, IpVlanMode};

use super::super::error::Error;
use super::super::link::{Link, Links};
use super::super::netlink::Netlink;
use super::super::state::{Model, NicState};
use super::{MAKE_TAP, Step, Wiring, Work, bridge};

pub(super) struct Tc;

impl Wiring for Tc {
    fn model(&self) -> Model {
        Model::Tc
    }

    fn objection(&self, netlink: &Netlink, link: &Link) -> Result<Option<&'static str>, Error> {
        if link.ipvlan_mode == Some(IpVlanMode::L3S) {
            return Ok(Some(
                "an ipvlan in mode l3s hands packets to the namespace's own stack, past what could redirect them; \
                 use mode l2 or l3",
            ));
        }
        Ok(netlink.has_ingress_qdisc(link)?.then_some(
            "it has an ingress qdisc of its own, which the redirection would have to replace",
        ))
    }

    fn ipv6_settings(&self) -> &'static [&'static str] {
        &[]
    }

    /// What can be a bridge's port by all means filters nothing.
    fn opens_multicast_filter(&self, link: &Link) -> bool {
        !bridge::suits(link)
    }

    fn steps(&self) -> &'static [Step] {
        STEPS
    }

    fn is_intact(
        &self,
        netlink: &Netlink,
        nic: &NicState,
        uplink: &Link,
        links: &Links,
    ) -> Result<bool, Error> {
        let tap = links.named(&nic.tap_name());
        let Some(tap) = tap.filter(|tap| tap.is(&InfoKind::Tun) && tap.is_up()) else {
            return Ok(false);
        };
        Ok(uplink.mac == Some(nic.uplink.mac)
            && netlink.has_ingress_qdisc(uplink)?
            && netlink.has_ingress_qdisc(tap)?)
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
        name: "let the frames of every multicast group through",
        apply: |work| match work.nic.uplink.all_groups {
            Some(false) => set_all_groups(work, &work.uplink()?, true),
            _ => Ok(()),
        },
        undo: |work| match (work.uplink_if_there()?, work.nic.uplink.all_groups) {
            (Some(uplink), Some(false)) => set_all_groups(work, &uplink, false),
            _ => Ok(()),
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

fn set_all_groups(work: &Work<'_>, uplink: &Link, all: bool) -> Result<(), Error> {
    if uplink.takes_all_groups() == all {
        return Ok(());
    }
    work.netlink
        .change("set the multicast filter of", uplink, |change| {
            change.allmulticast(all)
        })
}
