//! Which links of a namespace are the container's interfaces, and which of those a VM can have.

use std::collections::HashSet;

use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::InfoKind;

use super::discover::Snapshot;
use super::error::Error;
use super::link::{Link, Links};
use super::mac::MacAddress;
use super::model::Wiring;
use super::netlink::Netlink;
use super::state::{NicState, index_of_own_name};
use super::tap;

/// The smallest MTU with which a link has IPv4.
const MIN_MTU: u32 = 68;

/// A link that a NIC can stand for.
#[derive(Debug)]
pub(super) struct Uplink<'a> {
    pub(super) link: &'a Link,
    pub(super) mac: MacAddress,
    pub(super) mtu: u16,
}

/// Why a link has no NIC.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is not of a kind that can have one.
    Unsuitable(String),
    /// Something failed.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl<'a> Uplink<'a> {
    /// Looks whether `link` can be wired beside the NICs that there are.
    pub(super) fn inspect(
        netlink: &Netlink,
        links: &Links,
        carriers: &HashSet<u32>,
        nics: &[NicState],
        wiring: &dyn Wiring,
        link: &'a Link,
    ) -> Result<Self, Refusal> {
        let unsuitable = |reason: String| Err(Refusal::Unsuitable(reason));
        if let Some(lower) = link.lower.and_then(|index| links.indexed(index))
            && !carriers.contains(&lower.index)
        {
            let name = &lower.name;
            return unsuitable(format!(
                "it is stacked on {name}, which has addresses and is given to the VM itself"
            ));
        }
        if let Some(vrf) = link.master.and_then(|index| links.indexed(index)) {
            return unsuitable(format!("it belongs to the VRF {}", vrf.name));
        }
        let Some(mac) = link.mac.filter(|mac| mac.is_unicast()) else {
            return unsuitable("it does not carry Ethernet frames".into());
        };
        if let Some(twin) = nics.iter().find(|nic| nic.uplink.mac == mac) {
            let name = &twin.uplink.name;
            return unsuitable(format!("{name} has the same MAC address, {mac}"));
        }
        let mtu = match u16::try_from(link.mtu) {
            Ok(mtu) if (MIN_MTU..=tap::MAX_MTU).contains(&link.mtu) => mtu,
            _ => {
                let (mtu, max) = (link.mtu, tap::MAX_MTU);
                return unsuitable(format!(
                    "its MTU is {mtu}, and a tap has {MIN_MTU} to {max}"
                ));
            }
        };
        if let Some(reason) = wiring.objection(netlink, link)? {
            return unsuitable(reason.into());
        }
        Ok(Self { link, mac, mtu })
    }
}

/// The links that are the container's and have no NIC yet: not the loopback interface, not hull's own, and not behind
/// another link, be it that they are ports of one or among its [`carriers`].
pub(super) fn without_nic<'a>(
    links: &'a Links,
    carriers: &HashSet<u32>,
    nics: &[NicState],
) -> Vec<&'a Link> {
    let has_nic = |link: &Link| nics.iter().any(|nic| nic.uplink.ifindex == link.index);
    let of_container = links.0.iter().filter(|link| is_containers(links, link));
    of_container
        .filter(|link| !carriers.contains(&link.index) && !has_nic(link))
        .collect()
}

/// The indices of the links that are there only to carry others of the namespace: a VLAN's parent that has no address
/// but those of its link.
pub(super) fn carriers(netlink: &Netlink, links: &Links) -> Result<HashSet<u32>, Error> {
    let mut carriers: HashSet<u32> = links.0.iter().filter_map(|link| link.lower).collect();
    if !carriers.is_empty() {
        for address in netlink.addresses()? {
            if address.header.scope != AddressScope::Link {
                carriers.remove(&address.header.index);
            }
        }
    }
    Ok(carriers)
}

fn is_containers(links: &Links, link: &Link) -> bool {
    let own_kind = link.is(&InfoKind::Bridge) || link.is(&InfoKind::Tun);
    let own = own_kind && index_of_own_name(&link.name).is_some();
    let master = link.master.and_then(|index| links.indexed(index));
    !own && !link.is_loopback() && master.is_none_or(|master| master.is(&InfoKind::Vrf))
}

/// Whether somebody uses a link. Kernels put some into every namespace that nobody does: `tunl0`, `gretap0`.
pub(super) fn is_in_use(snapshot: &Snapshot, link: &Link) -> bool {
    link.is_up() || snapshot.addresses_of(link).next().is_some()
}
