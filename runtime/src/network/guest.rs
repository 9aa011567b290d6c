//! What a namespace holds, as it is told to the guest's agent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hull_agent_protocol::agent::{Interface, IpAddress, Neighbour, Route, Rule, SetNetworkRequest};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressFlags;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteType,
    RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::discover::{Address, Snapshot};
use super::link::Link;
use super::mac::MacAddress;
use super::reconcile::NotCarried;
use super::state::{Model, NicState};

/// How long the agent waits for a NIC that has just been attached.
const NIC_WAIT_MS: u32 = 10_000;

/// The metric of the routes that the kernel makes for an IPv6 address.
const IPV6_KERNEL_METRIC: u32 = 256;

/// `NUD_PERMANENT` of <linux/neighbour.h>.
const NUD_PERMANENT: u32 = 0x80;

/// What of an address's flags the guest's kernel is to have as well; the rest are states.
const CARRIED_FLAGS: AddressFlags = AddressFlags::Nodad
    .union(AddressFlags::Homeaddress)
    .union(AddressFlags::Deprecated)
    .union(AddressFlags::Noprefixroute)
    .union(AddressFlags::Mcautojoin);

/// The whole network of the guest, and what the namespace holds beyond that.
pub(super) fn view(snapshot: &Snapshot, nics: &[NicState]) -> (SetNetworkRequest, Vec<NotCarried>) {
    let uplinks: Vec<(&NicState, &Link)> = nics
        .iter()
        .filter_map(|nic| Some((nic, snapshot.links.indexed(nic.uplink.ifindex)?)))
        .collect();
    let mut not_carried = Vec::new();
    let mut request = SetNetworkRequest {
        wait_ms: NIC_WAIT_MS,
        ..Default::default()
    };
    for (nic, uplink) in &uplinks {
        request.interfaces.push(interface(snapshot, nic, uplink));
    }
    for message in &snapshot.routes {
        match route(snapshot, &uplinks, message) {
            Ok(None) => {}
            Ok(Some((route, complete))) => {
                if !complete {
                    not_carried.push(NotCarried::RouteMetrics {
                        destination: route.destination.clone(),
                    });
                }
                request.routes.push(route);
            }
            Err(reason) => not_carried.push(NotCarried::Route {
                destination: destination(message),
                reason: reason.into(),
            }),
        }
    }
    for message in &snapshot.rules {
        match rule(message) {
            Ok(rule) => request.rules.extend(rule),
            Err((priority, reason)) => not_carried.push(NotCarried::Rule {
                priority,
                reason: reason.into(),
            }),
        }
    }
    for (index, neighbour) in &snapshot.neighbours {
        let Some((_, uplink)) = uplinks.iter().find(|(_, link)| link.index == *index) else {
            continue;
        };
        request.neighbours.push(Neighbour {
            address: neighbour.address.to_string(),
            mac: neighbour.mac.to_string(),
            interface: uplink.name.clone(),
            state: NUD_PERMANENT,
            ..Default::default()
        });
    }
    (request, not_carried)
}

fn interface(snapshot: &Snapshot, nic: &NicState, uplink: &Link) -> Interface {
    let ipv6 = snapshot
        .ipv6
        .get(&uplink.index)
        .copied()
        .unwrap_or_default();
    Interface {
        mac: nic.uplink.mac.to_string(),
        name: uplink.name.clone(),
        mtu: uplink.mtu,
        addresses: addresses(snapshot, nic, uplink),
        up: uplink.is_up(),
        disable_ipv6: ipv6.disabled,
        ignore_router_advertisements: ipv6.ignores_routers,
        no_address_autoconfiguration: ipv6.no_autoconfiguration,
        no_arp: !does_arp(nic, uplink),
        ..Default::default()
    }
}

fn addresses(snapshot: &Snapshot, nic: &NicState, uplink: &Link) -> Vec<IpAddress> {
    let mut addresses: Vec<IpAddress> = Vec::new();
    for address in snapshot.addresses_of(uplink) {
        // Announcements of routers reach the guest and no longer the uplink: the guest's kernel makes the same
        // address, and keeps it alive.
        if address.autoconfigured
            || address.is_being_checked()
            || address.flags.contains(AddressFlags::Dadfailed)
        {
            continue;
        }
        let address = ip_address(snapshot, uplink, &as_without_hull(nic, address));
        if addresses.iter().all(|known| known.cidr != address.cidr) {
            addresses.push(address);
        }
    }
    addresses
}

