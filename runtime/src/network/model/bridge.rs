//! The bridge model: uplink and tap are ports of a bridge, and the guest's NIC has the uplink's MAC address.
//!
//! The addresses stay on the uplink, so the namespace's own stack must not answer for them. A bridge hands what is
//! for its own MAC address, and every broadcast and multicast frame, up to that stack as received by the bridge
//! itself. So the bridge takes no ARP (`IFF_NOARP`), no IPv6 (`disable_ipv6`), no unicast IPv4 packet in a broadcast
//! frame (`drop_unicast_in_l2_multicast`), and none from a source that is not behind it, as none is (`rp_filter`).
//! These are settings of hull's own bridge and go with it. The uplink sends no ARP either, or whoever sends from
//! within the namespace would spread a MAC address for the guest's IP address that is not the guest's; and for the
//! same reason it neither solicits routers nor announces its new MAC address.

use netlink_packet_route::link::{BridgeStpState, InfoKind};
use rtnetlink::LinkBridge;

use super::super::error::Error;
use super::super::link::{Link, Links};
use super::super::netlink::Netlink;
use super::super::state::{Model, NicState};
use super::super::sysctl;
use super::{MAKE_TAP, Step, Wiring, Work, delete_own};

pub(super) struct Bridge;

/// Whether a link can be a port of hull's bridge: its MAC address is its own, may be changed and put back without
/// anything else having noticed, and it lets frames for any other pass. For the rest:
///
/// - a physical NIC goes back to the host with the MAC address that it has when the namespace dies;
/// - a VLAN's and a bond's MAC address is that of the link below, which it stops following once it was set;
/// - a macvlan receives nothing for another MAC address than its own;
/// - an ipvlan has its parent's MAC address and cannot change it;
/// - a bridge cannot be the port of another;
/// - and what is unknown here is better left as it is.
pub(super) fn suits(link: &Link) -> bool {
    use InfoKind::{Dummy, Geneve, GreTap, GreTap6, Tun, Veth, Vxlan};
    matches!(
        link.kind,
        Some(Veth | Tun | Dummy | Vxlan | Geneve | GreTap | GreTap6)
    )
}

impl Wiring for Bridge {
    fn model(&self) -> Model {
        Model::Bridge
    }

    fn objection(&self, _: &Netlink, _: &Link) -> Result<Option<&'static str>, Error> {
        Ok(None)
    }

    fn ipv6_settings(&self) -> &'static [&'static str] {
        ANNOUNCING
    }

    /// A port of a bridge receives everything.
    fn opens_multicast_filter(&self, _: &Link) -> bool {
        false
    }

    fn steps(&self) -> &'static [Step] {
        STEPS
    }

    fn is_intact(
        &self,
        _: &Netlink,
        nic: &NicState,
        uplink: &Link,
        links: &Links,
    ) -> Result<bool, Error> {
        let bridge = links.named(&nic.bridge_name());
        let tap = links.named(&nic.tap_name());
        let (Some(bridge), Some(tap)) = (bridge, tap) else {
            return Ok(false);
        };
        Ok(uplink.master == Some(bridge.index)
            && tap.master == Some(bridge.index)
            && uplink.mac == Some(nic.assigned_mac())
            && !uplink.does_arp()
            && bridge.is_up()
            && tap.is_up())
    }
}

/// The settings with which IPv6 tells others a link's MAC address unasked; all of them off at 0.
const ANNOUNCING: &[&str] = &["router_solicitations", "ndisc_notify"];

