//! Links: which NIC is which interface, their names, MTU, and whether they are up.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};

use crate::error_text::with_causes;

use super::netlink::{Netlink, NetlinkError};
use super::wanted::{Interface, Mac};

/// An Ethernet link of the guest.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Mac,
    /// `mac` is the address that the device came with, and not one that was set later.
    permanent: bool,
    pub mtu: u32,
    pub up: bool,
    /// It resolves the addresses of neighbours.
    pub arp: bool,
}

impl Link {
    fn of(message: &LinkMessage) -> Option<Self> {
        if message.header.link_layer_type != LinkLayerType::Ether {
            return None;
        }
        let (mut name, mut mac, mut permanent, mut mtu) = (None, None, None, 0);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text.clone()),
                LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::PermAddress(bytes) => permanent = bytes.as_slice().try_into().ok(),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                _ => {}
            }
        }
        Some(Self {
            index: message.header.index,
            name: name?,
            mac: Mac(permanent.or(mac)?),
            permanent: permanent.is_some(),
            mtu,
            up: message.header.flags.contains(LinkFlags::Up),
            arp: !message.header.flags.contains(LinkFlags::Noarp),
        })
    }
}

/// All Ethernet links by their MAC address. A NIC goes before a link that a container made with the same one.
pub(super) async fn by_mac(netlink: &Netlink) -> Result<HashMap<Mac, Link>, NetlinkError> {
    let mut links: HashMap<Mac, Link> = HashMap::new();
    for link in netlink.links().await?.iter().filter_map(Link::of) {
        let known = links.get(&link.mac);
        if known.is_none_or(|known| link.permanent && !known.permanent) {
            links.insert(link.mac, link);
        }
    }
    Ok(links)
}

/// The indices of all links by name.
pub(super) async fn indices(netlink: &Netlink) -> Result<HashMap<String, u32>, NetlinkError> {
    let links = netlink.links().await?;
    let named = links.iter().filter_map(|link| {
        let name = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
        Some((name?, link.header.index))
    });
    Ok(named.collect())
}

/// Changes a link: a flag, or an attribute.
async fn set(
    netlink: &Netlink,
    index: u32,
    flag: Option<(LinkFlags, bool)>,
    attribute: Option<LinkAttribute>,
) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if let Some((flag, on)) = flag {
        message.header.change_mask = flag;
        message.header.flags.set(flag, on);
    }
    message.attributes.extend(attribute);
    netlink
        .change(RouteNetlinkMessage::SetLink(message), 0)
        .await
}

pub(super) async fn set_up(netlink: &Netlink, index: u32, up: bool) -> Result<(), NetlinkError> {
    set(netlink, index, Some((LinkFlags::Up, up)), None).await
}

pub(super) async fn set_arp(netlink: &Netlink, index: u32, arp: bool) -> Result<(), NetlinkError> {
    set(netlink, index, Some((LinkFlags::Noarp, !arp)), None).await
}

pub(super) async fn set_mtu(netlink: &Netlink, index: u32, mtu: u32) -> Result<(), NetlinkError> {
    set(netlink, index, None, Some(LinkAttribute::Mtu(mtu))).await
}

/// Renames a link; older kernels want it down for that, and it stays down then.
async fn rename(netlink: &Netlink, index: u32, name: &str) -> Result<(), NetlinkError> {
    let attribute = || Some(LinkAttribute::IfName(name.to_owned()));
    match set(netlink, index, None, attribute()).await {
        Err(error) if error.errno() == Some(libc::EBUSY) => {
            set_up(netlink, index, false).await?;
            set(netlink, index, None, attribute()).await
        }
        other => other,
    }
}

/// Gives links their names. A name that another link still has is freed first: that link gets one that nobody wants,
/// `hull<index>`, until its own turn.
pub(super) async fn give_names(
    netlink: &Netlink,
    wanted: &[(&Interface, &Link)],
    failures: &mut Vec<String>,
) -> Result<(), NetlinkError> {
    let mut indices = indices(netlink).await?;
    let mut names: HashMap<u32, String> = indices.iter().map(|(n, i)| (*i, n.clone())).collect();
    for (interface, link) in wanted {
        if let Some(&holder) = indices.get(&interface.name)
            && holder != link.index
        {
            let spare = format!("hull{holder}");
            if let Err(error) = rename(netlink, holder, &spare).await {
                failures.push(format!(
                    "free the name {}: {}",
                    interface.name,
                    with_causes(&error)
                ));
                continue;
            }
            indices.remove(&interface.name);
            names.insert(holder, spare.clone());
            indices.insert(spare, holder);
        }
    }
    for (interface, link) in wanted {
        if names.get(&link.index) == Some(&interface.name) {
            continue;
        }
        if let Err(error) = rename(netlink, link.index, &interface.name).await {
            failures.push(format!(
                "rename {} to {}: {}",
                link.mac,
                interface.name,
                with_causes(&error)
            ));
        }
    }
    Ok(())
}

/// Sets what IPv6 does on an interface before it comes up; `before` is the interface as it was wanted before, if it
/// was. Says whether the interface has IPv6 then. The host's side has checked the addresses for duplicates.
///
/// What is not a change of the host's side is left to the container: one that switches IPv6 off by a sysctl of its own
/// keeps it off.
pub(super) fn prepare_ipv6(interface: &Interface, before: Option<&Interface>) -> io::Result<bool> {
    let root = Path::new("/proc/sys/net/ipv6/conf").join(&interface.name);
    if !root.exists() {
        // A kernel without IPv6. Addresses, if there are any, will say so.
        return Ok(true);
    }
    let was_off = before.is_some_and(|before| before.disable_ipv6);
    let has_ipv6 = interface
        .addresses
        .iter()
        .any(|one| one.prefix.address.is_ipv6());
    if interface.disable_ipv6 {
        fs::write(root.join("disable_ipv6"), "1")?;
    } else if was_off || (before.is_none() && has_ipv6) {
        fs::write(root.join("disable_ipv6"), "0")?;
    }
    fs::write(root.join("accept_dad"), "0")?;
    let switches = [
        (
            "accept_ra",
            interface.accept_ra,
            before.map(|before| before.accept_ra),
        ),
        (
            "autoconf",
            interface.autoconf,
            before.map(|before| before.autoconf),
        ),
    ];
    for (name, on, before) in switches {
        // On is the kernel's default.
        if !on || before == Some(false) {
            fs::write(root.join(name), if on { "1" } else { "0" })?;
        }
    }
    Ok(fs::read_to_string(root.join("disable_ipv6"))?.trim_end() == "0")
}