/// An uplink that was set down and up has the link-local address of the MAC address that hull gave it, now or when it
/// was that of an earlier NIC. In the guest it is that of its own.
fn as_without_hull(nic: &NicState, address: &Address) -> Address {
    // Of all MAC addresses that hull gives, which differ in their last two bytes.
    let given = u128::from(link_local(nic.assigned_mac())) >> 16;
    let mut address = address.clone();
    if matches!(address.ip, IpAddr::V6(ip) if u128::from(ip) >> 16 == given) {
        address.ip = link_local(nic.uplink.mac).into();
    }
    address
}

/// The IPv6 address that a link has by its MAC address (RFC 4291, appendix A).
fn link_local(mac: MacAddress) -> Ipv6Addr {
    let MacAddress([a, b, c, d, e, f]) = mac;
    let interface = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let prefix = 0xfe80_u128 << 112;
    (prefix | u128::from(u64::from_be_bytes(interface))).into()
}

/// Whether an uplink does ARP where hull has not kept it from doing so.
fn does_arp(nic: &NicState, uplink: &Link) -> bool {
    match nic.model {
        Model::Bridge => nic.uplink.arp,
        Model::Tc | Model::None => uplink.does_arp(),
    }
}

fn ip_address(snapshot: &Snapshot, uplink: &Link, address: &Address) -> IpAddress {
    let mut flags = address.flags & CARRIED_FLAGS;
    let brings_route = snapshot
        .routes
        .iter()
        .any(|route| is_prefix_route_of(route, address));
    // Someone has replaced the route to the address's network (CNI's ptp plugin does): the guest's kernel shall not
    // make it. A link that is down has no routes, and a secondary address none of its own.
    let secondary = address.ip.is_ipv4() && address.flags.contains(AddressFlags::Secondary);
    if uplink.is_up() && !secondary && !address.is_single() && !brings_route {
        flags |= AddressFlags::Noprefixroute;
    }
    IpAddress {
        cidr: format!("{}/{}", address.ip, address.prefix),
        broadcast: address
            .broadcast
            .map(|broadcast| broadcast.to_string())
            .unwrap_or_default(),
        flags: flags.bits(),
        scope: address.scope.into(),
        ..Default::default()
    }
}

impl Address {
    /// The network that it is in.
    fn network(&self) -> IpAddr {
        match self.ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32)));
                IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask.unwrap_or(0)))
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix.min(128)));
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask.unwrap_or(0)))
            }
        }
    }

    /// Whether its network holds nothing but itself, so that there is no route to it.
    fn is_single(&self) -> bool {
        self.prefix == if self.ip.is_ipv4() { 32 } else { 128 }
    }
}

/// What hull looks at of a route.
#[derive(Default)]
struct RouteParts {
    destination: Option<IpAddr>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    link: Option<u32>,
    table: u32,
    metric: u32,
    mtu: u32,
    /// It has metrics other than an MTU.
    other_metrics: bool,
}

impl RouteParts {
    fn of(message: &RouteMessage) -> Result<Self, &'static str> {
        let mut parts = Self {
            table: message.header.table.into(),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => parts.destination = ip_of(address),
                RouteAttribute::Gateway(address) => parts.gateway = ip_of(address),
                RouteAttribute::Via(RouteVia::Inet(ip)) => parts.gateway = Some((*ip).into()),
                RouteAttribute::Via(RouteVia::Inet6(ip)) => parts.gateway = Some((*ip).into()),
                RouteAttribute::PrefSource(address) => parts.source = ip_of(address),
                RouteAttribute::Oif(index) => parts.link = Some(*index),
                RouteAttribute::Table(table) => parts.table = *table,
                RouteAttribute::Priority(metric) => parts.metric = *metric,
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(mtu) => parts.mtu = *mtu,
                            _ => parts.other_metrics = true,
                        }
                    }
                }
                RouteAttribute::MultiPath(_) => return Err("it has several next hops"),
                RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => {
                    return Err("it encapsulates");
                }
                RouteAttribute::Source(_) => return Err("it is for some sources only"),
                RouteAttribute::Realm(_) => return Err("it has a realm"),
                _ => {}
            }
        }
        if message.header.tos != 0 {
            return Err("it is for some types of service only");
        }
        Ok(parts)
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// A route for the guest, and whether it has all its metrics; nothing for one that is not the guest's, or that its
/// kernel makes itself.
fn route(
    snapshot: &Snapshot,
    uplinks: &[(&NicState, &Link)],
    message: &RouteMessage,
) -> Result<Option<(Route, bool)>, &'static str> {
    if is_made_by_kernel(snapshot, message) {
        return Ok(None);
    }
    let link = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => snapshot.links.indexed(*index),
            _ => None,
        });
    let rejects = matches!(
        message.header.kind,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw
    );
    let interface = match link {
        // The kernel shows IPv6 routes that lead nowhere as routes on the loopback interface.
        Some(link) if link.is_loopback() && rejects => String::new(),
        Some(link) if link.is_loopback() => link.name.clone(),
        Some(link) if uplinks.iter().any(|(_, uplink)| uplink.index == link.index) => {
            link.name.clone()
        }
        Some(_) => return Ok(None),
        None => String::new(),
    };
    let parts = RouteParts::of(message)?;
    let route = Route {
        destination: destination(message),
        gateway: text(parts.gateway),
        source: text(parts.source),
        interface,
        table: parts.table,
        scope: u8::from(message.header.scope).into(),
        protocol: u8::from(message.header.protocol).into(),
        kind: u8::from(message.header.kind).into(),
        metric: parts.metric,
        mtu: parts.mtu,
        flags: (message.header.flags & RouteFlags::Onlink).bits(),
        ..Default::default()
    };
    Ok(Some((route, !parts.other_metrics)))
}