const STEPS: &[Step] = &[
    MAKE_TAP,
    Step {
        name: "make the bridge",
        apply: make_bridge,
        undo: |work| delete_own(work, &work.nic.bridge_name(), &InfoKind::Bridge),
    },
    // Without ARP, and with another MAC address, the kernel forgets even a link's permanent neighbours. The two steps
    // about them stand around those changes, one for each direction.
    Step {
        name: "keep the uplink's permanent neighbours",
        apply: |_| Ok(()),
        undo: |work| match work.uplink_if_there()? {
            Some(uplink) => add_neighbours(work, &uplink),
            None => Ok(()),
        },
    },
    Step {
        name: "keep the uplink from sending ARP",
        apply: |work| set_arp(work, &work.uplink()?, false),
        undo: |work| match work.uplink_if_there()? {
            Some(uplink) => set_arp(work, &uplink, work.nic.uplink.arp),
            None => Ok(()),
        },
    },
    Step {
        name: "keep the uplink from announcing itself over IPv6",
        apply: |work| {
            let uplink = work.uplink()?;
            let mut settings = work.nic.uplink.ipv6.iter();
            settings.try_for_each(|saved| set_ipv6(&uplink, &saved.name, "0"))
        },
        undo: |work| match work.uplink_if_there()? {
            Some(uplink) => {
                let mut settings = work.nic.uplink.ipv6.iter();
                settings.try_for_each(|saved| set_ipv6(&uplink, &saved.name, &saved.value))
            }
            None => Ok(()),
        },
    },
    Step {
        name: "give the uplink its new MAC address",
        apply: |work| {
            let uplink = work.uplink()?;
            set_mac(work, &uplink, work.nic.assigned_mac().0)
        },
        undo: restore_mac,
    },
    Step {
        name: "enter the uplink's permanent neighbours again",
        apply: |work| add_neighbours(work, &work.uplink()?),
        undo: |_| Ok(()),
    },
    Step {
        name: "make the tap a port of the bridge",
        apply: |work| enslave(work, &work.named(&work.nic.tap_name())?),
        undo: |work| match work.netlink.link_by_name(&work.nic.tap_name())? {
            Some(tap) => release(work, &tap),
            None => Ok(()),
        },
    },
    Step {
        name: "make the uplink a port of the bridge",
        apply: |work| enslave(work, &work.uplink()?),
        undo: |work| match work.uplink_if_there()? {
            Some(uplink) => release(work, &uplink),
            None => Ok(()),
        },
    },
    // A host's bridge in hairpin mode sends the guest's broadcasts back to it. A bridge that learned from those would take
    // the guest to be behind the uplink. With two ports there is nothing to learn.
    Step {
        name: "keep the bridge from learning from the uplink",
        apply: |work| {
            let uplink = work.uplink()?;
            work.netlink
                .change_port("set the learning of", &uplink, |port| port.learning(false))
        },
        undo: |_| Ok(()),
    },
    Step {
        name: "set tap and bridge up",
        apply: |work| {
            work.netlink.set_up(&work.named(&work.nic.tap_name())?)?;
            work.netlink.set_up(&work.named(&work.nic.bridge_name())?)
        },
        undo: |_| Ok(()),
    },
];

fn make_bridge(work: &mut Work<'_>) -> Result<(), Error> {
    let name = work.nic.bridge_name();
    let bridge = LinkBridge::new(&name)
        .mcast_snooping(false)
        .stp_state(BridgeStpState::Disabled)
        .forward_delay(0)
        .arp(false)
        .build();
    work.netlink.add_link(&name, bridge)?;
    sysctl::write(&sysctl::conf("ipv6", &name, "disable_ipv6"), "1")?;
    for setting in ["drop_unicast_in_l2_multicast", "rp_filter"] {
        sysctl::write(&sysctl::conf("ipv4", &name, setting), "1")?;
    }
    Ok(())
}

fn set_arp(work: &Work<'_>, uplink: &Link, on: bool) -> Result<(), Error> {
    if uplink.does_arp() == on {
        return Ok(());
    }
    work.netlink
        .change("set ARP of", uplink, |change| change.arp(on))
}

fn set_ipv6(uplink: &Link, setting: &str, value: &str) -> Result<(), Error> {
    sysctl::write(&sysctl::conf("ipv6", &uplink.name, setting), value)
}

fn set_mac(work: &Work<'_>, uplink: &Link, mac: [u8; 6]) -> Result<(), Error> {
    work.netlink
        .change("set the MAC address of", uplink, |change| {
            change.address(mac.to_vec())
        })
}

/// Gives the uplink its own MAC address back, unless someone has given it another one meanwhile.
fn restore_mac(work: &mut Work<'_>) -> Result<(), Error> {
    let Some(uplink) = work.uplink_if_there()? else {
        return Ok(());
    };
    if uplink.mac == Some(work.nic.assigned_mac()) {
        set_mac(work, &uplink, work.nic.uplink.mac.0)?;
    }
    Ok(())
}

fn add_neighbours(work: &Work<'_>, uplink: &Link) -> Result<(), Error> {
    let mut neighbours = work.nic.neighbours.iter();
    neighbours.try_for_each(|neighbour| work.netlink.add_neighbour(uplink, neighbour))
}

fn enslave(work: &Work<'_>, port: &Link) -> Result<(), Error> {
    let bridge = work.named(&work.nic.bridge_name())?;
    work.netlink
        .change("make a port of the bridge of", port, |change| {
            change.controller(bridge.index)
        })
}

/// Takes a port from this NIC's bridge, and from no other.
fn release(work: &Work<'_>, port: &Link) -> Result<(), Error> {
    let bridge = work.netlink.link_by_name(&work.nic.bridge_name())?;
    match bridge {
        Some(bridge) if port.master == Some(bridge.index) => {
            work.netlink
                .change("take from its bridge", port, |change| change.nocontroller())
        }
        _ => Ok(()),
    }
}
