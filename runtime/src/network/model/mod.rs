//! How an uplink is wired to the tap of a NIC: a table of steps for each model, each step with its undo.
//!
//! The model of a sandbox says what is wanted; [`suited`] says what an uplink of its kind gets:
//!
//! | uplink | model `bridge` | model `tc` |
//! |---|---|---|
//! | veth, tap, dummy, VXLAN, GENEVE, GRE tap | bridge | tc |
//! | physical NIC, VLAN, bond, bridge, macvlan, ipvlan in mode l2 or l3, anything else with Ethernet frames | tc | tc |
//! | made by CNI, where nobody has chosen the model: its `CHECK` compares the uplink with what it has made | tc | tc |
//! | ipvlan in mode l3s; what has no Ethernet frames (tun, WireGuard) | refused | refused |
//! | with an ingress qdisc of the user's | as above, but refused where that is tc | refused |

mod bridge;
mod tc;

use std::os::fd::OwnedFd;
use std::path::Path;

use netlink_packet_route::link::InfoKind;

use super::cni;
use super::error::Error;
use super::link::{Link, Links};
use super::netlink::Netlink;
use super::reconcile::Options;
use super::state::{Model, NicState};
use super::{sysctl, tap};

/// A way to wire uplinks.
pub(super) trait Wiring: Sync {
    /// The model that it is.
    fn model(&self) -> Model;

    /// Why an Ethernet link that it was chosen for ([`suited`]) cannot be wired so; nothing if it can.
    fn objection(&self, netlink: &Netlink, link: &Link) -> Result<Option<&'static str>, Error>;

    /// IPv6 settings of the uplink that the steps change.
    fn ipv6_settings(&self) -> &'static [&'static str];

    /// Whether the steps make the uplink take the frames of every multicast group.
    fn opens_multicast_filter(&self, link: &Link) -> bool;

    /// What is to be done, in this order.
    fn steps(&self) -> &'static [Step];

    /// Whether everything that the steps made for `nic` is there and in its place.
    fn is_intact(
        &self,
        netlink: &Netlink,
        nic: &NicState,
        uplink: &Link,
        links: &Links,
    ) -> Result<bool, Error>;
}

/// The wiring of a model; nothing for [`Model::None`].
pub(super) fn wiring(model: Model) -> Option<&'static dyn Wiring> {
    match model {
        Model::Bridge => Some(&bridge::Bridge),
        Model::Tc => Some(&tc::Tc),
        Model::None => None,
    }
}

/// The wiring of an uplink in a sandbox with these options; nothing for [`Model::None`].
pub(super) fn suited(options: &Options, uplink: &Link) -> Option<&'static dyn Wiring> {
    let is_cnis = || !options.chosen && cni::has_made(Path::new(cni::RESULTS), uplink);
    match options.model {
        Model::Bridge if !bridge::suits(uplink) || is_cnis() => wiring(Model::Tc),
        model => wiring(model),
    }
}

/// One change to the namespace. `undo` is right whether `apply` has run, has failed half-way, or never ran.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) apply: fn(&mut Work<'_>) -> Result<(), Error>,
    pub(super) undo: fn(&mut Work<'_>) -> Result<(), Error>,
}

/// What the steps work with.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) netlink: &'a Netlink,
    pub(super) nic: &'a NicState,
    /// The tap's descriptors, once it has been made by these steps.
    pub(super) taps: Vec<OwnedFd>,
    /// The tap is in a running VMM's hands: undoing leaves it, and it goes when the VMM closes it.
    pub(super) vmm_has_tap: bool,
}

impl Work<'_> {
    fn uplink(&self) -> Result<Link, Error> {
        let uplink = &self.nic.uplink;
        self.uplink_if_there()?.ok_or_else(|| Error::LinkGone {
            name: uplink.name.clone(),
        })
    }

    fn uplink_if_there(&self) -> Result<Option<Link>, Error> {
        self.netlink.link_by_index(self.nic.uplink.ifindex)
    }

    fn named(&self, name: &str) -> Result<Link, Error> {
        self.netlink
            .link_by_name(name)?
            .ok_or_else(|| Error::LinkGone { name: name.into() })
    }
}

/// Takes the steps up to the first that fails. Then all of them are to be undone, by [`unwire`].
pub(super) fn wire(steps: &[Step], work: &mut Work<'_>) -> Result<(), Error> {
    for step in steps {
        tracing::debug!(nic = work.nic.index, step = step.name, "wiring");
        (step.apply)(work)?;
    }
    Ok(())
}

/// Undoes all steps, the last one first, and goes on where one fails.
///
/// # Errors
/// The first failure.
pub(super) fn unwire(steps: &[Step], work: &mut Work<'_>) -> Result<(), Error> {
    let mut result = Ok(());
    for step in steps.iter().rev() {
        tracing::debug!(nic = work.nic.index, step = step.name, "unwiring");
        let undone = (step.undo)(work);
        result = result.and(undone);
    }
    result
}

/// Makes the tap: with the uplink's MTU, and mute as far as the namespace's own stack is concerned.
const MAKE_TAP: Step = Step {
    name: "make the tap",
    apply: |work| {
        let name = work.nic.tap_name();
        work.taps = tap::create(&name, work.nic.queue_pairs)?;
        sysctl::write(&sysctl::conf("ipv6", &name, "disable_ipv6"), "1")?;
        let mtu = work.uplink()?.mtu;
        let tap = work.named(&name)?;
        work.netlink
            .change("set the MTU of", &tap, |change| change.mtu(mtu))
    },
    undo: |work| {
        work.taps.clear();
        if work.vmm_has_tap {
            return Ok(());
        }
        delete_own(work, &work.nic.tap_name(), &InfoKind::Tun)
    },
};

fn delete_own(work: &Work<'_>, name: &str, kind: &InfoKind) -> Result<(), Error> {
    match work.netlink.link_by_name(name)? {
        Some(link) if link.is(kind) => work.netlink.delete(&link),
        _ => Ok(()),
    }
}
