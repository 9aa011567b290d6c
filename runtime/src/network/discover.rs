//! What a network namespace holds: interfaces with their addresses, routes, rules and neighbours.
//!
//! Names and addresses come from getifaddrs(3); rtnetlink(7) tells what that cannot.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::link::LinkFlags;
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
use super::state::{NicState, SavedNeighbour};
use super::sysctl;

/// A namespace at (nearly) one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) links: Links,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<RouteMessage>,
    pub(super) rules: Vec<RuleMessage>,
    /// What IPv6 does on the links, by their indices. Without an entry: nothing out of the ordinary.
    pub(super) ipv6: HashMap<u32, Ipv6Settings>,
    /// The permanent ones, each with the index of its link.
    pub(super) neighbours: Vec<(u32, SavedNeighbour)>,
}

/// Settings of IPv6 on a link that a guest's interface shall have as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ipv6Settings {
    /// It is switched off.
    pub(super) disabled: bool,
    /// What routers announce is ignored: `accept_ra` is 0, or 1 where packets are forwarded.
    pub(super) ignores_routers: bool,
    /// No addresses are made of the prefixes that routers announce: `autoconf` is 0.
    pub(super) no_autoconfiguration: bool,
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
            ipv6: ipv6_settings(&links)?,
            links,
        })
    }

    pub(super) fn addresses_of(&self, link: &Link) -> impl Iterator<Item = &Address> {
        let index = link.index;
        self.addresses
            .iter()
            .filter(move |address| address.link == index)
    }

    /// Whether the kernel is about to decide on an address of an uplink, and then tells.
    pub(super) fn is_settling(&self, nics: &[NicState]) -> bool {
        let uplinks = nics
            .iter()
            .filter_map(|nic| self.links.indexed(nic.uplink.ifindex));
        // Without a carrier it waits for one.
        let mut connected = uplinks.filter(|link| link.flags.contains(LinkFlags::LowerUp));
        connected.any(|link| self.addresses_of(link).any(Address::is_being_checked))
    }
}

fn ipv6_settings(links: &Links) -> Result<HashMap<u32, Ipv6Settings>, Error> {
    let mut all = HashMap::new();
    for link in links.0.iter().filter(|link| !link.is_loopback()) {
        let is = |name: &str, value: &str| -> Result<bool, Error> {
            let read = sysctl::read(&sysctl::conf("ipv6", &link.name, name))?;
            Ok(read.as_deref() == Some(value))
        };
        let settings = Ipv6Settings {
            disabled: is("disable_ipv6", "1")?,
            ignores_routers: is("accept_ra", "0")?
                || (is("accept_ra", "1")? && is("forwarding", "1")?),
            no_autoconfiguration: is("autoconf", "0")?,
        };
        if settings != Ipv6Settings::default() {
            all.insert(link.index, settings);
        }
    }
    Ok(all)
}

fn addresses(links: &Links, details: &[AddressMessage]) -> Result<Vec<Address>, Error> {
    let mut addresses = Vec::new();
    // The loopback interface's, for one, always has an origin where the kernel knows of that (since 5.18).
    let origins_are_told = details
        .iter()
        .flat_map(|detail| &detail.attributes)
        .any(|attribute| matches!(attribute, AddressAttribute::Protocol(_)));
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
            addresses.push(Address::new(ip, prefix, detail, origins_are_told));
        }
    }
    Ok(addresses)
}

impl Address {
    fn new(ip: IpAddr, prefix: u8, detail: &AddressMessage, origins_are_told: bool) -> Self {
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
        // What expires is a router's where the kernel does not say what is.
        address.autoconfigured = if origins_are_told {
            protocol == Some(AddressProtocol::RouterAnnouncement)
        } else {
            ip.is_ipv6() && !permanent
        };
        address
    }

    /// Whether the kernel still asks if anybody else has it, so that it may not be used yet.
    pub(super) fn is_being_checked(&self) -> bool {
        let usable = AddressFlags::Optimistic | AddressFlags::Dadfailed;
        self.flags.contains(AddressFlags::Tentative) && !self.flags.intersects(usable)
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
