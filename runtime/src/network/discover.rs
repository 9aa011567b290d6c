//! What a network namespace holds: interfaces with their addresses, routes, rules and neighbours.
//!
//! Names and addresses come from getifaddrs(3); rtnetlink(7) tells what that cannot.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::error::Error;
use super::link::{Link, Links};
use super::mac::MacAddress;
use super::netlink::Netlink;
use super::state::SavedNeighbour;
use super::sysctl;

/// A namespace at (nearly) one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) links: Links,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<RouteMessage>,
    pub(super) rules: Vec<RuleMessage>,
    /// Indices of the links on which IPv6 is switched off.
    pub(super) without_ipv6: HashSet<u32>,
    /// The permanent ones, each with the index of its link.
    pub(super) neighbours: Vec<(u32, SavedNeighbour)>,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) link: u32,
    pub(super) ip: IpAddr,
    pub(super) prefix: u8,
    pub(super) broadcast: Option<Ipv4Addr>,
    pub(super) flags: AddressFlags,
    /// `RT_SCOPE_*`.
    pub(super) scope: u8,
    /// Made by the kernel from a router advertisement.
    pub(super) autoconfigured: bool,
}

impl Snapshot {
    pub(super) fn take(netlink: &Netlink) -> Result<Self, Error> {
        let links = netlink.links()?;
        Ok(Self {
            addresses: addresses(&links, &netlink.addresses()?)?,
            routes: netlink.routes()?,
            rules: netlink.rules()?,
            neighbours: permanent_neighbours(netlink)?,
            without_ipv6: without_ipv6(&links)?,
            links,
        })
    }

    pub(super) fn addresses_of(&self, link: &Link) -> impl Iterator<Item = &Address> {
        let index = link.index;
        self.addresses
            .iter()
            .filter(move |address| address.link == index)
    }
}

fn without_ipv6(links: &Links) -> Result<HashSet<u32>, Error> {
    let mut indices = HashSet::new();
    for link in &links.0 {
        let path = sysctl::conf("ipv6", &link.name, "disable_ipv6");
        if sysctl::read(&path)?.as_deref() == Some("1") {
            indices.insert(link.index);
        }
    }
    Ok(indices)
}

fn addresses(links: &Links, details: &[AddressMessage]) -> Result<Vec<Address>, Error> {
    let mut addresses = Vec::new();
    for entry in getifaddrs().map_err(|errno| Error::Getifaddrs(errno.into()))? {
        let (Some(ip), Some(mask)) = (ip_of(entry.address), ip_of(entry.netmask)) else {
            continue;
        };
        let name = entry.interface_name;
        let prefix = prefix_of(mask);
        let detail = details
            .iter()
            .find(|detail| describes(detail, links, &name, ip, prefix));
        // One that has come between the two questions has no detail: the next look at the namespace gives it.
        if let Some(detail) = detail {
            addresses.push(Address::new(ip, prefix, detail));
        }
    }
    Ok(addresses)
}

impl Address {
    fn new(ip: IpAddr, prefix: u8, detail: &AddressMessage) -> Self {
        let mut address = Self {
            link: detail.header.index,
            ip,
            prefix,
            broadcast: None,
            flags: AddressFlags::from_bits_retain(detail.header.flags.bits().into()),
            scope: detail.header.scope.into(),
            autoconfigured: false,
        };
        let mut protocol = None;
        for attribute in &detail.attributes {
            match attribute {
                AddressAttribute::Broadcast(ip) => address.broadcast = Some(*ip),
                AddressAttribute::Flags(flags) => address.flags = *flags,
                AddressAttribute::Protocol(of) => protocol = Some(*of),
                _ => {}
            }
        }
        let permanent = address.flags.contains(AddressFlags::Permanent);
        // Kernels before 5.18 do not say where an address comes from; what expires is a router's there.
        address.autoconfigured = match protocol {
            Some(protocol) => protocol == AddressProtocol::RouterAnnouncement,
            None => ip.is_ipv6() && !permanent,
        };
        address
    }
}

/// Whether a message is about the address that getifaddrs(3) gave under `name`: its interface's name, or its label.
fn describes(detail: &AddressMessage, links: &Links, name: &str, ip: IpAddr, prefix: u8) -> bool {
    // IFA_LOCAL is the interface's own address; without it, IFA_ADDRESS is.
    let (mut local, mut address, mut label) = (None, None, None);
    for attribute in &detail.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Label(text) => label = Some(text.as_str()),
            _ => {}
        }
    }
    let link = links.indexed(detail.header.index);
    local.or(address) == Some(ip)
        && detail.header.prefix_len == prefix
        && (label == Some(name) || link.is_some_and(|link| link.name == name))
}

fn ip_of(address: Option<SockaddrStorage>) -> Option<IpAddr> {
    let address = address?;
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn prefix_of(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    u8::try_from(ones).unwrap_or(128)
}

/// The neighbours that somebody has entered, with the indices of their links.
pub(super) fn permanent_neighbours(netlink: &Netlink) -> Result<Vec<(u32, SavedNeighbour)>, Error> {
    let neighbours = netlink.neighbours()?;
    Ok(neighbours.iter().filter_map(permanent_neighbour).collect())
}

fn permanent_neighbour(message: &NeighbourMessage) -> Option<(u32, SavedNeighbour)> {
    let header = &message.header;
    if header.state != NeighbourState::Permanent || header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::V4(*ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::V6(*ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(MacAddress);
            }
            _ => {}
        }
    }
    let neighbour = SavedNeighbour {
        address: address?,
        mac: mac?,
    };
    Some((header.ifindex, neighbour))
}