fn text(ip: Option<IpAddr>) -> String {
    ip.map(|ip| ip.to_string()).unwrap_or_default()
}

fn destination(message: &RouteMessage) -> String {
    let found = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip_of(address),
            _ => None,
        });
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let prefix = message.header.destination_prefix_length;
    format!("{}/{prefix}", found.unwrap_or(any))
}

/// Whether the guest's kernel makes the same route itself: those of its local table, those that come with an address
/// or with IPv6 on a link, and what routers announce.
fn is_made_by_kernel(snapshot: &Snapshot, message: &RouteMessage) -> bool {
    let header = &message.header;
    match header.protocol {
        RouteProtocol::Ra | RouteProtocol::IcmpRedirect => true,
        RouteProtocol::Kernel => {
            let addresses = &snapshot.addresses;
            let link_local = destination(message) == "fe80::/64";
            let is_local = header.table == libc::RT_TABLE_LOCAL;
            is_local
                || link_local
                || header.flags.contains(RouteFlags::Cloned)
                || addresses.iter().any(|of| is_prefix_route_of(message, of))
        }
        _ => header.flags.contains(RouteFlags::Cloned),
    }
}

/// Whether a route is the one that the kernel makes with an address.
fn is_prefix_route_of(message: &RouteMessage, address: &Address) -> bool {
    let header = &message.header;
    let metric = if address.ip.is_ipv6() {
        IPV6_KERNEL_METRIC
    } else {
        0
    };
    let Ok(parts) = RouteParts::of(message) else {
        return false;
    };
    header.protocol == RouteProtocol::Kernel
        && header.kind == RouteType::Unicast
        && parts.table == u32::from(libc::RT_TABLE_MAIN)
        && header.destination_prefix_length == address.prefix
        && parts.destination == Some(address.network())
        && parts.link == Some(address.link)
        && parts.gateway.is_none()
        && parts.metric == metric
}

/// A rule for the guest; nothing for one that every kernel starts with.
fn rule(message: &RuleMessage) -> Result<Option<Rule>, (u32, &'static str)> {
    let header = &message.header;
    let mut rule = Rule {
        ipv6: header.family == AddressFamily::Inet6,
        table: header.table.into(),
        action: u8::from(header.action).into(),
        ..Default::default()
    };
    let mut objection = None;
    let mut selects = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Source(ip) => rule.source = format!("{ip}/{}", header.src_len),
            RuleAttribute::Destination(ip) => rule.destination = format!("{ip}/{}", header.dst_len),
            RuleAttribute::FwMark(mark) => rule.fwmark = *mark,
            RuleAttribute::FwMask(mask) => rule.fwmask = *mask,
            RuleAttribute::Iifname(name) => rule.input_interface.clone_from(name),
            RuleAttribute::Oifname(name) => rule.output_interface.clone_from(name),
            // Who made it changes nothing, and all ones stand for no suppression.
            RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => continue,
            _ => objection = Some("it selects by what hull does not carry"),
        }
        selects |= !matches!(
            attribute,
            RuleAttribute::Priority(_) | RuleAttribute::Table(_)
        );
    }
    let default = !selects
        && header.action == RuleAction::ToTable
        && matches!(
            (rule.priority, rule.table),
            (0, 255) | (32766, 254) | (32767, 253)
        );
    if header.flags.contains(RuleFlags::Invert) {
        objection = Some("it is inverted");
    }
    if header.tos != 0 {
        objection = Some("it is for some types of service only");
    }
    if header.action == RuleAction::Goto {
        objection = Some("it jumps to another rule");
    }
    match objection {
        _ if default => Ok(None),
        Some(reason) => Err((rule.priority, reason)),
        None => Ok(Some(rule)),
    }
}
