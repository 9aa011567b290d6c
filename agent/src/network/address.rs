//! The addresses of an interface.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error_text::with_causes;

use super::netlink::{Netlink, NetlinkError};
use super::wanted::{Address, Prefix};

/// Flags that are settings; the others tell the kernel's state of an address on the host.
const SETTINGS: AddressFlags = AddressFlags::Homeaddress
    .union(AddressFlags::Managetempaddr)
    .union(AddressFlags::Noprefixroute);

/// Makes the addresses of the interface be the wanted ones: removes others first, then adds.
pub(super) async fn replace(
    netlink: &Netlink,
    index: u32,
    name: &str,
    wanted: &[Address],
    failures: &mut Vec<String>,
) -> Result<(), NetlinkError> {
    for present in netlink.addresses(index).await? {
        let Some(prefix) = prefix(&present) else {
            continue;
        };
        let keep = wanted.iter().any(|address| address.prefix == prefix);
        if keep || is_the_kernels(&present, prefix.address) {
            continue;
        }
        match netlink
            .change(RouteNetlinkMessage::DelAddress(present), 0)
            .await
        {
            // It went with another one, as a secondary address goes.
            Err(error) if error.errno() == Some(libc::EADDRNOTAVAIL) => {}
            Err(error) => failures.push(format!(
                "remove {prefix} from {name}: {}",
                with_causes(&error)
            )),
            Ok(()) => {}
        }
    }
    for address in wanted {
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

/// Link-local and router-advertised addresses come and go by themselves.
fn is_the_kernels(message: &AddressMessage, address: IpAddr) -> bool {
    let IpAddr::V6(address) = address else {
        return false;
    };
    address.is_unicast_link_local()
        || message.attributes.contains(&AddressAttribute::Protocol(
            AddressProtocol::RouterAnnouncement,
        ))
}

fn message(index: u32, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    let ip = address.prefix.address;
    message.header.index = index;
    message.header.prefix_len = address.prefix.length;
    message.header.scope = address.scope.into();
    let mut flags = AddressFlags::from_bits_retain(address.flags) & SETTINGS;
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
    ];
    message
        .attributes
        .extend(address.broadcast.map(AddressAttribute::Broadcast));
    message
}
