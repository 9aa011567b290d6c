//! The addresses of an interface.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error_text::with_causes;

use super::link::Link;
use super::netlink::{Netlink, NetlinkError};
use super::wanted::{Address, Prefix};

/// Flags that are settings; the others tell the kernel's state of an address on the host.
const SETTINGS: AddressFlags = AddressFlags::Homeaddress
    .union(AddressFlags::Managetempaddr)
    .union(AddressFlags::Noprefixroute);

/// Takes the addresses of the interface away that `goes` names by what is there, but for the one that every link has.
pub(super) async fn remove(
    netlink: &Netlink,
    link: &Link,
    goes: impl Fn(Prefix, &AddressMessage) -> bool,
    failures: &mut Vec<String>,
) -> Result<(), NetlinkError> {
    for present in netlink.addresses(link.index).await? {
        let Some(prefix) = prefix(&present) else {
            continue;
        };
        if prefix.address == link.mac.link_local() || !goes(prefix, &present) {
            continue;
        }
        match netlink
            .change(RouteNetlinkMessage::DelAddress(present), 0)
            .await
        {
            // It went with another one, as a secondary address goes.
            Err(error) if error.errno() == Some(libc::EADDRNOTAVAIL) => {}
            Err(error) => failures.push(format!(
                "remove {prefix} from {}: {}",
                link.name,
                with_causes(&error)
            )),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Makes the interface have the wanted addresses in place of those that were wanted before. Others, which a container or
/// the kernel has made, stay.
pub(super) async fn replace(
    netlink: &Netlink,
    link: &Link,
    before: &[Address],
    wanted: &[Address],
    failures: &mut Vec<String>,
) -> Result<(), NetlinkError> {
    let (index, name) = (link.index, &link.name);
    let goes = |prefix: Prefix, present: &AddressMessage| {
        let of = |address: &&Address| address.prefix == prefix;
        match wanted.iter().find(of) {
            Some(address) => !can_become(present, address),
            None => before.iter().any(|address| of(&address)),
        }
    };
    remove(netlink, link, goes, failures).await?;
    // Only now, for an address may have taken its secondary ones along.
    let present = netlink.addresses(index).await?;
    for address in wanted {
        if present.iter().any(|present| is_already(present, address)) {
            continue;
        }
        let message = RouteNetlinkMessage::NewAddress(message(index, address));
        if let Err(error) = netlink.change(message, NLM_F_CREATE | NLM_F_REPLACE).await {
            failures.push(format!(
                "add {} to {name}: {}",
                address.prefix,
                with_causes(&error)
            ));
        }
    }
    Ok(())
}

fn prefix(message: &AddressMessage) -> Option<Prefix> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            // The address itself; IFA_ADDRESS is the peer's on a point-to-point link.
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(ip) => address = address.or(Some(*ip)),
            _ => {}
        }
    }
    Some(Prefix {
        address: address?,
        length: message.header.prefix_len,
    })
}

/// Whether a present address can be changed into the wanted one. Of an IPv4 address the kernel changes neither the
/// broadcast address nor whether it brings a route to its network.
fn can_become(present: &AddressMessage, wanted: &Address) -> bool {
    if wanted.prefix.address.is_ipv6() {
        return true;
    }
    let mut attributes = present.attributes.iter();
    let broadcast = attributes.find_map(|attribute| match attribute {
        AddressAttribute::Broadcast(address) => Some(*address),
        _ => None,
    });
    broadcast == wanted.broadcast
        && present.header.scope == wanted.scope.into()
        && !(flags(present) ^ wanted_flags(wanted)).contains(AddressFlags::Noprefixroute)
}

/// Whether a present address is the wanted one, with nothing left to change.
fn is_already(present: &AddressMessage, wanted: &Address) -> bool {
    let compared = SETTINGS | AddressFlags::Deprecated;
    let flags = flags(present);
    prefix(present) == Some(wanted.prefix)
        && can_become(present, wanted)
        && !(flags ^ wanted_flags(wanted)).intersects(compared)
        // It has no end, and is in use.
        && flags.contains(AddressFlags::Permanent)
        && !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
}

fn flags(present: &AddressMessage) -> AddressFlags {
    let mut attributes = present.attributes.iter();
    let flags = attributes.find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    flags.unwrap_or(AddressFlags::empty())
}

fn wanted_flags(wanted: &Address) -> AddressFlags {
    AddressFlags::from_bits_retain(wanted.flags)
}

fn message(index: u32, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    let ip = address.prefix.address;
    message.header.index = index;
    message.header.prefix_len = address.prefix.length;
    message.header.scope = address.scope.into();
    let mut flags = wanted_flags(address) & SETTINGS;
    message.header.family = match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => {
            flags |= AddressFlags::Nodad;
            AddressFamily::Inet6
        }
    };
    message.attributes = vec![
        AddressAttribute::Local(ip),
        AddressAttribute::Address(ip),
        AddressAttribute::Flags(flags),
        AddressAttribute::CacheInfo(lifetimes(address)),
    ];
    message
        .attributes
        .extend(address.broadcast.map(AddressAttribute::Broadcast));
    message
}

/// No end, for the host's side takes an address away when its time is over. One that is deprecated there is not to be
/// the source of new connections: it is not preferred any more.
fn lifetimes(address: &Address) -> CacheInfo {
    const FOR_EVER: u32 = u32::MAX;
    let deprecated = wanted_flags(address).contains(AddressFlags::Deprecated);
    // The crate lets nobody name all the fields.
    let mut lifetimes = CacheInfo::default();
    lifetimes.ifa_valid = FOR_EVER;
    lifetimes.ifa_preferred = if deprecated { 0 } else { FOR_EVER };
    lifetimes
}
