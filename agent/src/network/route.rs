//! Routes of all tables but the local one, which the kernel keeps.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error_text::with_causes;

use super::netlink::{Netlink, NetlinkError};
use super::wanted::{Prefix, Route};

/// RT_TABLE_LOCAL.
const LOCAL: u32 = 255;

/// Removes the routes of `before` that are not wanted any more. That comes before the addresses: a route to an address's
/// network may be wanted by itself first and be the kernel's own later, which makes none where there is one.
pub(super) async fn remove(
    netlink: &Netlink,
    before: &[Route],
    wanted: &[Route],
    indices: &HashMap<String, u32>,
    failures: &mut Vec<String>,
) {
    let kept: HashSet<&Route> = wanted.iter().collect();
    for route in before.iter().filter(|route| !kept.contains(route)) {
        let Some(message) = message(route, indices) else {
            // Its interface is gone, and it with it.
            continue;
        };
        match netlink
            .change(RouteNetlinkMessage::DelRoute(message), 0)
            .await
        {
            Err(error) if !is_gone(&error) => {
                failures.push(format!(
                    "remove the route to {}: {}",
                    route.destination,
                    with_causes(&error)
                ));
            }
            _ => {}
        }
    }
}

/// Adds the wanted routes: first those on a link, which make gateways reachable, then those through gateways, again and
/// again while that helps.
pub(super) async fn add_all(
    netlink: &Netlink,
    wanted: &[Route],
    indices: &HashMap<String, u32>,
    failures: &mut Vec<String>,
) {
    let mut keys: HashMap<Key, usize> = HashMap::new();
    for route in wanted {
        *keys.entry(key(route)).or_default() += 1;
    }
    let (mut waiting, on_gateways): (Vec<&Route>, Vec<&Route>) = wanted
        .iter()
        .filter(|route| route.table != LOCAL)
        .partition(|route| route.gateway.is_none());
    waiting.extend(on_gateways);
    loop {
        let mut left = Vec::new();
        let mut errors = Vec::new();
        for route in &waiting {
            let alone = keys.get(&key(route)) == Some(&1);
            if let Err(error) = add(netlink, route, indices, alone).await {
                errors.push(format!("add the route to {}: {error}", route.destination));
                left.push(*route);
            }
        }
        if left.is_empty() {
            return;
        }
        if left.len() == waiting.len() {
            failures.append(&mut errors);
            return;
        }
        waiting = left;
    }
}

/// What tells the kernel's routes apart. Several wanted routes with one key are alternatives.
type Key = (Prefix, u32, u32);

fn key(route: &Route) -> Key {
    (route.destination, route.table, route.metric)
}

/// `alone`: no other wanted route has its key, so it takes the place of what has it now, such as the kernel's own
/// route to an address's network. Otherwise it is added to those that have it.
async fn add(
    netlink: &Netlink,
    route: &Route,
    indices: &HashMap<String, u32>,
    alone: bool,
) -> Result<(), String> {
    let message = message(route, indices).ok_or_else(|| {
        let name = route.interface.as_deref().unwrap_or_default();
        format!("there is no interface {name}")
    })?;
    let flags = if alone { NLM_F_REPLACE } else { NLM_F_APPEND };
    match netlink
        .change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | flags)
        .await
    {
        Err(error) if error.errno() != Some(libc::EEXIST) => Err(with_causes(&error)),
        _ => Ok(()),
    }
}

fn is_gone(error: &NetlinkError) -> bool {
    matches!(
        error.errno(),
        Some(libc::ESRCH | libc::ENODEV | libc::ENOENT | libc::ENETDOWN)
    )
}

/// The route as the kernel takes it; nothing when its interface is not there.
fn message(route: &Route, indices: &HashMap<String, u32>) -> Option<RouteMessage> {
    let output = match &route.interface {
        Some(name) => Some(*indices.get(name)?),
        None => None,
    };
    let mut message = RouteMessage::default();
    let v4 = route.destination.address.is_ipv4();
    message.header = RouteHeader {
        address_family: if v4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        },
        destination_prefix_length: route.destination.length,
        table: u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: route.protocol.into(),
        scope: route.scope.into(),
        kind: match route.kind {
            0 => RouteType::Unicast,
            kind => kind.into(),
        },
        flags: RouteFlags::from_bits_retain(route.flags) & RouteFlags::Onlink,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    if route.destination.length > 0 {
        attributes.push(RouteAttribute::Destination(
            route.destination.address.into(),
        ));
    }
    match route.gateway {
        Some(IpAddr::V6(gateway)) if v4 => {
            attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway)));
        }
        Some(gateway) => attributes.push(RouteAttribute::Gateway(gateway.into())),
        None => {}
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(index) = output {
        attributes.push(RouteAttribute::Oif(index));
    }
    if route.metric > 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    if route.mtu > 0 {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    Some(message)
}
